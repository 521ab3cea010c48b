"""AnyCharVReferenceEncode: the character's picture -> ANYCHARV_REFERENCE."""

from __future__ import annotations

from comfy_api.latest import io

from .types import CATEGORY, ReferenceNetType, ReferenceType, recipe_input


class AnyCharVReferenceEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVReferenceEncode",
            display_name="AnyCharV Reference Encode",
            category=CATEGORY,
            description="Encodes the picture of the character that is to appear in the video.",
            inputs=[
                ReferenceNetType.Input("reference_net", tooltip="From AnyCharV Loader."),
                io.Vae.Input("vae", tooltip="The VAE the model works with (SD1.5's for official weights)."),
                io.ClipVision.Input("clip_vision", tooltip="The image encoder the model was trained with."),
                io.Image.Input(
                    "image",
                    tooltip="One picture of the character, best whole-body. Of a batch, the first is taken; "
                    "an alpha channel removes its background.",
                ),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip="White on the character: the rest is made black, as in training. Takes the place "
                    "of an alpha channel. LoadImage's MASK output is the wrong way round: invert it.",
                ),
                recipe_input("'official' squashes the picture and keeps its background, as the release does."),
            ],
            outputs=[ReferenceType.Output(display_name="REFERENCE")],
        )

    @classmethod
    def execute(cls, reference_net, vae, clip_vision, image, recipe, mask=None) -> io.NodeOutput:
        from .native.pipeline import encode_reference

        return io.NodeOutput(encode_reference(reference_net, vae, clip_vision, image, mask, recipe))
