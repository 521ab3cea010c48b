"""AnyCharVComposite: the generated character back onto the untouched original."""

from __future__ import annotations

from comfy_api.latest import io

from .types import CATEGORY


class AnyCharVComposite(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVComposite",
            display_name="AnyCharV Composite",
            category=CATEGORY,
            description="Pastes the generated frames into the original ones. Outside the padded, feathered "
            "mask every value is the original's own, bit for bit.",
            inputs=[
                io.Image.Input("generated", tooltip="Decoded frames, of the size AnyCharV Conditioning chose."),
                io.Image.Input("original", tooltip="The frames of the driving clip."),
                io.Mask.Input("mask", tooltip="The mask given to AnyCharV Conditioning, of the original's size."),
                io.Int.Input(
                    "feather", default=8, min=0, max=256,
                    tooltip="Pixels around the mask that are generated in full, and again as many over which "
                    "the original takes over; 0 cuts hard at the mask.",
                ),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, generated, original, mask, feather) -> io.NodeOutput:
        from .native.pictures import composite_images

        return io.NodeOutput(composite_images(generated, original, mask, feather))
