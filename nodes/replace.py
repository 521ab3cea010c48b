"""AnyCharVReplaceCharacter: the whole job in one node, streaming from file to file."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import comfy.utils
import folder_paths
import numpy as np
from comfy_api.latest import InputImpl, io
from torch import Tensor

from ..anycharv_core.errors import UserError
from ..anycharv_core.inference.pipeline import Pipeline
from ..anycharv_core.media.camera import CONTEXT
from ..anycharv_core.media.canvas import AUTO
from ..anycharv_core.media.colour import check_transfer
from ..anycharv_core.media.frames import Reopened
from ..anycharv_core.media.imaging import Size
from ..anycharv_core.media.masks import boxes_to_masks
from ..anycharv_core.media.pose import Poses
from ..anycharv_core.media.video_read import VideoInfo, probe, read_frames
from ..anycharv_core.media.video_write import CRF, WORST_CRF, VideoWriter
from .backend import ComfyBackend, node_size
from .pictures import frame_boxes, image_uint8, mask_fitter, masks_uint8, reference_mask_uint8, rgb_frames
from .pose import parsed_poses
from .types import (
    CATEGORY,
    PoseKeypoint,
    ReferenceNetType,
    canvas_input,
    cfg_input,
    context_input,
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
            "stream from file to file, so the length of the video is not limited by memory.",
            search_aliases=["character swap", "replace person"],
            inputs=[
                io.Model.Input("model", tooltip="From AnyCharV Loader, with or without LoRAs."),
                ReferenceNetType.Input("reference_net", tooltip="From AnyCharV Loader."),
                io.Vae.Input("vae", tooltip="The VAE the model works with."),
                io.ClipVision.Input("clip_vision", tooltip="The image encoder the model was trained with."),
                io.Video.Input("video", tooltip="The driving video."),
                io.Image.Input("reference", tooltip="One picture of the character; alpha removes its background."),
                io.MultiType.Input(
                    "mask",
                    [io.Mask, io.BoundingBox, io.BoundingBoxes],
                    tooltip="White where the person is replaced, one per frame of the video or one for all; or "
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
                io.Int.Input(
                    "crf",
                    default=CRF,
                    min=0,
                    max=WORST_CRF,
                    optional=True,
                    tooltip="Quality of the H.264 video: 0 is best, 17 shows no difference, 51 is worst.",
                ),
                canvas_input(AUTO),
                context_input(),
            ],
            outputs=[io.Video.Output()],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        reference_net: Any,
        vae: Any,
        clip_vision: Any,
        video: Any,
        reference: Tensor,
        mask: Any,
        pose: Any,
        steps: int,
        cfg: float,
        seed: int,
        width: int,
        height: int,
        recipe: str,
        reference_mask: Tensor | None = None,
        crf: int = CRF,
        canvas: str = AUTO,
        context: float = CONTEXT,
    ) -> io.NodeOutput:
        folder = Path(folder_paths.get_temp_directory())
        folder.mkdir(parents=True, exist_ok=True)
        pipe = Pipeline(ComfyBackend(model, reference_net, vae, clip_vision), folder)
        chosen = pipe.system.recipe(recipe)
        if not pipe.system.reads_scene:
            raise UserError(
                "This node replaces a person of a video, but the model is one of Animate Anyone, which animates a "
                "picture: use AnyCharV Conditioning and AnyCharV Sampler, without a scene."
            )
        picture = image_uint8(reference[:1], "reference")[0]
        alpha = reference_mask_uint8(reference_mask, picture, "reference_mask")
        with _opened(video) as (info, scene, sound):
            size = node_size(pipe, chosen, (info.width, info.height), (width, height))
            given = pose if isinstance(pose, Tensor) else parsed_poses(pose)
            plan = pipe.plan(chosen, (info.width, info.height), _pose_size(given), size)
            target = folder / f"anycharv_{secrets.token_hex(8)}.mp4"
            writer = VideoWriter(
                target,
                *plan.canvas.source,
                info.timestamps,
                info.time_base,
                info.rate,
                audio_from=sound,
                crf=crf,
                sample_aspect=info.sample_aspect,
                colours=info.colours,
                depth=info.depth,
            )
            with writer:
                out = pipe(
                    picture,
                    scene,
                    _masks(mask, info),
                    _poses(given, info),
                    steps=steps,
                    guidance_scale=cfg,
                    seed=seed,
                    size=size,
                    recipe=recipe,
                    reference_mask=alpha,
                    canvas=canvas,
                    context=context,
                )
                bar = comfy.utils.ProgressBar(info.frames)
                for frame in out.frames:
                    writer.write(frame)
                    bar.update(1)
        return io.NodeOutput(InputImpl.VideoFromFile(str(target)))


class _Opened(NamedTuple):
    """A VIDEO's frames uint8 or uint16 [H, W, 3], what they are, and a file with their sound, or None."""

    info: VideoInfo
    frames: Iterable[np.ndarray]
    sound: str | None


