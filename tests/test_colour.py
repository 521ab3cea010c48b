"""Colours: matrices, ranges, depths and tags, read and written."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from pathlib import Path

import av
import numpy as np
import pytest
from clip_files import write_yuv
from video_files import pictures

from anycharv_core.errors import UserError
from anycharv_core.media.chroma_key import key_onto
from anycharv_core.media.colour import (
    HLG,
    PQ,
    Colours,
    check_transfer,
    eight_bits,
    narrowed,
    to_rgb,
    to_yuv,
    widened,
)
from anycharv_core.media.imaging import resize
from anycharv_core.media.masks import composite
from anycharv_core.media.video_read import Video, probe, read_frames
from anycharv_core.media.video_write import FFV1, H264, VideoWriter

# Kr and Kb of ITU-T H.273, table 4.
LUMA = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}
PATCHES = (
    np.array([[0, 0, 0], [255, 255, 255], [200, 40, 90], [30, 180, 60], [40, 60, 220], [128, 128, 128]]) / 255
)
SIDE = 16


def yuv(matrix: int, full: bool, bits: int) -> np.ndarray:
    """Luma and chroma [3, H, W] of `PATCHES` side by side, straight from the definition."""
    red, blue = LUMA[matrix]
    luma = PATCHES @ np.array([red, 1 - red - blue, blue])
    planes = np.stack([luma, (PATCHES[:, 2] - luma) / (2 - 2 * blue), (PATCHES[:, 0] - luma) / (2 - 2 * red)])
    unit, most, middle = 2 ** (bits - 8), 2**bits - 1, 2 ** (bits - 1)
    steps = (most, most, most) if full else (219 * unit, 224 * unit, 224 * unit)
    black = (0 if full else 16 * unit, middle, middle)
    levels = np.rint(planes * np.array(steps)[:, None] + np.array(black)[:, None]).clip(0, most)
    return np.repeat(np.repeat(levels[:, None], SIDE, 1), SIDE, 2)


def expected(top: int) -> np.ndarray:
    return np.repeat(PATCHES * top, SIDE, 0)[None]


def copy(source: Path, target: Path, codec: str = H264, crf: int = 17) -> VideoWriter:
    info = probe(source)
    with VideoWriter(
        target,
        info.width,
        info.height,
        info.timestamps,
        info.time_base,
        crf=crf,
        codec=codec,
        colours=info.colours,
        depth=info.depth,
    ) as writer:
        for frame in read_frames(source, deep=True):
            writer.write(frame)
    return writer


@pytest.mark.parametrize(("matrix", "full", "bits"), list(product(LUMA, (False, True), (8, 10, 12))))
def test_the_tagged_matrix_and_range_are_used_both_ways(
    tmp_path: Path, matrix: int, full: bool, bits: int
) -> None:
    clip = write_yuv(tmp_path / "a.mkv", yuv(matrix, full, bits), bits, (matrix, 1, 1), full)
    info = probe(clip)
    assert info.depth == bits and info.colours == Colours(matrix, full, 1, 1)
    assert np.abs(next(read_frames(clip)) - expected(255)).max() <= 2
    deep = next(read_frames(clip, deep=True))
    assert deep.dtype == (np.uint8 if bits == 8 else np.uint16)
    if bits > 8:
        assert np.abs(deep / 65535 * (2**bits - 1) - expected(2**bits - 1)).max() < 1.5

    copy(clip, tmp_path / "b.mp4", crf=1)
    after = probe(tmp_path / "b.mp4")
    assert after.colours == info.colours and after.depth == min(bits, 10)
    # The middles of the patches: where two of them meet, chroma of half the resolution mixes their colours.
    middles = np.s_[:, SIDE // 2 :: SIDE]
    made, given = (next(read_frames(path))[middles].astype(int) for path in (tmp_path / "b.mp4", clip))
    assert np.abs(made - given).max() <= 2


@pytest.mark.parametrize(("bits", "full"), list(product((10, 12, 16), (False, True))))
def test_planes_come_back_from_rgb(bits: int, full: bool) -> None:
    rgb = np.random.default_rng(0).integers(0, 2**bits, (64, 64, 3)).astype(np.uint16)
    planes = to_yuv(rgb, bits, 1, full)
    again = to_yuv(to_rgb(planes, bits, 1, full), bits, 1, full).astype(int)
    assert np.abs(again - planes).max() <= (1 if full else 0) or np.mean(again != planes) < 0.001


@pytest.mark.parametrize("bits", [10, 12])
def test_levels_are_kept_and_slopes_between_them_get_no_steps(bits: int) -> None:
    levels = np.arange(2**bits, dtype=np.uint16).reshape(1, 1, -1).repeat(8, 0).repeat(8, 1)
    assert np.array_equal(narrowed(widened(levels, bits), bits), levels)
    between = np.full((8, 8, 3), 20_000, np.uint16)
    # A 64th for the number of thresholds, and half of what 16 bits make of a level.
    tolerance = 1 / 64 + 0.5 * 2**bits / 65536
    assert abs(narrowed(between, bits).mean() - 20_000 * (2**bits - 1) / 65535) < tolerance
    every = np.arange(256, dtype=np.uint8)
    assert np.array_equal(eight_bits(widened(every)), every)


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_a_lossless_file_gives_back_every_bit(tmp_path: Path, bits: int) -> None:
    planes = np.random.default_rng(0).integers(0, 2**bits, (3, 41, 53))
    clip = write_yuv(tmp_path / "a.mkv", planes, bits, (6, 6, 6), True)
    writer = copy(clip, tmp_path / "b.mkv", FFV1)
    before, after = (list(read_frames(path, deep=True)) for path in (clip, tmp_path / "b.mkv"))
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(before, after, strict=True))
    info = probe(tmp_path / "b.mkv")
    assert (info.depth, info.colours) == (bits, Colours(0, None, 6, 6))
    assert writer.written["lossless"] is True and writer.written["depth"] == bits


def test_what_a_source_leaves_open_is_bt709_in_limited_range(tmp_path: Path) -> None:
    for name, tags, full, written in (
        ("none", (2, 2, 2), None, Colours(1, False, 1, 1)),
        ("range", (2, 2, 2), True, Colours(1, True, 1, 1)),
        ("matrix", (5, 2, 2), None, Colours(5, False, None, None)),
        ("rest", (2, 9, 14), None, Colours(1, False, 9, 14)),
    ):
        clip = write_yuv(tmp_path / f"{name}.mkv", yuv(1, bool(full), 8), 8, tags, full)
        copy(clip, tmp_path / f"{name}.mp4")
        assert probe(tmp_path / f"{name}.mp4").colours == written, name


def test_ten_bits_survive_where_eight_would_show(tmp_path: Path) -> None:
    # A slope so gentle that 8 bits make 16 pixels of every step.
    luma = 400 + np.arange(256)[None, :].repeat(64, 0) // 4
    clip = write_yuv(tmp_path / "a.mkv", np.stack([luma, 0 * luma + 512, 0 * luma + 512]), 10, (1, 1, 1), False)
    copy(clip, tmp_path / "b.mp4", crf=1)
    made, given = (next(read_frames(path, deep=True)) for path in (tmp_path / "b.mp4", clip))
    assert len(np.unique(given)) >= 64 and np.abs(made.astype(int) - given).max() <= 2 * 65535 // 1023
    assert len(np.unique(next(read_frames(clip)))) <= 20


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_hdr_is_carried_by_a_copy(tmp_path: Path, transfer: int) -> None:
    clip = write_yuv(tmp_path / "a.mkv", yuv(9, False, 10), 10, (9, 9, transfer), False)
    copy(clip, tmp_path / "b.mp4")
    assert probe(tmp_path / "b.mp4").colours == Colours(9, False, 9, transfer)


def test_networks_refuse_pq_and_warn_of_hlg(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match=r"a.mkv is HDR .PQ.*convert it to SDR first") as caught:
        check_transfer("a.mkv", Colours(9, False, 9, PQ))
    assert "\n" not in str(caught.value)
    check_transfer("a.mkv", Colours(9, False, 9, 14))
    assert not caplog.text
    check_transfer("a.mkv", Colours(9, False, 9, HLG))
    assert "a.mkv is HDR (HLG): its levels are kept" in caplog.text


@pytest.mark.parametrize(
    ("codec", "pix_fmt"), [("ffv1", "gbrp10le"), ("ffv1", "gray10le"), ("ffv1", "yuv422p10le")]
)
def test_deep_pictures_of_every_kind_are_read(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", 25, width=64, height=48, pix_fmt=pix_fmt)
        for frame in pictures(3, 48, 64):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    assert probe(tmp_path / "a.mkv").depth == 10
    for got, frame in zip(Video(tmp_path / "a.mkv").frames(deep=True), pictures(3, 48, 64), strict=True):
        assert got.dtype == np.uint16 and np.abs(eight_bits(got).astype(int) - frame).max() <= 3


def test_a_matrix_that_is_not_known_is_one_sentence(tmp_path: Path) -> None:
    clip = write_yuv(tmp_path / "a.mkv", yuv(1, False, 8), 8, (14, 9, 14), False)
    with pytest.raises(UserError, match=r"a.mkv has colours made by a matrix that is not known"):
        next(read_frames(clip))


def test_times_finer_than_matroska_keeps_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="do not rise by milliseconds"):
        VideoWriter(tmp_path / "a.mkv", 64, 48, [0, 1, 2], Fraction(1, 5000), codec=FFV1)


def test_what_is_pasted_takes_the_depth_of_what_it_is_pasted_into() -> None:
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 65536, (32, 48, 3)).astype(np.uint16)
    made = rng.integers(0, 256, (32, 48, 3), np.uint8)
    weights = np.zeros((32, 48), np.float32)
    weights[8:16] = 1
    for drawn in (made, widened(made)):
        pasted = composite(drawn, scene, weights)
        assert np.array_equal(pasted[:8], scene[:8]) and np.array_equal(pasted[8:16], widened(made)[8:16])
    made[:16] = (0, 255, 0)
    for drawn in (made, widened(made)):
        keyed = key_onto(drawn, scene, (0, 255, 0))
        assert np.array_equal(keyed[:16], scene[:16]) and keyed.dtype == np.uint16
        assert np.abs(eight_bits(keyed).astype(int) - key_onto(made, eight_bits(scene), (0, 255, 0))).max() <= 1
    halved = resize(widened(made), (24, 16))
    assert halved.dtype == np.uint16 and np.abs(eight_bits(halved).astype(int) - resize(made, (24, 16))).max() <= 2
