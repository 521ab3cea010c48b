"""Masks of one person through a video: SAM 2 (Ravi et al., 2024) by transformers, prompted with boxes.

SAM 2 finds the person in a box, then follows them by the memory of earlier frames, which also bridges frames
where the detector missed them. The boxes of the whole video are known beforehand, so that every shot begins
with a prompt and drift ends at the next one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional

from ..device import pick_device
from ..media.masks import margins
from ..opencv import cv2
from .sam2 import CONFIG_ERRORS, load_model, unusable

# Frames after which the box is given again, so that an error cannot grow for longer. A model that follows worse
# than its detector finds says so by `prompt_every` in its config.json.
PROMPT_EVERY = 32
# A person unseen for more frames than this has left; for fewer, the detector missed them.
LONGEST_GAP = 12
# Prompted frames whose memory is kept. They are the surest, and the model takes any number of them.
KEPT_PROMPTS = 4
# What a box grows by on each side before parts of the mask that don't touch it are taken for leaks.
LEAK_MARGIN = 0.1

# The pictures SAM 2 was trained on were normalised with ImageNet's statistics.
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)
_BOX_CORNERS = (2, 3)  # SAM's labels for the first and second corner of a box among its point prompts
_INSIDE = (1,)  # and its label for a point inside
_PERSON = 1  # the only object of a session

Step = Literal["empty", "start", "prompt", "follow"]


class Segmenter:
    """A SAM 2 video model, loaded when it is first used.

    Args:
        model: folder as `Sam2VideoModel.save_pretrained` writes it, or a name on the Hugging Face hub, such as
            "facebook/sam2.1-hiera-tiny".
        device: "cuda", "mps" or "cpu"; by default the GPU where torch finds one.
        dtype: of the weights and the arithmetic.
    """

    def __init__(self, model: Path | str, device: str | None = None, dtype: torch.dtype = torch.float32) -> None:
        self.model = model
        self.device = device
        self.dtype = dtype

    def masks(
        self,
        frames: Iterable[np.ndarray],
        boxes: Sequence[Sequence[float] | None],
        cuts: Sequence[int] = (),
        gap: int = LONGEST_GAP,
    ) -> Iterator[np.ndarray]:
        """Yields the person's mask in every frame, taking each frame only when its mask is asked for.

        What is held does not grow with the video: the memory of the last frames and prompts, and one frame.

        Args:
            frames: uint8 [H, W, 3], RGB.
            boxes: x0, y0, x1, y1 in pixels with exclusive ends, or a point x, y, or None where the person was not
                seen.
            cuts: index of the first frame of every shot but the first, rising.
            gap: for how many frames without a box they are followed.

        Yields:
            uint8 [H, W] of 0 and 255: all 0 before a shot's first box, while the person is away for more
            than `gap` frames, and where the model finds nothing. In a frame with a box, connected
            parts that don't touch the box, grown by LEAK_MARGIN on each side, are left out.

        Raises:
            UserError: the model cannot be loaded, or its config does not fit it.
            ValueError: frames and boxes differ in number.
        """
        session = None
        seen = any(box is not None for box in boxes)
        every = getattr(self._model.config, "prompt_every", PROMPT_EVERY) if seen else PROMPT_EVERY
        for number, (frame, box, step) in enumerate(
            zip(frames, boxes, plan(boxes, cuts, every, gap), strict=True)
        ):
            if step == "empty":
                yield np.zeros(frame.shape[:2], np.uint8)
                continue
            if step == "start":
                session = _new_session(self._device, self.dtype)
            if step in ("start", "prompt"):
                assert box is not None
                _prompt(session, number, box, frame.shape[:2], self._model.config.image_size)
            pixels = to_pixels(torch.tensor(frame[None], device=self._device), self._model.config.image_size)
            logits = self._followed(session, pixels, number)
            _forget(session, number, self._model.config)
            mask = _enlarged(logits, frame.shape[:2])
            yield mask if box is None or len(box) == 2 else without_leaks(mask, box)

    def _followed(self, session: Any, pixels: torch.Tensor, number: int) -> torch.Tensor:
        try:
            return self._model(inference_session=session, frame=pixels, frame_idx=number).pred_masks
        except CONFIG_ERRORS as error:
            if isinstance(error, torch.OutOfMemoryError) or "memory" in str(error):
                raise
            # Settings of which each is possible, such as the size of a feature map, and which fit no weights.
            raise unusable(self.model, "has a config.json whose settings don't fit together") from error

    @cached_property
    def _device(self) -> str:
        return pick_device(self.device)

    @cached_property
    def _model(self) -> Any:
        return load_model(self.model).to(self._device, self.dtype)


def plan(
    boxes: Sequence[Sequence[float] | None],
    cuts: Sequence[int] = (),
    every: int = PROMPT_EVERY,
    gap: int = LONGEST_GAP,
) -> list[Step]:
    """What is done with every frame, from what is known of all boxes; arguments as `Segmenter.masks`.

    "start": forget everything, then prompt (the first box of a shot). "prompt": give the box, after frames
    without one or `every` frames after the last prompt. "follow": by memory. "empty": an empty mask,
    without looking.
    """
    steps: list[Step] = []
    for start, stop in pairwise((0, *cuts, len(boxes))):
        prompted: int | None = None
        for present, run in groupby(range(start, stop), lambda number: boxes[number] is not None):
            numbers = list(run)
            if not present:
                bridged = prompted is not None and len(numbers) <= gap
                steps += ["follow" if bridged else "empty"] * len(numbers)
                continue
            for number in numbers:
                due = number == numbers[0] or prompted is None or number - prompted >= every
                steps.append("follow" if not due else "start" if prompted is None else "prompt")
                prompted = number if due else prompted
    return steps


def to_pixels(frames: torch.Tensor, size: int) -> torch.Tensor:
    """Frames uint8 [N, H, W, 3] as the model takes them: float32 [N, 3, size, size], stretched, normalised."""
    pixels = frames.permute(0, 3, 1, 2).float() / 255
    pixels = functional.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
    mean, deviation = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (_MEAN, _DEVIATION))
    return (pixels - mean) / deviation


def without_leaks(mask: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """A mask uint8 [H, W] of 0 and 255 without the connected parts (8 neighbours) that don't touch the box
    (x0, y0, x1, y1 in pixels), grown by LEAK_MARGIN of its size on each side."""
    count, parts = cv2.connectedComponents(mask)
    dx, dy = margins(box, LEAK_MARGIN)
    x0, y0, x1, y1 = (max(0, round(side)) for side in (box[0] - dx, box[1] - dy, box[2] + dx, box[3] + dy))
    levels = np.zeros(count, np.uint8)
    levels[parts[y0:y1, x0:x1]] = 255
    levels[0] = 0  # what lies outside all parts
    return levels[parts]


def _new_session(device: str, dtype: torch.dtype) -> Any:
    from transformers import Sam2VideoInferenceSession

    return Sam2VideoInferenceSession(
        inference_device=device, inference_state_device=device, video_storage_device=device, dtype=dtype
    )


def _prompt(session: Any, number: int, box: Sequence[float], shape: Sequence[int], size: int) -> None:
    height, width = shape
    points = torch.tensor(box, dtype=torch.float32).reshape(-1, 2) * size / torch.tensor([width, height])
    inputs = {
        "point_coords": points.clamp(0, size)[None, None],
        "point_labels": torch.tensor([[_BOX_CORNERS if len(points) == 2 else _INSIDE]], dtype=torch.int32),
    }
    session.add_point_inputs(session.obj_id_to_idx(_PERSON), number, inputs)
    session.obj_with_new_inputs = [_PERSON]


def _forget(session: Any, number: int, config: Any) -> None:
    """Drops what no later frame can ask for: the session itself would keep every frame and its masks."""
    person = session.obj_id_to_idx(_PERSON)
    for kept in (session.processed_frames, session.point_inputs_per_obj[person]):
        kept.clear()
    session.frames_tracked_per_obj[person].clear()
    prompted, followed = session.output_dict_per_obj[person].values()
    for output in (prompted.get(number), followed.get(number)):
        if output:
            del output["pred_masks"], output["high_res_masks"]
    for old in sorted(prompted)[:-KEPT_PROMPTS]:
        del prompted[old]
    reach = max(config.num_maskmem, config.max_object_pointers_in_encoder) - 1
    for old in [other for other in followed if other <= number - reach]:
        del followed[old]


def _enlarged(logits: torch.Tensor, shape: Sequence[int]) -> np.ndarray:
    """Logits [1, 1, h, w] as a mask uint8 [H, W] of 0 and 255 of the given shape."""
    scaled = functional.interpolate(logits.float(), size=tuple(shape), mode="bilinear")[0, 0]
    return (scaled > 0).cpu().numpy().astype(np.uint8) * 255
