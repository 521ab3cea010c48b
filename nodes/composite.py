"""AnyCharVComposite: the generated character back onto the untouched original."""

from __future__ import annotations

from comfy_api.latest import io

from .types import CATEGORY, ReferenceType


class AnyCharVComposite(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVComposite",
            display_name="AnyCharV Composite",
            category=CATEGORY,
            description="Pastes the generated frames into the original ones. Outside the padded, feathered "
            "mask every value is the original's own, bit for bit. For Animate Anyone, the reference can take the "
            "mask's place.",
            inputs=[
                io.Image.Input("generated", tooltip="Decoded frames, of the size AnyCharV Conditioning chose."),
                io.Image.Input("original", tooltip="The frames of the driving clip."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="The mask given to AnyCharV Conditioning, of the original's size.",
                ),
                io.Int.Input(
                    "feather",
                    default=8,
                    min=0,
                    max=256,
                    tooltip="Pixels around the mask that are generated in full, and again as many over which "
                    "the original takes over; 0 cuts hard at the mask.",
                ),
                ReferenceType.Input(
                    "reference",
                    optional=True,
                    tooltip="For Animate Anyone without a mask: the reference given to AnyCharV Conditioning, by "
                    "whose mask the scene takes the place of the background.",
                ),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, generated, original, feather, mask=None, reference=None) -> io.NodeOutput:
        from .native.composite import composite_images, keyed_images

        if mask is None:
            return io.NodeOutput(keyed_images(generated, original, reference))
        return io.NodeOutput(composite_images(generated, original, mask, feather))
