"""Nodes that make masks, skeletons and references of what users have."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import pytest
import torch
from comfy_pack import PACK, animation, conditioned, core, execute, load


def test_box_mask_and_fallbacks() -> None:
    mask = torch.zeros(4, 40, 60)
    mask[1, 10:20, 20:30] = 1
    box = {"x": 20, "y": 10, "width": 10, "height": 10}
    image = torch.zeros(4, 40, 60, 3)
    settings = {"padding": 0.0, "smooth": 0, "min_size": 0}

    def made(region: Any, if_absent: str = "keep the frame", **more: Any) -> torch.Tensor:
        return execute("AnyCharVBoxMask", region=region, if_absent=if_absent, **settings | more)[0]

    kept = made(mask)
    assert kept[1, 6:24, 16:34].all() and kept.sum() == 18 * 18
    assert torch.equal(made(box, image=image), kept[1:2].expand(4, -1, -1))
    assert torch.equal(made([[], [box, box], [], []], image=image), kept)
    held = made(mask, "hold the last box")
    assert torch.equal(held, kept[1:2].expand(4, -1, -1))
    assert made(mask, "whole frame")[0].all()
    grown = made(mask, min_size=30)
    assert grown[1].sum() == 900


def test_the_first_frames_of_a_single_mask_are_the_mask() -> None:
    first_of = core("nodes.pictures").first_of
    for shape, shown in (((20, 30), (20, 30)), ((1, 20, 30), (1, 20, 30)), ((12, 20, 30), (8, 20, 30))):
        assert first_of(torch.zeros(shape), 8).shape == shown
        assert first_of(torch.zeros(shape), 0).shape == shape
    assert first_of(list(range(12)), 8) == list(range(8)) and first_of(["one"], 8) == ["one"]


def test_load_images_empty_mask_stands_for_none() -> None:
    _, net, vae, clip_vision = load()
    image = torch.rand(1, 90, 50, 3, generator=torch.Generator().manual_seed(0))
    settings = {"reference_net": net, "vae": vae, "clip_vision": clip_vision, "image": image}
    (plain,) = execute("AnyCharVReferenceEncode", **settings)
    for mask in (torch.ones(1, 64, 64), torch.zeros(1, 64, 64)):
        (masked,) = execute("AnyCharVReferenceEncode", **settings, mask=mask)
        assert plain.mask is masked.mask is None
    half = torch.ones(1, 64, 64)
    half[:, 32:] = 0
    with pytest.raises(core("anycharv_core.errors").UserError, match=r"64x64 .* 50x90"):
        execute("AnyCharVReferenceEncode", **settings, mask=half)


def test_masks_of_another_size_are_scaled(caplog: pytest.LogCaptureFixture) -> None:
    def larger(mask: torch.Tensor) -> torch.Tensor:
        return mask.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)

    parts = load()
    made = conditioned(*parts, frames=2)
    video = core("nodes.model").VIDEO
    with caplog.at_level(logging.INFO):
        scaled = conditioned(*parts, frames=2, mask=larger(made["mask"]))
        assert "mask is scaled from 128x128 to 64x64" in caplog.text
    assert torch.equal(*(each["positive"][0][1][video].scene for each in (made, scaled)))
    settings = {"generated": torch.rand(2, 64, 64, 3), "original": made["scene"], "feather": 3}
    results = [
        execute("AnyCharVComposite", **settings, mask=mask)[0] for mask in (made["mask"], larger(made["mask"]))
    ]
    assert torch.equal(*results)

    image = torch.rand(1, 90, 50, 3, generator=torch.Generator().manual_seed(0))
    half = torch.zeros(1, 90, 50)
    half[:, 20:40, 10:30] = 1
    encode = {"reference_net": parts[1], "vae": parts[2], "clip_vision": parts[3], "image": image}
    masks = [execute("AnyCharVReferenceEncode", **encode, mask=mask)[0].mask for mask in (half, larger(half))]
    assert ((masks[0] >= 128) == (masks[1] >= 128)).all()
    with pytest.raises(core("anycharv_core.errors").UserError, match="64x32"):
        execute("AnyCharVComposite", **settings, mask=torch.ones(1, 32, 64))


def test_skeletons_of_another_size_are_said_to_be_scaled(caplog: pytest.LogCaptureFixture) -> None:
    parts = load()
    for side, told in ((288, False), (128, True)):
        with caplog.at_level(logging.INFO):
            conditioned(*parts, frames=2, pose=torch.zeros(2, side, side, 3))
        assert told == ("pose is 128x128, where the model knows skeletons drawn at 288x288" in caplog.text)


def test_what_is_in_a_single_box_is_followed() -> None:
    _, scene, mask, *_ = execute("AnyCharVPuppetClip", seed=3, frames=20, size=96)
    rows, columns = (mask[0].any(dim=dim).nonzero() for dim in (1, 0))
    box = {"x": int(columns.min()), "y": int(rows.min()), "width": len(columns), "height": len(rows)}
    (found,) = execute("AnyCharVSegment", images=scene, boxes=box, model="embedded")
    both, either = ((found * mask).sum((1, 2)), (found + mask).clamp(max=1).sum((1, 2)))
    assert (both / either).min() > 0.6


def test_without_opencv_nodes_load_and_say_how_to_install_it() -> None:
    script = """
