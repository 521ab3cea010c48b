"""Prepared videos as training samples."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from anycharv_core.errors import UserError
from anycharv_core.foreign import read_picture
from anycharv_core.inference.backend import DEPTH, OBJECTS
from anycharv_core.media.depth import structured_depth
from anycharv_core.media.mask_read import numbered_pngs
from anycharv_core.media.masks import mask_box
from training.config import BACKGROUND, Data
from training.data.conditions import (
    STEADY,
    drawn_poses,
    factor,
    given_masks,
    hand_masks,
    noisy_picture,
    on_background,
    painted_over,
    with_scene,
)
from training.data.crops import (
    Size,
    Window,
    cut,
    cut_cameras,
    cut_nearest,
    cut_poses,
    figure_window,
    mirror_poses,
    person_window,
)
from training.data.scaling import anchors, enlarged
from training.data.shards import Clip, open_shards

Shown = tuple[Clip, int, int]
"""clip, frame of the clip, frame of the video"""

# Lowest and highest margin around the character in a reference, in parts of its longer side.
_MARGINS = (0.02, 0.25)
# One video in so many is held out, the first ones by the hash of their content, but always one of several.
_HELD_OUT = 50


class ShardClips(Dataset):
    """One sample per clip that is long enough: `frames` frames of it, `data.stride` apart, from a random one on,
    and a reference from elsewhere in the same video, or of the clip itself where whole frames are shown, as far
    away in time as the farther half of all there are.

    `buckets[index]` numbers the sample's size, for `samples.loader`; `videos` counts the videos.
    """

    def __init__(self, data: Data, frames: int):
        folder = Path(data.path or "")
        clips = open_shards(folder)
        names = sorted({clip.video for clip in clips})
        if len(names) == 1:
            logging.getLogger(__name__).warning(
                "%s holds a single video: enough to fit one character, but the model learns no other, nothing is "
                "held out, and no pairs can be made.",
                folder,
            )
        else:
            held_out = set(names[: max(1, len(names) // _HELD_OUT)])
            clips = [clip for clip in clips if (clip.video in held_out) == (data.split == "heldout")]
        if BACKGROUND in data.conditions and data.backgrounds is None:
            logging.getLogger(__name__).warning(
                "OpenCV paints over the person in the backgrounds of %s, more coarsely than a network would.",
                folder,
            )
        self._span = (frames - 1) * data.stride + 1
        self.data, self.frames = data, frames
        self.clips = [clip for clip in clips if clip.frames >= self._span]
        if not self.clips:
            longest = max(clip.frames for clip in clips)
            raise UserError(
                f"{folder} holds no clip of {self._span} frames ({frames}, {data.stride} apart), the longest has "
                f"{longest}; ask for fewer or a smaller stride, or prepare longer clips (--max-frames)."
            )
        self.videos = len({clip.video for clip in self.clips})
        sizes = sorted({clip.size for clip in self.clips})
        self.buckets = [0 if data.size else sizes.index(clip.size) for clip in self.clips]
        # What may be shown as reference, by video.
        self._references: dict[str, list[Shown]] = {}
        for clip in clips:
            found = [(clip, number, clip.start + number) for number in clip.references]
            self._references.setdefault(clip.video, []).extend(found)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, sample: tuple[int, int]) -> dict[str, Tensor]:
        index, epoch = sample
        clip = self.clips[index]
        rng = self._generator(index, epoch)
        start = self._start(clip, rng)
        whole = self.data.reference == "frame"
        reference = self._whole(clip, start, rng) if whole else self._reference(clip, start, rng)
        numbers = list(range(start, start + self._span, self.data.stride))
        pictures, poses = clip.pictures(numbers), clip.poses(numbers)
        layers = {"character": clip.masks(numbers)}
        layers |= {name: clip.extra(name, numbers) for name in self.data.conditions if name != BACKGROUND}
        cameras = clip.cameras(numbers) if BACKGROUND in self.data.conditions else None
        plate = self._plate(clip, start)
        size = self.data.size or clip.size
        if size != clip.size:
            window = self._window(clip, numbers)
            plate = None if plate is None else cut(plate, window, size)
            if whole:
                reference = cut(reference, window, size)
            pictures = np.stack([cut(picture, window, size) for picture in pictures])
            for name, layer in layers.items():
                taken = cut_nearest if name == DEPTH else cut
                layers[name] = np.stack([taken(picture, window, size) for picture in layer])
            poses = cut_poses(poses, window, size)
            cameras = cameras and cut_cameras(cameras, window, size)
        if rng.random() < self.data.flip:
            pictures = pictures[:, :, ::-1].copy()
            layers = {name: layer[:, :, ::-1].copy() for name, layer in layers.items()}
            poses = mirror_poses(poses)
            cameras = cameras and cameras.mirrored(size[0])
            plate = None if plate is None else plate[:, ::-1]
            if whole:
                reference = reference[:, ::-1].copy()
        scene, body = pictures, layers["character"]
        if OBJECTS in layers:
            layers["character"] = np.maximum(body, layers[OBJECTS])
            body = np.where(layers[OBJECTS] > 127, np.uint8(0), body)
        if (larger := factor(self.data, rng)) != 1:
            figures = layers["character"]
            points = anchors(poses, figures)
            pictures, layers, poses = enlarged(pictures, figures, layers, poses, larger, points)
        pose = drawn_poses(poses, size, self.data.pose_scale or 1)
        if DEPTH in layers:
            layers[DEPTH] = structured_depth(layers[DEPTH].astype(np.uint16) * 257, pose)
        arrays = {
            "frames": pictures,
            "pose": pose,
            "mask": given_masks(body, self.data, rng, smooth=STEADY if self.data.stride == 1 else 0),
            "reference": reference,
            **layers,
        }
        if BACKGROUND in self.data.conditions:
            empty = painted_over(pictures[0], layers["character"][0]) if plate is None else plate
            arrays["background"] = noisy_picture(empty, rng)
            arrays["hands"] = hand_masks(poses, size)
            # All zeros are no cameras: a batch needs them of every clip.
            arrays["cameras"] = np.zeros((self.frames, 3, 7)) if cameras is None else cameras.packed()
        return {name: torch.from_numpy(array) for name, array in with_scene(arrays, scene, self.data, rng).items()}

    def reference(self, index: int, epoch: int) -> Tensor:
        if self.data.reference == "frame":
            return self[index, epoch]["reference"]
        clip, rng = self.clips[index], self._generator(index, epoch)
        return torch.from_numpy(self._reference(clip, self._start(clip, rng), rng))

    def origin(self, index: int, epoch: int) -> dict[str, Any]:
        clip, rng = self.clips[index], self._generator(index, epoch)
        start = self._start(clip, rng)
        others = self._of_clip(clip) if self.data.reference == "frame" else self._references[clip.video]
        _, _, reference = self._elsewhere(others, clip, start, rng)
        return {
            "video": clip.video,
            "clip": clip.key,
            "first_frame": clip.start + start,
            "frames": self.frames,
            "stride": self.data.stride,
            "reference_frame": reference,
        }

    def _generator(self, index: int, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self.data.seed, epoch, index])

    def _start(self, clip: Clip, rng: np.random.Generator) -> int:
        return int(rng.integers(clip.frames - self._span + 1))

    def _elsewhere(self, others: Sequence[Shown], clip: Clip, start: int, rng: np.random.Generator) -> Shown:
        middle = clip.start + start + self._span // 2
        far = sorted(others, key=lambda found: -abs(found[2] - middle))
        return far[int(rng.integers(max(1, len(far) // 2)))]

    def _of_clip(self, clip: Clip) -> list[Shown]:
        # Before another crop of the video the background would be another.
        return [(clip, number, clip.start + number) for number in clip.references or range(clip.frames)]

    def _whole(self, clip: Clip, start: int, rng: np.random.Generator) -> np.ndarray:
        _, number, _ = self._elsewhere(self._of_clip(clip), clip, start, rng)
        return clip.pictures([number])[0]

    def _reference(self, clip: Clip, start: int, rng: np.random.Generator) -> np.ndarray:
        other, number, _ = self._elsewhere(self._references[clip.video], clip, start, rng)
        margin, mirrored = rng.uniform(*_MARGINS), rng.random() < self.data.flip
        picture, mask = other.pictures([number])[0], other.masks([number])[0]
        box = mask_box(mask)
        if OBJECTS in self.data.conditions:
            mask = np.where(other.extra(OBJECTS, [number])[0] > 127, np.uint8(0), mask)
        if self.data.reference == "cutout":
            picture = picture * (mask > 127)[..., None]
        size = self.data.size or clip.size
        window = figure_window(box or (0, 0, *other.size), size, margin)
        shown = cut(picture, window, size)
        if self.data.reference == "background":
            shown = on_background(shown, cut(mask, window, size), self._any_frame(size, rng), rng)
        return shown[:, ::-1].copy() if mirrored else shown

    def _plate(self, clip: Clip, start: int) -> np.ndarray | None:
        """The background of the clip's frame `start` at its size, where backgrounds are given."""
        if self.data.backgrounds is None:
            return None
        facts = clip.facts()
        folder = Path(self.data.backgrounds) / Path(facts["source"]).with_suffix("")
        pictures, number = numbered_pngs(folder) if folder.is_dir() else [], clip.start + start
        if number >= len(pictures):
            raise UserError(
                f"{folder} holds {len(pictures)} PNGs, but its video has a frame {number}: one for each is wanted."
            )
        picture = np.asarray(read_picture(pictures[number], "RGB"))
        if list(picture.shape[1::-1]) != facts["source_size"]:
            raise UserError(
                f"{pictures[number]} is not of its video's size, {facts['source_size']}: give it at that."
            )
        return cut(picture, facts["window"], clip.size)

    def _any_frame(self, size: Size, rng: np.random.Generator) -> np.ndarray:
        """A frame of any clip at this size."""
        clip = self.clips[int(rng.integers(len(self.clips)))]
        picture = clip.pictures([int(rng.integers(clip.frames))])[0]
        return cut(picture, person_window([(0, 0, *clip.size)], clip.size, size), size)

    def _window(self, clip: Clip, numbers: list[int]) -> Window:
        boxes = clip.boxes()
        present = [box for number in numbers if (box := boxes[number])]
        return person_window(present or [(0, 0, *clip.size)], clip.size, self.data.size or clip.size)
