"""The crowds and their truth; the nets trained on them: their contract, their training, and that they work."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path

import needs
import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn.functional import interpolate
from training_runs import own_precision as own_precision

from anycharv_core.media.pose import BOX, MIN_SCORE, PLACES, body_points
from anycharv_core.preprocess.dwpose import DWPose
from anycharv_core.preprocess.models import EMBEDDED, pose_files, segmenter_name
from anycharv_core.preprocess.segment import Segmenter, to_pixels
from anycharv_core.puppets.crowd import SITUATIONS, Crowd, sample_crowd
from training.preprocessors import detector, pose, segmenter
from training.preprocessors.data import Clips, pack
from training.preprocessors.train import Course, Drawn
from training.stop import Stop, Unfinished

FRAMES, SIZE = 12, 96
DETECTOR, POSE = pose_files(EMBEDDED)
SEGMENTER = Path(segmenter_name(EMBEDDED))


@pytest.fixture(scope="module", params=SITUATIONS)
def named(request) -> tuple[str, Crowd]:
    return request.param, sample_crowd(1, request.param, FRAMES, SIZE)


@pytest.fixture(scope="module")
def clips() -> Clips:
    crowds = [pack(sample_crowd(seed, name, 8, 128, "train")) for seed in (0, 1) for name in SITUATIONS]
    return Clips(*(np.stack(values) for values in zip(*crowds, strict=True)))


def test_a_crowds_truth_is_consistent(named):
    _, crowd = named
    people = crowd.masks.shape[1]
    assert crowd.frames.shape == (FRAMES, SIZE, SIZE, 3) and crowd.frames.dtype == np.uint8
    assert crowd.masks.shape == (FRAMES, people, SIZE, SIZE) and set(np.unique(crowd.masks)) <= {0, 255}
    assert ((crowd.masks > 0).sum(axis=1) <= 1).all(), "two people own one pixel"
    assert crowd.keypoints.shape == (FRAMES, people, 18, 3) and crowd.keypoints.dtype == np.float32
    x, y, score = np.moveaxis(crowd.keypoints, -1, 0)
    assert set(np.unique(score)) <= {0, 1}
    assert ((x >= 0) & (x < SIZE) & (y >= 0) & (y < SIZE)).all() and not x[score == 0].any()
    np.testing.assert_array_equal(crowd.present, crowd.masks.any((2, 3)))
    boxes = crowd.boxes.reshape(-1, 4)
    for mask, (x0, y0, x1, y1) in zip(crowd.masks.reshape(-1, SIZE, SIZE), boxes, strict=True):
        inside = mask[y0:y1, x0:x1] > 0
        assert inside.sum() == (mask > 0).sum()
        assert not inside.size or (inside[[0, -1]].any(1).all() and inside[:, [0, -1]].any(0).all())
    assert [len(people) for people in crowd.poses().people] == crowd.present.sum(1).tolist()


def test_points_in_sight_lie_on_their_person():
    crowd = sample_crowd(0, "plain", 4, 128)
    for t, p in zip(*np.nonzero(crowd.present), strict=True):
        x, y, score = crowd.keypoints[t, p].T
        on_mask = crowd.masks[t, p][y.astype(int), x.astype(int)] > 0
        assert on_mask[score > 0].mean() > 0.8


def test_crowds_are_reproducible_and_splits_differ(named):
    name, crowd = named
    np.testing.assert_array_equal(sample_crowd(1, name, FRAMES, SIZE).frames, crowd.frames)
    assert not np.array_equal(sample_crowd(1, name, FRAMES, SIZE, "train").frames, crowd.frames)
    with pytest.raises(ValueError):
        sample_crowd(0, "party", 2, SIZE)


@pytest.mark.parametrize("seed", range(3))
def test_cuts_are_where_the_truth_says(seed):
    crowd = sample_crowd(seed, "cuts", FRAMES, SIZE)
    change = np.abs(np.diff(crowd.frames.astype(int), axis=0)).mean((1, 2, 3))
    cuts = np.array(crowd.cuts)
    assert 1 <= len(cuts) <= 2
    assert change[cuts - 1].min() > 2 * np.delete(change, cuts - 1).max()
    assert sample_crowd(seed, "crossing", FRAMES, SIZE).cuts == ()


@pytest.mark.parametrize("seed", range(3))
def test_people_cross_vanish_and_come_back(seed):
    crossing = sample_crowd(seed, "crossing", FRAMES, SIZE)
    middle = crossing.boxes[..., [0, 2]].mean(-1)
    side = np.sign(middle[:, 0] - middle[:, 1])
    assert side[0] == -side[-1] != 0
    first, second = crossing.boxes[FRAMES // 2]
    assert min(first[2], second[2]) > max(first[0], second[0])

    leaving = sample_crowd(seed, "exit", FRAMES, SIZE).present
    assert leaving[:, 1].all() and leaving[[0, -1], 0].all() and not leaving[FRAMES // 2, 0]

    area = (sample_crowd(seed, "prop", FRAMES, SIZE).masks[:, 0] > 0).sum((1, 2))
    assert area.min() < 0.75 * area.max()


@pytest.mark.parametrize(
    ("path", "inputs", "outputs", "limit"),
    [
        (DETECTOR, {"images": [1, 3, 640, 640]}, {"output": [1, 8400, 85]}, 400e3),
        (
            POSE,
            {"input": ["batch", 3, 384, 288]},
            {"simcc_x": ["batch", 133, 576], "simcc_y": ["batch", 133, 768]},
            2e6,
        ),
    ],
)
def test_the_nets_are_called_as_the_released_ones(path, inputs, outputs, limit):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert {i.name: i.shape for i in session.get_inputs()} == inputs
    assert {o.name: o.shape for o in session.get_outputs()} == outputs
    assert path.stat().st_size <= limit


@pytest.mark.parametrize("path", [DETECTOR, POSE])
def test_the_nets_have_the_released_opset(path):
    onnx = needs.installed("onnx")
    assert [(entry.domain, entry.version) for entry in onnx.load(path).opset_import] == [("", 13)]


def test_skeletons_of_unseen_puppets():
    dwpose, right, missing = DWPose(DETECTOR, POSE, "cpu"), [], 0
    for seed in range(50, 54):
        crowd = sample_crowd(seed, "plain", 2, 256)
        (made,) = dwpose.poses(crowd.frames[-1:]).people
        boxes = made[:, PLACES[BOX], :2].reshape(-1, 4)
        for box, truth in zip(crowd.boxes[-1], crowd.keypoints[-1], strict=True):
            apart = np.abs(boxes - box).max(axis=1) if len(boxes) else np.array([np.inf])
            if apart.min() > 0.35 * (box[3] - box[1]):
                missing += 1
                continue
            points = body_points(made[apart.argmin()])
            away = np.linalg.norm(points[:, :2] - truth[:, :2], axis=1)[truth[:, 2] > 0]
            right += (away <= 0.1 * (box[3] - box[1])).tolist()
        for part in ("face_keypoints_2d", "hand_left_keypoints_2d", "foot_keypoints_2d"):
            assert np.nanmax(made[:, PLACES[part], 2]) <= MIN_SCORE
    assert missing == 0 and np.mean(right) > 0.85


def test_points_outside_the_crop_score_low():
    crowd = sample_crowd(50, "plain", 2, 256)
    x0, y0, x1, y1 = crowd.boxes[-1, 0]
    # From the hips up: knees and ankles are out of the picture.
    frame = np.ascontiguousarray(crowd.frames[-1, : (y0 + y1) // 2])
    ((_, scores),) = DWPose(DETECTOR, POSE, "cpu").estimate([frame], [np.array([[x0, y0, x1, (y0 + y1) // 2]])])
    assert scores[0, [10, 13]].max() < MIN_SCORE < scores[0, [0, 1, 2, 5]].min()


def test_a_mask_from_the_first_box_on():
    prompted, followed = [], []
    for seed in (50, 51, 52):
        crowd = sample_crowd(seed, "plain", 5, 256)
        masks = np.stack(list(Segmenter(SEGMENTER, "cpu").masks(crowd.frames, crowd.boxes[:, 0].tolist())))
        made, true = masks > 0, crowd.masks[:, 0] > 0
        iou = (made & true).sum((1, 2)) / (made | true).sum((1, 2))
        prompted.append(iou[0])
        followed += iou[1:].tolist()
    assert np.mean(prompted) > 0.75 and np.mean(followed) > 0.5
    assert sum(path.stat().st_size for path in SEGMENTER.iterdir()) <= 4e6


def test_what_is_trained_is_what_transformers_computes(clips):
    """The batched unrolling of the segmenter against the model's own forward, frame by frame."""
    from transformers import Sam2VideoInferenceSession, Sam2VideoModel

    model = Sam2VideoModel.from_pretrained(SEGMENTER, dtype=torch.float32).eval()
    (batch,) = Drawn(clips, partial(segmenter.draw, 4), (0,), 2).batches(1, 2)
    frames = batch["frames"].permute(0, 1, 3, 4, 2)
    pixels = torch.stack([to_pixels(clip, segmenter.SIDE) for clip in frames])
    with torch.no_grad():
        logits, scores = segmenter.unroll(model, pixels, batch["boxes"])
    for k in range(2):
        session = Sam2VideoInferenceSession(dtype=torch.float32)
        index = session.obj_id_to_idx(1)
        corners = {
            "point_coords": batch["boxes"][k][None, None],
            "point_labels": torch.tensor([[[2, 3]]]).int(),
        }
        session.add_point_inputs(index, 0, corners)
        session.obj_with_new_inputs = [1]
        for t in range(4):
            out = model(inference_session=session, frame=pixels[k, t][None], frame_idx=t)
            assert scores[k, t].item() == pytest.approx(out.object_score_logits.item(), abs=1e-2)
            large = interpolate(out.pred_masks, (segmenter.SIDE, segmenter.SIDE), mode="bilinear")[0, 0]
            assert (large - logits[k, t]).abs().max() < 0.05 * large.abs().max()


