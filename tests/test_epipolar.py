"""Cameras, epipolar lines, and the attention off them (AnimateAnywhere, equations 3 and 4)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anycharv_core.errors import UserError
from anycharv_core.media.cameras import Cameras, fundamental
from anycharv_core.models.epipolar import (
    background_tokens,
    epipolar_mask,
    seen_through,
    unwanted_attention,
)
from anycharv_core.models.slots import layout
from anycharv_core.puppets.travel import JOURNEYS, sample_travel
from training.data.camera_files import read_cameras

SIZE = 64
GRID, CELL = (8, 8), (8.0, 8.0)
BAND = 0.5


def moving(frames: int = 4, seed: int = 0, turning: bool = True) -> Cameras:
    """Cameras that go, roll, turn and zoom at random."""
    rng = np.random.default_rng(seed)
    K = np.repeat(np.array([(80.0, 0, 32), (0, 80, 30), (0, 0, 1)])[None], frames, 0)
    K[:, (0, 1), (0, 1)] *= rng.uniform(0.8, 1.2, (frames, 1))
    turns = [np.linalg.qr(np.eye(3) + 0.1 * turning * rng.normal(size=(3, 3)))[0] for _ in range(frames)]
    R = np.stack([turn * np.sign(np.diag(turn)) for turn in turns])
    return Cameras(K, R, rng.uniform(-1, 1, (frames, 3)))


def see(cameras: Cameras, frame: int, points: np.ndarray) -> np.ndarray:
    """World points [N, 3] in pixels [N, 2]."""
    seen = (points @ cameras.R[frame].T + cameras.T[frame]) @ cameras.K[frame].T
    return seen[:, :2] / seen[:, 2:]


def matches(cameras: Cameras, i: int, j: int) -> tuple[np.ndarray, np.ndarray]:
    points = np.random.default_rng(1).uniform((-3, -3, 6), (3, 3, 50), (200, 3))
    return see(cameras, i, points), see(cameras, j, points)


def one(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points, np.ones((len(points), 1))], axis=1)


def distances(F: np.ndarray, u: np.ndarray, p: np.ndarray) -> np.ndarray:
    lines = one(u) @ F.T
    return np.abs((lines * one(p)).sum(1)) / np.hypot(*lines[:, :2].T)


def masks(cameras: Cameras, i: int, j: int, grid=GRID, cell=CELL) -> torch.Tensor:
    """M from all tokens of frame i to frame j."""
    cells = grid[0] * grid[1]
    slots = [[n] for n in range(len(cameras))]
    queries = torch.arange(cells) + i * cells
    return epipolar_mask(torch.from_numpy(fundamental(cameras)), queries, slots, grid, cell, BAND)[:, j]


def test_what_is_seen_twice_lies_on_its_line() -> None:
    cameras = moving()
    F = fundamental(cameras)
    for i in range(4):
        for j in range(4):
            if i != j:
                assert distances(F[i, j], *matches(cameras, i, j)).max() <= 1e-9
                a, b = F[i, j], F[j, i].T
                np.testing.assert_allclose(
                    a / np.linalg.norm(a), b / np.linalg.norm(b) * np.sign((a * b).sum()), atol=1e-9
                )


def test_the_unit_of_length_does_not_matter() -> None:
    cameras = moving()
    assert torch.equal(masks(cameras, 0, 2), masks(replace(cameras, T=10 * cameras.T), 0, 2))
    assert not masks(cameras, 0, 2).all() and masks(cameras, 0, 2).any()


def test_a_camera_that_has_not_moved_says_nothing() -> None:
    cameras = moving()
    assert masks(cameras, 1, 1).all()
    still = replace(cameras, T=np.zeros((4, 3)))  # turns, rolls and zooms in one place
    rotated = replace(still, T=-(still.R @ np.array((1.0, 2, 3))[:, None])[..., 0])
    for resting in (still, rotated):
        assert np.isfinite(fundamental(resting)).all()
        assert masks(resting, 0, 1).all() and masks(resting, 3, 0).all()
    almost = moving(turning=False)
    T = almost.T.copy()
    T[1] = T[0] + 1e-6
    assert masks(replace(almost, T=T), 0, 1).all() and not masks(replace(almost, T=T), 0, 2).all()


def test_cameras_follow_their_frames() -> None:
    cameras = moving()
    u, p = matches(cameras, 0, 2)
    changes = {
        "crop": (cameras.cropped(7, 3), lambda x: x - (7, 3)),
        "scale": (cameras.scaled(0.5, 2), lambda x: x * (0.5, 2)),
        "flip": (cameras.mirrored(SIZE), lambda x: x * (-1, 1) + (SIZE, 0)),
        "stride": (cameras.at(slice(0, None, 2)), lambda x: x),
    }
    for name, (changed, place) in changes.items():
        np.testing.assert_allclose(np.linalg.det(changed.R), 1, err_msg=name)
        F = fundamental(changed)[0, 1 if name == "stride" else 2]
        assert distances(F, place(u), place(p)).max() <= 1e-9, name


def test_a_crop_has_the_masks_of_the_same_pixels() -> None:
    cameras = moving()
    whole = masks(cameras, 0, 2).reshape(8, 8, 8, 8)
    cut = masks(cameras.cropped(16, 8), 0, 2, grid=(4, 4)).reshape(4, 4, 4, 4)
    assert torch.equal(cut, whole[1:5, 2:6, 1:5, 2:6])
    assert torch.equal(masks(cameras.scaled(2, 2), 0, 2, cell=(16.0, 16.0)), whole.reshape(64, 64))
    flipped = masks(cameras.mirrored(SIZE), 0, 2).reshape(8, 8, 8, 8)
    assert torch.equal(flipped.flip(1, 3), whole)


@pytest.mark.parametrize("kind", [kind for kind in JOURNEYS if kind not in ("approach", "static")])
def test_every_true_match_of_a_journey_is_in_the_mask(kind: str) -> None:
    """From the centres of background tokens to where their plane then is, between all slots."""
    frames = 16
    truth = sample_travel(3, frames, SIZE, kind=kind).truth
    cameras, slots = truth.cameras, layout(frames).slots
    assert cameras is not None and truth.layers is not None and truth.depth is not None
    lines = torch.from_numpy(fundamental(cameras))
    near = epipolar_mask(lines, torch.arange(128), [list(slot) for slot in slots], GRID, CELL, BAND)
    background = background_tokens(torch.from_numpy(truth.mask > 0), slots, GRID)
    assert 20 < background.sum() < 128
    found = 0
    for query in background.nonzero().flatten().tolist():
        slot, place = divmod(query, 64)
        row, column = divmod(place, 8)
        u = np.array((column + 0.5, row + 0.5)) * 8
        for a in slots[slot]:
            # The pixel whose corner is the centre; its plane's depth is what is seen there.
            z = float(truth.depth[a, int(u[1]), int(u[0])])
            point = cameras.R[a].T @ (np.linalg.inv(cameras.K[a]) @ (*u, 1.0) * z - cameras.T[a])
            for j, others in enumerate(slots):
                for b in others:
                    x, y = see(cameras, b, point[None])[0]
                    if 0 <= x < SIZE and 0 <= y < SIZE:
                        assert near[query, j, int(y // 8) * 8 + int(x // 8)]
                        found += 1
    assert found > 1000
    if kind != "dolly":
        assert near.float().mean() < 0.9


def test_few_frames_stand_for_a_slot() -> None:
    slots = layout(17).slots
    assert seen_through(slots) == [[0], [1, 5, 8], [9, 13, 16]]


def test_a_background_token_never_sees_the_person() -> None:
    person = torch.zeros(8, SIZE, SIZE, dtype=torch.bool)
    person[5, 17, 30] = True
    found = background_tokens(person, [range(8)], GRID)
    assert found.sum() == 63 and not found[2 * 8 + 3]


HEADS, TOKENS = 2, 64


def bumps(offset: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of one query to two slots: a bump `offset` rows off a horizontal line; and the line's mask."""
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    near = (rows == 3).flatten().expand(1, 1, 2, TOKENS)
    bump = (-((rows - 3 - offset) ** 2 + (columns - 4) ** 2) / (2 * 3.0**2)).flatten().softmax(0)
    return bump.repeat(2).div(2).expand(1, HEADS, 1, 2 * TOKENS), near


