"""Reading masks: from a video, a folder of PNGs or one image, of their brightness or their opacity."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from ..errors import UserError
from .decode import decoded_frames, open_input, size_text
from .pixels import oriented, rgb_of


def read_gray(path: Path | str) -> Iterator[np.ndarray]:
    """Yield masks as uint8 [H, W], 0 to 255, from a video, a folder of PNGs or one image.

    Gray sources come back bit for bit (16-bit ones scaled to 8), coloured ones as the BT.601 luma of
    their RGB. PNGs are taken in the order of the numbers in their names.

    Raises UserError as `probe` does, if a folder holds no PNGs, or if their sizes differ.
    """
    yield from _masks(path, _gray_frames)


def read_alpha(path: Path | str) -> Iterator[np.ndarray]:
    """Yield the alpha channel as uint8 [H, W], 0 (clear) to 255 (opaque), of what `read_gray` takes.

    8-bit alpha comes back bit for bit, deeper one scaled to 8. VP8 and VP9 are included.

    Raises UserError as `read_gray` does, or if there is no alpha channel.
    """
    yield from _masks(path, _alpha_frames)


def has_alpha(path: Path | str) -> bool:
    """Whether the first picture has an alpha channel that is not opaque everywhere.

    Raises UserError as `read_gray` does.
    """
    try:
        return bool((next(read_alpha(path)) < 255).any())
    except _NoAlphaError:
        return False


class _NoAlphaError(UserError):
    pass


def _masks(path: Path | str, read: Callable[[Path | str], Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
    folder = Path(path)
    if not folder.is_dir():
        yield from read(path)
        return
    images = numbered_pngs(folder)
    if not images:
        raise UserError(f"{path} holds no PNG files; give a folder of PNG masks or a mask video.")
    first: tuple[int, ...] | None = None
    for image in images:
        for mask in read(image):
            first = first or mask.shape
            if mask.shape != first:
                raise UserError(
                    f"{image} is {size_text(mask.shape)} but the first PNG in its folder is {size_text(first)}; "
                    "give masks of one size."
                )
            yield mask


def numbered_pngs(folder: Path) -> list[Path]:
    """The PNG files of a folder in the order of the numbers in their names."""
    files = (file for file in folder.iterdir() if file.suffix.lower() == ".png" and file.is_file())
    return sorted(files, key=lambda file: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", file.name)])


def _gray_frames(path: Path | str) -> Iterator[np.ndarray]:
    reformatter = VideoReformatter()
    with open_input(path) as container:
        for frame, matrix in decoded_frames(path, container):
            if re.fullmatch(r"gray(\d+[lb]e)?", frame.format.name):
                gray = _to_8_bits(frame.to_ndarray(), frame.format.components[0].bits)
            else:
                # Integer weights that add up to one, so that gray stays exactly what it is.
                weighted = rgb_of(path, frame, reformatter) @ np.array([19595, 38470, 7471], np.uint32)
                gray = ((weighted + 0x8000) >> 16).astype(np.uint8)
            yield oriented(gray, matrix)


def _alpha_frames(path: Path | str) -> Iterator[np.ndarray]:
    reformatter = VideoReformatter()
    with open_input(path) as container:
        for frame, matrix in decoded_frames(path, container, alpha=True):
            # A palette has its alpha in the colours, not in the picture.
            picture = reformatter.reformat(frame, format="rgba") if frame.format.name == "pal8" else frame
            channels = picture.format.components
            if not channels[-1].is_alpha or channels[-1].bits > 16:
                raise _NoAlphaError(
                    f"{path} has no alpha channel ({frame.format.name}); give a video with transparency "
                    "(ProRes 4444, QuickTime Animation, FFV1 or VP9), PNGs with transparency, or masks in black "
                    "and white."
                )
            yield oriented(_to_8_bits(_alpha(picture), channels[-1].bits), matrix)


def _alpha(frame: av.VideoFrame) -> np.ndarray:
    """The alpha channel, uint8 or uint16 [H, W], in any of FFmpeg's whole-number layouts."""
    kind = frame.format
    channel = kind.components[-1]
    plane = frame.planes[channel.plane]
    width = 1 if channel.bits == 8 else 2
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: frame.height]
    together = sum(other.plane == channel.plane for other in kind.components)
    samples = rows[:, : frame.width * together * width].reshape(frame.height, frame.width, together, width)
    # Names of interleaved layouts spell the order of their channels, such as argb.
    chosen = samples[:, :, kind.name.index("a") if together > 1 else 0]
    order = ">" if kind.is_big_endian else "<"
    return np.ascontiguousarray(chosen).view(f"{order}u{width}")[..., 0]


def _to_8_bits(gray: np.ndarray, bits: int) -> np.ndarray:
    top = 2**bits - 1
    return gray if bits == 8 else ((gray.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)
