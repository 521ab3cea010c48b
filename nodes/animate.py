"""AnyCharVAnimateCharacter: a picture moves as the person of a video does, in one node."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import InputImpl, io
from torch import Tensor

from ..anycharv_core.errors import UserError
from ..anycharv_core.inference.finish import whole
from ..anycharv_core.inference.phases import Phases
from ..anycharv_core.inference.pipeline import Pipeline
from ..anycharv_core.inference.shortcuts import NONE
from ..anycharv_core.inference.skeletons import PointSkeletons, Skeletons
from ..anycharv_core.media.canvas import CanvasPath
from ..anycharv_core.media.frames import Source
from ..anycharv_core.media.pose import Poses
from ..anycharv_core.media.video_write import CRF, VideoWriter
from ..anycharv_core.preprocess.retarget import rescale
from .backend import ComfyBackend, node_size
from .dwpose import open_poser, pose_model_files
from .pictures import digest, first_of, image_uint8
from .pose import given_poses
from .prepare import choose, find, first_input, pose_model_input, who_input
from .preview import write_shown
from .resume import unfinished
from .types import (
    CATEGORY,
    NETWORKS,
    PoseKeypoint,
    cfg_input,
    crf_input,
    network_inputs,
    recipe_input,
    resume_input,
    seed_input,
    size_inputs,
    steps_input,
)
from .video import new_video, opened, temporary_folder


class AnyCharVAnimateCharacter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVAnimateCharacter",
            display_name="AnyCharV Animate Character",
            category=CATEGORY,
            description="Lets the character of a picture move as a person of a video does, with that video's "
            "frame times and audio. Without a pose it finds and follows the person itself.",
            search_aliases=[
                "animate picture",
                "animate anyone",
                "motion transfer",
                "dance",
                "image to video",
                "角色动画",
                "动作迁移",
                "图片跳舞",
            ],
            essentials_category="Video Tools",
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            inputs=[
                *network_inputs("A model of Animate Anyone from AnyCharV Loader."),
                io.Image.Input("reference", tooltip="One picture of the character in its scene, best whole-body."),
                io.Video.Input("video", tooltip="The driving video, whose motion, times and sound are taken."),
                steps_input(),
                cfg_input(),
                seed_input(),
                *size_inputs(),
                recipe_input("'official' does as the release does: it stretches the reference."),
                io.MultiType.Input(
                    "pose",
                    [io.Image, PoseKeypoint],
                    optional=True,
                    tooltip="Skeletons, drawn or as keypoints, one per frame of the video. Found where none are "
                    "wired in.",
                ),
                who_input(),
                first_input(),
                pose_model_input(),
                io.Boolean.Input(
                    "fit",
                    default=True,
                    optional=True,
                    tooltip="Bring skeletons that are points to the proportions, size and place of the character, "
                    "whose pose pose_model finds.",
                ),
                crf_input(),
                resume_input(),
            ],
            outputs=[io.Video.Output()],
        )

    @classmethod
    def validate_inputs(cls, pose_model: str = "", who: Any = None) -> bool:
        """A model that is missing is only a mistake where it is needed."""
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        reference_net: Any,
        vae: Any,
        clip_vision: Any,
        reference: Tensor,
        video: Any,
        steps: int,
        cfg: float,
        seed: int,
        width: int,
        height: int,
        recipe: str,
        pose: Any = None,
        who: dict[str, Any] | None = None,
        frames: int = 0,
        pose_model: str = "",
        fit: bool = True,
        crf: int = CRF,
        resume: bool = True,
    ) -> io.NodeOutput:
        folder = temporary_folder()
        pipe = Pipeline(ComfyBackend(model, reference_net, vae, clip_vision), folder)
        chosen = pipe.system.recipe(recipe)
        if pipe.system.reads_scene:
            raise UserError(
                f"This node animates a picture, but the model is one of {pipe.system.title}, which "
                f"{pipe.system.purpose}: use AnyCharV Replace Character, or load a model of Animate Anyone."
            )
        picture = image_uint8(reference[:1], "reference")[0]
        with opened(video, frames) as source:
            info = source.info
            skeletons: Skeletons
            if pose is None:
                found = find(source, pose_model)
                (index,) = choose(found, who, 1)
                skeletons = PointSkeletons(found.findings.poses.only(found.findings.tracks[index].people))
            else:
                skeletons = given_poses(first_of(pose, frames), info)
            if fit and isinstance(skeletons, PointSkeletons):
                character = _character(picture[..., :3], pose_model)
                skeletons = PointSkeletons(rescale(skeletons.poses, character, keep_aspect=chosen.keeps_aspect))
            size = node_size(pipe, chosen, skeletons.size, (width, height))
            plan = pipe.plan(chosen, None, skeletons.size, size)
            drawn = Source("pose", skeletons.drawn(plan.drawing, CanvasPath(plan.canvas)), 3)
            made = pipe.prepare(plan, picture, None, None, drawn)
            target = new_video(folder)
            writer = VideoWriter(
                target,
                *plan.canvas.source,
                info.timestamps,
                info.time_base,
                info.rate,
                audio_from=source.sound,
                crf=crf,
            )

            def content() -> tuple[object, ...]:
                shown = digest(made.video.poses[index] for index in range(info.frames))
                return *source.content, shown, picture.tobytes(), (steps, cfg, seed, width, height, recipe)

            phases = Phases()
            with unfinished(cls.hidden, NETWORKS, content, resume, folder) as begin, writer:
                latents = begin(0, made.shape, pipe.noise(made, seed), NONE.parts)
                sampled = pipe.sample(made, latents, steps, cfg, phases)
                write_shown(writer, pipe.decode(made, latents, whole, phases, sampled=sampled), info.frames)
        return io.NodeOutput(InputImpl.VideoFromFile(str(target)))


def _character(picture: Any, pose_model: str) -> Poses:
    """The pose of the most certain person of a picture uint8 [H, W, 3]. Raises UserError where there is nobody."""
    poses = open_poser(pose_model_files(pose_model))(picture[None])
    if not len(poses.people[0]):
        raise UserError(
            "Nobody was found in the reference: give a picture of the whole character, choose another pose_model, "
            "or turn fit off."
        )
    return replace(poses, people=[poses.people[0][:1]])