def test_loss_of_attention_to_one_token() -> None:
    _, near = bumps(0)
    right, wrong = torch.zeros(2, 1, HEADS, 1, 2 * TOKENS)
    right[..., 3 * 8 + 4] = 1
    wrong[..., 5 * 8 + 4] = 1
    for adaptive, expected in ((False, 1.0), (True, 0.0)):
        assert (unwanted_attention(right, near, 2, adaptive=adaptive) == 0).all()
        assert (unwanted_attention(wrong, near, 2, adaptive=adaptive) == expected).all()


def test_even_attention_is_left_alone() -> None:
    _, near = bumps(0)
    even = torch.full((1, HEADS, 1, 2 * TOKENS), 1 / (2 * TOKENS))
    torch.testing.assert_close(
        unwanted_attention(even, near, 2, adaptive=False), torch.full((1, HEADS, 1), 1 - 1 / 8)
    )
    assert (unwanted_attention(even, near, 2) == 0).all()


def test_outside_grows_with_the_distance_and_adaptive_falls() -> None:
    losses = {
        adaptive: [float(unwanted_attention(*bumps(offset), 2, adaptive=adaptive).mean()) for offset in range(5)]
        for adaptive in (False, True)
    }
    assert losses[False] == sorted(losses[False]) and losses[False][0] < losses[False][-1]
    assert losses[True] == sorted(losses[True], reverse=True) and losses[True][0] > losses[True][-1] > 0


