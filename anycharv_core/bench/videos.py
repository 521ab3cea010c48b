"""Videos as files or folders of PNGs, and the pairs of two folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..media.frames import checked
from ..media.mask_read import numbered_pngs
from ..media.video_read import VIDEOS, read_frames


def video_frames(path: Path) -> Iterator[np.ndarray]:
    """Frames uint8 [H, W, 3] of a video, or of a folder's PNGs in the order of the numbers in their names.

    Raises UserError for what cannot be read, and for PNGs of several sizes.
    """
    if not path.is_dir():
        yield from read_frames(path)
        return
    pictures = numbered_pngs(path)
    if not pictures:
        raise UserError(f"{path} holds no PNG files; give a folder of frames, or a video.")
    yield from checked(f"video {path}", (next(read_frames(picture)) for picture in pictures), 3)


def named_videos(folder: Path) -> dict[str, Path]:
    """The videos of a folder by name without suffix: its video files, and its folders that hold PNGs.

    Raises UserError for no folder, no video, or two of one name.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give one that holds the videos.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in VIDEOS if path.is_file() else numbered_pngs(path):
            name = path.stem if path.is_file() else path.name
            if name in found:
                raise UserError(f"{folder} holds '{name}' twice, {found[name].name} and {path.name}; remove one.")
            found[name] = path
    if not found:
        raise UserError(f"{folder} holds no videos ({', '.join(VIDEOS)}) and no folders of PNGs; check the path.")
    return found


def pairs(real: Path, generated: Path) -> dict[str, tuple[Path, Path]]:
    """The videos of two folders by their common names. Raises UserError where one has no partner."""
    ours, theirs = named_videos(real), named_videos(generated)
    for name in sorted(ours.keys() ^ theirs.keys()):
        folder, other = (real, generated) if name in ours else (generated, real)
        raise UserError(
            f"'{name}' is in {folder} and not in {other}; give every video a partner of the same name."
        )
    return {name: (path, theirs[name]) for name, path in ours.items()}


def partner(folder: Path, name: str, suffixes: tuple[str, ...]) -> Path:
    """What `folder` holds for the video `name`: a file of one of `suffixes`, or a folder.

    Raises UserError where there is nothing.
    """
    for suffix in ("", *suffixes):
        path = folder / f"{name}{suffix}"
        if path.is_file() if suffix else path.is_dir():
            return path
    raise UserError(f"{folder} holds nothing for '{name}'; add {name} with one of {', '.join(suffixes)}.")
