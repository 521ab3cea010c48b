"""AnyCharVReferenceEncode: the character's picture and what reads it -> ANYCHARV_REFERENCE."""

from __future__ import annotations

from comfy_api.latest import io

from .types import CATEGORY, ReferenceNetType, ReferenceType


class AnyCharVReferenceEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVReferenceEncode",
            display_name="AnyCharV Reference Encode",
            category=CATEGORY,
            description="Takes the picture of the character that is to appear in the video, and the networks that "
            "read it once AnyCharV Conditioning knows how.",
            inputs=[
                ReferenceNetType.Input("reference_net", tooltip="From AnyCharV Loader."),
                io.Vae.Input("vae", tooltip="The VAE the model works with (SD1.5's for official weights)."),
                io.ClipVision.Input("clip_vision", tooltip="The image encoder the model was trained with."),
                io.Image.Input(
                    "image",
                    tooltip="One picture of the character, best whole-body. Of a batch, the first is taken; "
                    "an alpha channel removes its background. Animate Anyone keeps the background it has.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White on the character: the rest is made black, as in training. Takes the place "
                    "of an alpha channel. LoadImage's MASK output is the wrong way round: invert it.",
                ),
            ],
            outputs=[ReferenceType.Output(display_name="REFERENCE")],
        )

    @classmethod
    def execute(cls, reference_net, vae, clip_vision, image, mask=None) -> io.NodeOutput:
        from .native.pipeline import make_reference

        return io.NodeOutput(make_reference(reference_net, vae, clip_vision, image, mask))