import sys
sys.modules["cv2"] = None
sys.path.insert(0, sys.argv[1])
import comfy_pack
try:
    comfy_pack.execute("AnyCharVPuppetClip", seed=3, frames=2, size=64)
except Exception as error:
    print(type(error).__name__, error)
"""
    command = [sys.executable, "-c", script, str(PACK / "tests/in_comfyui")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    line = f"install it with '{sys.executable} -m pip install opencv-python-headless' and start again."
    assert done.stdout.startswith("UserError OpenCV does not load") and done.stdout.rstrip().endswith(line)
    (told,) = [each for each in done.stderr.splitlines() if "OpenCV" in each]
    assert "AnyCharV: OpenCV does not load" in told and told.endswith(line)
    assert "Traceback" not in done.stderr and "IMPORT FAILED" not in done.stderr


def test_mask_augment_is_seeded_and_covers() -> None:
    mask = torch.zeros(2, 60, 60)
    mask[:, 20:40, 25:35] = 1
    (first,) = execute("AnyCharVMaskAugment", mask=mask, strength=1.0, seed=5)
    (again,) = execute("AnyCharVMaskAugment", mask=mask, strength=1.0, seed=5)
    (other,) = execute("AnyCharVMaskAugment", mask=mask, strength=1.0, seed=6)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert (first >= mask).all() and first.sum() > mask.sum()


def test_mask_augment_makes_blocks() -> None:
    mask = torch.zeros(1, 60, 60)
    mask[0, 20:40, 20:40] = torch.eye(20)
    (blocks,) = execute("AnyCharVMaskAugment", mask=mask, strength=1.0, seed=5, kind="blocks", blocks=10)
    (box,) = execute("AnyCharVMaskAugment", mask=mask, strength=1.0, seed=5, kind="blocks", blocks=1)
    expected = torch.zeros(1, 60, 60)
    for step in range(20, 40, 2):
        expected[0, step : step + 2, step : step + 2] = 1
    assert torch.equal(blocks, expected)
    assert box.sum() == 400 and box[0, 20:40, 20:40].all()
    blocked = {"mask": mask, "strength": 1.0, "seed": 5, "kind": "blocks"}
    (bars,) = execute("AnyCharVMaskAugment", **blocked, blocks=1, rows=10)
    assert torch.equal(bars, box)
    (halves,) = execute("AnyCharVMaskAugment", **blocked, blocks=2, rows=1)
    assert torch.equal(halves, box) and not torch.equal(blocks, box)


def test_boxes_are_sorted_by_person() -> None:
    def box(x: int, **more: Any) -> dict[str, Any]:
        return {"x": x, "y": 1, "width": 2, "height": 3, **more}

    def corners(x: int) -> tuple[int, ...]:
        return x, 1, x + 2, 4

    by_person = core("nodes.segment").boxes_by_person
    labelled = [[box(5, label="1"), box(9, label="3")], [box(8, label="3")], []]
    assert by_person(labelled, 3) == [[corners(5), None, None], [corners(9), corners(8), None]]
    # Detectors label everybody alike.
    detected = [[box(5, label="person"), box(9, label="person")], [box(8, label="person")]]
    assert by_person(detected, 2) == [[corners(5), corners(8)], [corners(9), None]]
    assert by_person([box(5), box(6)], 2) == [[corners(5), corners(6)]]
    assert by_person(box(5), 1) == [[corners(5)]]
    for wrong, words in (
        ([[], []], "no box in any frame"),
        ([[box(5)]], "has 2 frames but boxes has 1"),
        (None, "boxes is NoneType"),
        ([["left"], []], "A box must have x"),
    ):
        with pytest.raises(core("anycharv_core.errors").UserError, match=words):
            by_person(wrong, 2)


def test_pose_draw_takes_both_flavours() -> None:
    body = [v for i in range(18) for v in (10.0 + i, 20.0 + 2 * i, 1.0)]
    other = [v for i in range(18) for v in (60.0 + i, 20.0 + 2 * i, 0.9)]
    frame = {"canvas_width": 100, "canvas_height": 80}
    dwpose = {
        "pose_keypoints_2d": body,
        "face_keypoints_2d": None,
        "hand_left_keypoints_2d": None,
        "hand_right_keypoints_2d": None,
    }
    sdpose = {
        "pose_keypoints_2d": other,
        "face_keypoints_2d": [0.0] * 210,
        "hand_left_keypoints_2d": [0.0] * 63,
        "hand_right_keypoints_2d": [0.0] * 63,
        "foot_keypoints_2d": [0.0] * 18,
    }
    pose, drawing = core("anycharv_core.media.pose"), core("anycharv_core.media.pose_drawing")

    def draw_pose(frame: dict[str, Any]) -> Any:
        return next(drawing.draw_poses(pose.parse_poses(frame)))

    keypoints = [{**frame, "people": [dwpose, sdpose]}, {**frame, "people": []}]
    (drawn,) = execute("AnyCharVPoseDraw", keypoints=keypoints, width=0, height=0)
    assert torch.equal((drawn * 255).byte()[0], torch.from_numpy(draw_pose(keypoints[0])))
    assert not drawn[1].any()
    mask = torch.zeros(1, 80, 100)
    mask[:, :, 55:] = 1
    (alone,) = execute("AnyCharVPoseDraw", keypoints=keypoints, person=mask, width=0, height=0)
    expected = draw_pose({**frame, "people": [sdpose]})
    assert torch.equal((alone * 255).byte()[0], torch.from_numpy(expected))


def test_pose_retarget_moves_to_the_character() -> None:
    rescale = core("anycharv_core.preprocess.retarget").rescale
    task = animation()
    swap = core("anycharv_core.puppets.task").sample_swap(5, 4, 96)
    poses, character = swap.driving.poses(), task.truth.poses()
    keypoints, reference = list(poses.keypoints()), list(character.keypoints())
    for place, keep in (("the character's", True), ("the character's, stretched", False)):
        (moved,) = execute("AnyCharVPoseRetarget", keypoints=keypoints, reference=reference, place=place)
        assert moved == list(rescale(poses, character, keep).keypoints())
    (kept,) = execute("AnyCharVPoseRetarget", keypoints=keypoints, reference=reference)
    assert kept != moved


def test_odd_sides_are_said_before_the_run(caplog: pytest.LogCaptureFixture) -> None:
    parts = load()
    made = conditioned(*parts, frames=1)
    assert "even sides" not in caplog.text
    conditioned(*parts, frames=1, scene=made["scene"][:, :63], mask=made["mask"][:, :63])
    assert "The scene is 64x63, and so will be AnyCharV Composite's frames, but Save Video" in caplog.text