def test_no_gradient_goes_through_the_choice() -> None:
    scores = torch.randn(1, HEADS, 1, 2 * TOKENS, generator=torch.Generator().manual_seed(0)).requires_grad_()
    _, near = bumps(0)
    attention = scores.softmax(-1)
    attention.retain_grad()
    unwanted_attention(attention, near, 2).sum().backward()
    # Each value counts with 1 or not at all.
    assert attention.grad is not None and set(attention.grad.unique().tolist()) == {0.0, 1.0}
    values = attention.detach().unflatten(-1, (2, -1))
    chosen = (values < values.kthvalue(19, dim=-1, keepdim=True).values) & ~near[:, None]
    assert torch.equal(attention.grad.unflatten(-1, (2, -1)) > 0, chosen)


def test_parts_of_the_queries_make_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    attention = torch.randn(1, HEADS, 6, 2 * TOKENS, generator=generator).softmax(-1)
    near = torch.rand(1, 6, 2, TOKENS, generator=generator) < 0.3
    whole = unwanted_attention(attention, near, 2)
    for part in (slice(0, 3), slice(3, 6)):
        assert torch.equal(unwanted_attention(attention[:, :, part], near[:, part], 2), whole[:, :, part])


LINE = "{} 0.1 0.2 {} 0 0 {} {} 0.9 1.6"


def camera_file(folder: Path, scale: str = "") -> Path:
    path = folder / "video.txt"
    turns = [(np.sin(a / 2), np.cos(a / 2)) for a in (0.0, 0.3)]
    path.write_text("\n".join(LINE.format(t, 0.5 * t, *turn) + scale for t, turn in enumerate(turns)) + "\n")
    return path


def test_camera_files_of_both_kinds_are_read(tmp_path: Path) -> None:
    unreal = read_cameras(camera_file(tmp_path), (320, 180), "unreal")
    np.testing.assert_allclose(unreal.T, [(0.1, 0.2, 0), (0.1, 0.2, 0.5)])
    np.testing.assert_allclose(
        unreal.R[1], [(np.cos(0.3), -np.sin(0.3), 0), (np.sin(0.3), np.cos(0.3), 0), (0, 0, 1)], atol=1e-12
    )
    np.testing.assert_allclose(unreal.K[0], [(288, 0, 160), (0, 288, 90), (0, 0, 1)])
    pexels = read_cameras(camera_file(tmp_path, " 2.0"), (180, 320), "pexels")
    np.testing.assert_allclose(pexels.K[0, 0, 0], 1.6 * 320)
    for frame in range(2):  # camera to world: its centre stands in the file
        np.testing.assert_allclose(-pexels.R[frame].T @ pexels.T[frame], 2 * np.array((0.1, 0.2, 0.5 * frame)))
        np.testing.assert_allclose(pexels.R[frame], unreal.R[frame].T, atol=1e-12)


@pytest.mark.parametrize(
    "text", ("", "1 2 3\n", "a b c d e f g h i j\n", "0 0 0 0 0 0 0 1 nan 1\n", "0 0 0 0 0 0 0 0 1 1\n")
)
def test_other_files_are_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "video.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=r"video\.txt"):
        read_cameras(path, (320, 180), "pexels")
