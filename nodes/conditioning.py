"""AnyCharVConditioning: reference, pose, scene and mask -> what any ComfyUI sampler takes."""

from __future__ import annotations

from comfy_api.latest import io

from .types import CATEGORY, ReferenceType, recipe_input, size_inputs


class AnyCharVConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVConditioning",
            display_name="AnyCharV Conditioning",
            category=CATEGORY,
            description="Brings scene, mask and pose to one size and length and encodes them with the reference. "
            "Its LATENT holds one frame per picture, 4D, so that core VAE nodes take it.",
            inputs=[
                io.Model.Input("model", tooltip="From AnyCharV Loader, with or without LoRAs."),
                ReferenceType.Input("reference", tooltip="From AnyCharV Reference Encode."),
                io.Vae.Input("vae", tooltip="The VAE the model works with."),
                io.Image.Input(
                    "scene",
                    optional=True,
                    tooltip="The frames of the driving clip. Animate Anyone needs none; where it gets one, "
                    "AnyCharV Composite puts the character in front of it.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where the person is replaced, of the scene's size: one per frame, or one "
                    "for all frames. Animate Anyone needs none.",
                ),
                io.Image.Input(
                    "pose", tooltip="Skeletons from AnyCharV Pose Draw, one per frame, of the scene's proportions."
                ),
                *size_inputs(),
                recipe_input(
                    "'official' does as the model's release does: it stretches the reference, and sizes "
                    "AnyCharV's clips by the pose frames."
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
                io.Latent.Output(),
            ],
        )

    @classmethod
    def execute(cls, model, reference, vae, pose, width, height, recipe, scene=None, mask=None) -> io.NodeOutput:
        from .native.pipeline import condition

        positive, negative, latent = condition(model, reference, vae, scene, mask, pose, width, height, recipe)
        return io.NodeOutput(positive, negative, latent)