@contextmanager
def _opened(video: Any) -> Iterator[_Opened]:
    """The VIDEO's own frames, not encoded on the way: of its file, of what it is trimmed to, or in memory."""
    with tempfile.TemporaryDirectory(prefix="anycharv_") as folder:
        saved = str(Path(folder) / "sound.mp4")
        if isinstance(video, InputImpl.VideoFromComponents):
            parts = video.get_components()
            if parts.audio:
                video.save_to(saved)
            info = _info_of_pictures(parts.images, Fraction(parts.frame_rate))
            yield _Opened(info, rgb_frames(parts.images, "video"), saved if parts.audio else None)
            return
        source = video.get_stream_source()
        if not isinstance(source, str):
            copy = Path(folder) / "source"
            copy.write_bytes(source.getvalue())
            source = str(copy)
        info = probe(source)
        check_transfer(source, info.colours)
        start, duration = video.get_active_trim_window()
        if (start, duration) == (0.0, 0.0):
            frames = Reopened(partial(read_frames, source, deep=True))
            yield _Opened(info, frames, source if info.has_audio else None)
            return
        part, info = _trimmed(info, start, duration)
        if info.has_audio:
            video.save_to(saved)
        frames = Reopened(partial(read_frames, source, part.start, part.stop, deep=True))
        yield _Opened(info, frames, saved if info.has_audio else None)


def _info_of_pictures(images: Tensor, rate: Fraction) -> VideoInfo:
    count, height, width, _ = images.shape
    return VideoInfo(
        width=width,
        height=height,
        frames=count,
        time_base=1 / rate,
        timestamps=tuple(range(count)),
        rate=rate,
        rotation=0,
        has_audio=False,
        sample_aspect=Fraction(1),
    )


def _trimmed(info: VideoInfo, start: float, duration: float) -> tuple[range, VideoInfo]:
    """Which frames ComfyUI shows of a video trimmed to `duration` seconds (0 = all) from `start` on, and what they
    are by themselves, with times from the start of the trim."""
    first = int(start / info.time_base)
    end = int((start + duration) / info.time_base) if duration else info.timestamps[-1] + 1
    chosen = [index for index, time in enumerate(info.timestamps) if first <= time < end]
    if not chosen:
        raise UserError(
            f"The video is trimmed to {duration} seconds from {start} on, where it has no frames; trim less."
        )
    part = range(chosen[0], chosen[-1] + 1)
    times = tuple(time - first for time in info.timestamps[part.start : part.stop])
    return part, replace(info, frames=len(part), timestamps=times)


def _masks(mask: Any, info: VideoInfo) -> Iterable[np.ndarray]:
    if not isinstance(mask, Tensor):
        boxes = frame_boxes(mask, info.frames)
        return Reopened(lambda: (boxes_to_masks([box], info.width, info.height)[0] for box in boxes))
    if len(mask) not in (1, info.frames):
        raise UserError(f"The video has {info.frames} frames but mask has {len(mask)}; give as many, or one.")
    single = masks_uint8(mask[:1], "mask")[0]
    fit = mask_fitter((single.shape[1], single.shape[0]), (info.width, info.height), "mask")
    if len(mask) == 1:
        return [fit(single)] * info.frames
    return Reopened(lambda: (fit(masks_uint8(mask[i : i + 1], "mask")[0]) for i in range(info.frames)))


def _poses(pose: Tensor | Poses, info: VideoInfo) -> Iterable[np.ndarray] | Poses:
    if len(pose) != info.frames:
        raise UserError(f"The video has {info.frames} frames but pose has {len(pose)}; give as many of both.")
    return rgb_frames(pose, "pose") if isinstance(pose, Tensor) else pose


def _pose_size(pose: Tensor | Poses) -> Size:
    """(width, height) in pixels that the skeletons were made for."""
    return image_uint8(pose[:1], "pose").shape[2:0:-1] if isinstance(pose, Tensor) else pose.size
