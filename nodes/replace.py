"""AnyCharVReplaceCharacter: the whole job in one node, streaming from file to file."""

from __future__ import annotations

from comfy_api.latest import io

from .types import (
    CATEGORY,
    PoseKeypoint,
    ReferenceNetType,
    cfg_input,
    recipe_input,
    seed_input,
    size_inputs,
    steps_input,
)


class AnyCharVReplaceCharacter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVReplaceCharacter",
            display_name="AnyCharV Replace Character",
            category=CATEGORY,
            description="Puts the character into the video and keeps its size, frame times and audio. Frames "
            "stream from file to file, so the length of the clip is not limited by memory.",
            search_aliases=["character swap", "replace person"],
            inputs=[
                io.Model.Input("model", tooltip="From AnyCharV Loader, with or without LoRAs."),
                ReferenceNetType.Input("reference_net", tooltip="From AnyCharV Loader."),
                io.Vae.Input("vae", tooltip="The VAE the model works with."),
                io.ClipVision.Input("clip_vision", tooltip="The image encoder the model was trained with."),
                io.Video.Input("video", tooltip="The driving clip."),
                io.Image.Input("reference", tooltip="One picture of the character; alpha removes its background."),
                io.MultiType.Input(
                    "mask",
                    [io.Mask, io.BoundingBox, io.BoundingBoxes],
                    tooltip="White where the person is replaced, one per frame of the clip or one for all; or "
                    "boxes. Frames without white pass through untouched.",
                ),
                io.MultiType.Input(
                    "pose",
                    [io.Image, PoseKeypoint],
                    tooltip="Skeletons, drawn or as keypoints (which take no memory), one per frame.",
                ),
                io.Mask.Input("reference_mask", optional=True, tooltip="White on the character of the reference."),
                steps_input(),
                cfg_input(),
                seed_input(),
                *size_inputs(),
                recipe_input("'official' does everything as the release does, without pasting back."),
            ],
            outputs=[io.Video.Output()],
        )

    @classmethod
    def execute(
        cls,
        model,
        reference_net,
        vae,
        clip_vision,
        video,
        reference,
        mask,
        pose,
        steps,
        cfg,
        seed,
        width,
        height,
        recipe,
        reference_mask=None,
    ) -> io.NodeOutput:
        from .native.replace import replace_character

        return io.NodeOutput(
            replace_character(
                model,
                reference_net,
                vae,
                clip_vision,
                video,
                reference,
                reference_mask,
                mask,
                pose,
                steps,
                cfg,
                seed,
                (width, height),
                recipe,
            )
        )