@pytest.mark.parametrize("module", [detector, pose])
def test_a_step_of_training_lowers_the_loss(module, clips):
    torch.manual_seed(0)
    net = {detector: detector.Detector, pose: pose.PoseNet}[module]()
    (batch,) = Drawn(clips, module.draw, (0,), 16).batches(1, 16)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        value = module.loss(net, batch)["loss"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is not None for p in net.parameters())


def test_the_detectors_targets_say_what_the_contract_decodes():
    boxes = torch.tensor([[[100.0, 60, 180, 300], [float("nan")] * 4, [float("nan")] * 4]])
    heat, owned = detector.targets(boxes)
    row, column = np.unravel_index(heat[0].argmax().item(), heat.shape[1:])
    assert heat.max() == 1 and (row, column) == (180 // 16, 140 // 16)
    torch.testing.assert_close(owned[0, row, column], boxes[0, 0])


def test_the_pose_crop_is_the_one_the_product_cuts():
    from anycharv_core.preprocess.dwpose import simcc

    frame = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    box = np.array([40.0, 20.0, 90.0, 110.0])
    crop, scale, offset = pose.crop_around(frame, box)
    size = (pose.WIDTH, pose.HEIGHT)
    place = simcc.window(box, size)
    made = simcc.crop(np.ascontiguousarray(frame[..., ::-1]), *place, size)
    mine = ((crop - np.array(pose.MEAN)) / pose.STD).transpose(2, 0, 1)
    assert np.abs(made - mine).mean() < 0.02
    point = np.array([[55.0, 70.0]])
    np.testing.assert_allclose(simcc.to_frame(point * scale + offset, *place, size), point, atol=1e-6)


SHORT = {
    "detector": (detector.Detector, detector.loss, detector.draw, detector.PHASE),
    "pose": (pose.PoseNet, pose.loss, pose.draw, pose.PHASE),
    "segmenter": (segmenter.new_model, segmenter.loss, partial(segmenter.draw, 2), segmenter.PHASES["clips"][1]),
}


@pytest.mark.parametrize("name", SHORT)
def test_a_stopped_training_goes_on_to_the_bit(name: str, clips: Clips, tmp_path: Path) -> None:
    new, loss, draw, phase = SHORT[name]
    phase = replace(phase, steps=3, batch=2, log_every=1)

    def trained(folder: str, *stops: bool) -> dict[str, torch.Tensor]:
        for asked in stops:
            torch.manual_seed(0)
            net = new()
            course = Course(clips, tmp_path / folder, stop=Stop(asked=asked))
            if asked:
                with pytest.raises(Unfinished, match="after step 1 of 3"):
                    course.train(net, loss, draw, phase, 5)
            else:
                course.train(net, loss, draw, phase, 5)
        return net.state_dict()

    whole, broken = trained("whole", False), trained("broken", True, False)
    assert all(torch.equal(whole[key], broken[key]) for key in whole), "with BatchNorm's running statistics"
    rows = [json.loads(line) for line in (tmp_path / "broken" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]


def test_samples_are_the_same_in_every_process(clips: Clips, tmp_path: Path) -> None:
    for each in Clips.__dataclass_fields__:
        np.save(tmp_path / f"{each}.npy", getattr(clips, each))
    samples = Drawn(tmp_path, detector.draw, (1, 2), 4)
    first = samples[3, 0]["pictures"]
    stored = pickle.dumps(samples)
    assert len(stored) < 1000, "the clips themselves stay on the disk"
    assert torch.equal(pickle.loads(stored)[3, 0]["pictures"], first)
    assert not torch.equal(samples[3, 1]["pictures"], first) and not torch.equal(samples[2, 0]["pictures"], first)


def test_clips_that_are_not_there_are_one_sentence(tmp_path: Path, capsys) -> None:
    (tmp_path / "frames.npy").write_bytes(b"torn")
    assert detector.main(["--data", str(tmp_path), "--state", str(tmp_path / "s"), "--out", "x.onnx"]) == 2
    said = capsys.readouterr().err
    assert "holds no clips" in said and "training.preprocessors.data" in said and said.count("\n") == 1
    assert not (tmp_path / "s").exists()
