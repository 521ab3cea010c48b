"""Masks on disk: without loss, with their times, in any form that is read."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import needs
import numpy as np
import pytest
from clip_files import make_clip
from video_files import RISING, names, times

from anycharv_core.errors import UserError
from anycharv_core.media.video_write import read_gray, write_masks


@pytest.mark.parametrize("name", ["masks.mkv", "masks"])
@pytest.mark.parametrize("size", [(48, 64), (37, 53), (1, 1)])
def test_masks_are_bit_equal(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    masks = [rng.integers(0, 256, size, np.uint8) for _ in range(12)]
    for _ in range(2):
        write_masks(tmp_path / name, iter(masks))
        assert all(np.array_equal(a, b) for a, b in zip(read_gray(tmp_path / name), masks, strict=True))
    assert names(tmp_path) == [name]


def test_mask_times_are_kept_to_the_millisecond(tmp_path: Path) -> None:
    stamps = [pts * 1001 for pts in RISING]
    masks = [np.full((8, 8), index, np.uint8) for index in range(len(RISING))]
    write_masks(tmp_path / "a.mkv", masks, stamps, Fraction(1, 30000))
    for got, pts in zip(times(tmp_path / "a.mkv"), stamps, strict=True):
        assert abs(got - Fraction(pts, 30000)) <= Fraction(1, 2000)
    with pytest.raises(ValueError, match=r"shorter"):
        write_masks(tmp_path / "a.mkv", masks, stamps[:-1], Fraction(1, 30000))


@pytest.mark.parametrize("name", ["masks.mkv", "masks"])
def test_an_interrupted_mask_write_leaves_the_old_masks(tmp_path: Path, name: str) -> None:
    old = [np.full((8, 8), 7, np.uint8)] * 3
    write_masks(tmp_path / name, old)

    def interrupted() -> Iterator[np.ndarray]:
        yield np.zeros((8, 8), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_masks(tmp_path / name, interrupted())
    assert [mask[0, 0] for mask in read_gray(tmp_path / name)] == [7, 7, 7]
    with pytest.raises(UserError, match=r"No masks came"):
        write_masks(tmp_path / name, [])
    with pytest.raises(ValueError, match=r"of one size"):
        write_masks(tmp_path / name, [np.zeros((8, 8), np.uint8), np.zeros((8, 9), np.uint8)])
    assert names(tmp_path) == [name] and len(list(read_gray(tmp_path / name))) == 3


def test_a_folder_with_other_things_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"dear")
    with pytest.raises(UserError, match=r"also holds photo\.jpg"):
        write_masks(tmp_path, [np.zeros((4, 4), np.uint8)])
    with pytest.raises(UserError, match=r"neither a .mkv file nor a folder"):
        write_masks(tmp_path / "a.mp4", [np.zeros((4, 4), np.uint8)])
    assert (tmp_path / "photo.jpg").read_bytes() == b"dear"


def test_any_kind_of_mask_image_is_read(tmp_path: Path) -> None:
    image = needs.installed("pillow", module="PIL.Image")
    mask = np.arange(0, 256, dtype=np.uint8).reshape(8, 32)
    gray = image.fromarray(mask)
    for mode in ("L", "RGB", "RGBA", "LA", "P"):
        gray.convert(mode).save(tmp_path / f"{mode} 100%d.png")
        (got,) = read_gray(tmp_path / f"{mode} 100%d.png")
        assert np.array_equal(got, mask), mode
    gray.point(lambda value: 255 * (value > 99)).convert("1").save(tmp_path / "1.png")
    assert np.array_equal(next(read_gray(tmp_path / "1.png")), 255 * (mask > 99))
    image.fromarray(mask.astype(np.uint16) * 257).save(tmp_path / "16.png")
    assert np.array_equal(next(read_gray(tmp_path / "16.png")), mask)


def test_a_coloured_mask_video_becomes_full_range_luma(tmp_path: Path) -> None:
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:, 32:] = 255
    clip = make_clip(tmp_path / "a.mp4", [frame] * 2)
    for mask in read_gray(clip):
        assert mask[:, :30].max() <= 1 and mask[:, 34:].min() >= 254


def test_folders_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    image = needs.installed("pillow", module="PIL.Image")
    for index in (0, 2, 10, 1):
        image.fromarray(np.full((4, 4), index, np.uint8)).save(tmp_path / f"m{index}.png")
    assert [mask[0, 0] for mask in read_gray(tmp_path)] == [0, 1, 2, 10]
    image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "m11.png")
    with pytest.raises(UserError, match=r"m11.png is 5x4 but the first PNG in its folder is 4x4"):
        list(read_gray(tmp_path))


def test_colour_profiles_and_exif_in_masks_do_no_harm(tmp_path: Path) -> None:
    image = needs.installed("pillow", module="PIL.Image")
    profiles = needs.installed("pillow", module="PIL.ImageCms")
    mask = np.zeros((8, 16), np.uint8)
    mask[:, :4] = 255
    profile = profiles.ImageCmsProfile(profiles.createProfile("sRGB")).tobytes()
    turned = image.Exif()
    turned[0x0112] = 6
    image.fromarray(mask).save(tmp_path / "profile.png", icc_profile=profile)
    image.fromarray(mask).save(tmp_path / "turned.png", exif=turned.tobytes())
    for _ in range(20):
        (plain,), (upright,) = (list(read_gray(tmp_path / name)) for name in ("profile.png", "turned.png"))
        assert np.array_equal(plain, mask) and np.array_equal(upright, np.rot90(mask, -1))
        gc.collect()
