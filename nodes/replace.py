"""AnyCharVReplaceCharacter: the whole job in one node, streaming from file to file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from typing import Any

import numpy as np
from comfy_api.latest import InputImpl, io
from torch import Tensor

from ..anycharv_core.errors import UserError
from ..anycharv_core.inference.backend import DEPTH, OBJECTS
from ..anycharv_core.inference.people import as_seen, check_number, put_in_turn
from ..anycharv_core.inference.phases import Phases
from ..anycharv_core.inference.pipeline import Pipeline
from ..anycharv_core.inference.reference import refer
from ..anycharv_core.inference.shortcuts import FAST, NONE, check_shortcuts, fast_steps
from ..anycharv_core.inference.skeletons import PointSkeletons, Skeletons
from ..anycharv_core.jobs.prepared import DEPTH_PICTURES, OBJECT_MASKS, PreparedPerson
from ..anycharv_core.media.camera import CONTEXT
from ..anycharv_core.media.canvas import AUTO, CanvasPath
from ..anycharv_core.media.frames import Reopened, Source, eight_bit
from ..anycharv_core.media.imaging import Size
from ..anycharv_core.media.masks import boxes_to_masks, mask_box
from ..anycharv_core.media.pose import Poses
from ..anycharv_core.media.video_read import VideoInfo
from ..anycharv_core.media.video_write import CRF, VideoWriter
from ..anycharv_core.preprocess.person import poses_inside
from ..anycharv_core.preprocess.shots import find_cuts
from ..anycharv_core.systems.recipes import Recipe
from .backend import ComfyBackend, node_size
from .depth import depth_source, object_inputs, object_source
from .pictures import (
    digest,
    first_of,
    frame_boxes,
    image_uint8,
    interruptible,
    mask_frames,
    reference_mask_uint8,
    rgb_frames,
)
from .pose import given_poses, parsed_poses
from .prepare import choose, cut_out, find, first_input, model_inputs, who_input
from .preview import Overlay, write_shown
from .resume import unfinished
from .types import (
    CATEGORY,
    NETWORKS,
    PoseKeypoint,
    PreparedType,
    canvas_input,
    cfg_input,
    context_input,
    crf_input,
    network_inputs,
    recipe_input,
    resume_input,
    seed_input,
    size_inputs,
    steps_input,
)
from .video import OpenedVideo, new_video, opened, temporary_folder


class AnyCharVReplaceCharacter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVReplaceCharacter",
            display_name="AnyCharV Replace Character",
            category=CATEGORY,
            description="Puts the character into the video and keeps its size, frame times and audio. Frames "
            "stream from file to file, so the length of the video is not limited by memory. Without mask and "
            "pose it finds, follows and cuts out the person itself.",
            search_aliases=[
                "character swap",
                "character replacement",
                "replace person",
                "body swap",
                "face swap video",
                "wan animate",
                "scail",
                "角色替换",
                "人物替换",
                "视频换人",
                "视频换脸",
            ],
            essentials_category="Video Tools",
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            inputs=[
                *network_inputs("From AnyCharV Loader, with or without LoRAs."),
                io.Video.Input("video", tooltip="The driving video."),
                io.Image.Input("reference", tooltip="One picture of the character; alpha removes its background."),
                io.MultiType.Input(
                    "mask",
                    [io.Mask, io.BoundingBox, io.BoundingBoxes],
                    optional=True,
                    tooltip="White where the person is replaced, one per frame of the video or one for all; or "
                    "boxes. Frames without white pass through untouched. Found where none is wired in.",
                ),
                io.MultiType.Input(
                    "pose",
                    [io.Image, PoseKeypoint],
                    optional=True,
                    tooltip="Skeletons, drawn or as keypoints (which take no memory), one per frame. Found where "
                    "none are wired in.",
                ),
                io.Mask.Input("reference_mask", optional=True, tooltip="White on the character of the reference."),
                steps_input(),
                cfg_input(),
                seed_input(),
                *size_inputs(),
                recipe_input("'official' does everything as the release does, without pasting back."),
                crf_input(),
                canvas_input(AUTO),
                context_input(),
                who_input(),
                io.Autogrow.Input(
                    "characters",
                    template=io.Autogrow.TemplatePrefix(
                        io.Image.Input("picture", tooltip="One picture of another character."),
                        prefix="character",
                        min=0,
                        max=9,
                    ),
                    optional=True,
                    tooltip="More characters, each for another person of the video, who are then found: the next "
                    "most prominent ones, or those of the numbers in who.",
                ),
                first_input(),
                *model_inputs(),
                resume_input(),
                PreparedType.Input(
                    "prepared",
                    optional=True,
                    tooltip="Masks and poses from AnyCharV Prepare Video or AnyCharV Load Prepared, in place of "
                    "mask and pose.",
                ),
                io.Boolean.Input(
                    "fast",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="A third of the steps by a better solver, guidance only where it counts, and a cache "
                    "of deep features: several times faster, a little less exact.",
                ),
                *object_inputs(),
                io.Boolean.Input(
                    "match_colour",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Give what is pasted the colours of the video around the mask.",
                ),
            ],
            outputs=[io.Video.Output()],
        )

    @classmethod
    def validate_inputs(
        cls, pose_model: str = "", segmenter: str = "", who: Any = None, characters: Any = None
    ) -> bool:
        """A model that is missing is only a mistake where it is needed. ComfyUI gives what grows in any case."""
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        reference_net: Any,
        vae: Any,
        clip_vision: Any,
        video: Any,
        reference: Tensor,
        steps: int,
        cfg: float,
        seed: int,
        width: int,
        height: int,
        recipe: str,
        mask: Any = None,
        pose: Any = None,
        reference_mask: Tensor | None = None,
        crf: int = CRF,
        canvas: str = AUTO,
        context: float = CONTEXT,
        who: dict[str, Any] | None = None,
        characters: dict[str, Tensor] | None = None,
        frames: int = 0,
        pose_model: str = "",
        segmenter: str = "",
        resume: bool = True,
        prepared: list[PreparedPerson] | None = None,
        fast: bool = False,
        objects: Tensor | None = None,
        depth: Tensor | None = None,
        match_colour: bool = False,
    ) -> io.NodeOutput:
        folder = temporary_folder()
        pipe = Pipeline(ComfyBackend(model, reference_net, vae, clip_vision), folder)
        chosen = pipe.system.recipe(recipe)
        chosen = chosen.matching_colour() if match_colour else chosen
        shortcuts, taken = (FAST, fast_steps(steps)) if fast else (NONE, steps)
        check_shortcuts(chosen.recorded, shortcuts)
        if not pipe.system.reads_scene:
            raise UserError(
                "This node replaces a person of a video, but the model is one of Animate Anyone, which animates a "
                "picture: use AnyCharV Animate Character, or load a model of AnyCharV."
            )
        check_number(recipe, chosen, 1 + len(characters or {}))
        pictures = [image_uint8(reference[:1], "reference")[0]]
        pictures += [image_uint8(each[:1], name)[0] for name, each in (characters or {}).items()]
        alphas = [reference_mask_uint8(reference_mask, pictures[0], "reference_mask")] + [None] * len(pictures[1:])
        phases = Phases()
        with opened(video, frames) as source:
            info, full = source.info, (source.info.width, source.info.height)
            given = first_of(mask, frames), first_of(pose, frames)
            if prepared is None:
                people = _people(source, *given, who, len(pictures), pose_model, segmenter, pipe.cuts)
            else:
                other = mask is not None or pose is not None
                people = _of_prepared(prepared, info, other, len(pictures), pipe.cuts)
            touched, far = (
                _offered(prepared, file, info) if condition in pipe.backend.extras else None
                for condition, file in ((OBJECTS, OBJECT_MASKS), (DEPTH, DEPTH_PICTURES))
            )
            if objects is not None:
                touched = object_source(first_of(objects, frames), info.frames, full)
            if depth is not None:
                far = depth_source(first_of(depth, frames), info.frames, full)
            pipe.check_extras(full, touched, far)
            if len(people) > 1 and (touched or far):
                raise UserError("objects and depth are for one character: leave them unwired, or the others.")
            size = node_size(pipe, chosen, full, (width, height))
            plan = pipe.plan(chosen, full, people[0].skeletons.size, size, size)
            references = [refer(chosen, *each) for each in zip(pictures, alphas, strict=True)]
            scene = Source("video", source.frames, 3, deep=True)
            shown = eight_bit(scene)
            cuts = cache(lambda: find_cuts(shown))
            boxes = [[mask_box(region) for region in each.masks] for each in people]
            for each in people:
                _check_size(chosen, each.masks, full)
            if not all(map(any, boxes)):
                raise UserError("The mask is empty in every frame; mark the person to replace with white.")
            seen = partial(as_seen, pipe, plan, canvas, context, cuts)
            streams = [
                seen(Source("mask", each.masks, None), partial(list, places), each.drawn, touched, far)
                for each, places in zip(people, boxes, strict=True)
            ]

            def content() -> tuple[object, ...]:
                return (
                    *source.content,
                    *(each.tell() for each in people),
                    *(item.tobytes() for item in (*pictures, *alphas) if item is not None),
                    *(digest(item) for item in (touched, far) if item is not None),
                    (steps, cfg, seed, width, height, recipe, canvas, context, fast, match_colour),
                )

            encoded = pipe.encode(chosen, shown, streams, Overlay(boxes, info.frames))
            target = new_video(folder)
            writer = VideoWriter(
                target,
                *plan.canvas.source,
                info.timestamps,
                info.time_base,
                info.rate,
                audio_from=source.sound,
                crf=crf,
                sample_aspect=info.sample_aspect,
                colours=info.colours,
                depth=info.depth,
            )
            with unfinished(cls.hidden, NETWORKS, content, resume, folder) as begin, writer:
                finished, _ = put_in_turn(
                    pipe,
                    chosen,
                    scene,
                    encoded,
                    references,
                    [each.mask for each in streams],
                    begin,
                    taken,
                    cfg,
                    seed,
                    phases,
                    deep=info.depth > 8,
                    shortcuts=shortcuts,
                )
                write_shown(writer, finished, info.frames)
        return io.NodeOutput(InputImpl.VideoFromFile(str(target)))


@dataclass(frozen=True)
class _Replaced:
    """Somebody to replace: masks uint8 [H, W] of every frame, which can be read again, skeletons, and what gives
    that which tells them from others, see `content_key`."""

    masks: Iterable[np.ndarray]
    skeletons: Skeletons
    tell: Callable[[], object]

    def drawn(self, size: Size, path: CanvasPath) -> Source:
        """The skeletons as `Skeletons.drawn` gives them."""
        return Source("pose", self.skeletons.drawn(size, path), 3)


def _people(
    video: OpenedVideo, mask: Any, pose: Any, who: Any, count: int, pose_model: str, segmenter: str, exact: bool
) -> list[_Replaced]:
    """Who is replaced: by what is wired in, and what is not is found. count: how many; exact: whether masks that
    are found are to be so.

    Raises UserError where what is given does not fit the video, or nobody can be found.
    """
    info = video.info
    if count > 1 and not (mask is None and pose is None):
        raise UserError(
            f"There are pictures of {count} characters, but mask and pose are those of one person: leave both "
            "unwired, so that everybody is found, or the further pictures."
        )
    masks = None if mask is None else interruptible(_masks(mask, info))
    given = None if pose is None else given_poses(pose, info)
    if masks is not None and given is not None:
        return [_Replaced(masks, given, partial(_given, masks, pose))]
    points = given.poses if isinstance(given, PointSkeletons) else None
    found = find(video, pose_model, points)
    if masks is not None:
        poses = PointSkeletons(poses_inside(found.findings.poses, masks))
        return [_Replaced(masks, poses, lambda: (digest(masks), found.key))]
    people = [cut_out(video, found, index, segmenter) for index in choose(found, who, count)]
    drawn = given if points is None else None
    tell = partial(_found, None if drawn is None else pose)
    made = []
    for each in people:
        regions, skeletons = interruptible(each.region(exact)), drawn or PointSkeletons(each.poses)
        made.append(_Replaced(regions, skeletons, partial(tell, each.folder.name)))
    return made


def _of_prepared(
    prepared: list[PreparedPerson], info: VideoInfo, other: bool, count: int, exact: bool
) -> list[_Replaced]:
    """Who is replaced, by what was prepared. other: whether mask or pose is wired in, too; count: how many; exact:
    whether masks are to be so.

    Raises UserError where it does not fit.
    """
    if other:
        raise UserError("prepared takes the place of mask and pose: wire in the one or the others.")
    if len(prepared) != count:
        raise UserError(
            f"prepared holds {len(prepared)} people but there are pictures of {count} characters: give as many of "
            "both."
        )
    made = []
    for each in prepared:
        if len(each.poses) < info.frames:
            raise UserError(
                f"The video has {info.frames} frames but prepared has {len(each.poses)}; prepare this same video."
            )
        poses = each.poses.take(range(info.frames))
        masks = interruptible(Reopened(partial(islice, each.region(exact), info.frames), info.frames))
        made.append(_Replaced(masks, PointSkeletons(poses), partial(_given, masks, poses)))
    return made


def _given(masks: Iterable[np.ndarray], pose: Any) -> object:
    return digest(masks), _digest_of(pose)


def _found(pose: Any, key: str) -> object:
    return key if pose is None else (key, _digest_of(pose))


def _digest_of(pose: Any) -> bytes:
    if isinstance(pose, Poses):
        return digest(pose.people)
    return digest(rgb_frames(pose, "pose") if isinstance(pose, Tensor) else parsed_poses(pose).people)


def _offered(prepared: list[PreparedPerson] | None, file: str, info: VideoInfo) -> Source | None:
    """What was prepared of a person beside masks and poses, where it is one person."""
    found = prepared[0].offered(file) if prepared and len(prepared) == 1 else None
    return (
        None if found is None else Source(file, Reopened(partial(islice, found, info.frames), info.frames), None)
    )


def _check_size(recipe: Recipe, masks: Iterable[np.ndarray], size: Size) -> None:
    """Raises UserError where masks are pasted by, but are of another size than the video."""
    found = Source("mask", masks, None).size
    if recipe.composites and found != size:
        raise UserError(
            f"The mask is {found[0]}x{found[1]} but the video is {size[0]}x{size[1]}; give masks of the video's "
            "proportions."
        )


def _masks(mask: Any, info: VideoInfo) -> Iterable[np.ndarray]:
    if not isinstance(mask, Tensor):
        boxes = frame_boxes(mask, info.frames)
        return Reopened(lambda: (boxes_to_masks([box], info.width, info.height)[0] for box in boxes))
    return mask_frames(mask, info.frames, (info.width, info.height), "mask")
