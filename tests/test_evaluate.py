"""Metrics on real clips: values that are known, pairs that fit, and what is missing said."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from keypoint_files import clean_pose
from keypoint_files import write_frames as write_poses
from PIL import Image
from tiny_alexnet import alexnet

from anycharv_core import UserError
from anycharv_core.bench.clip_score import load_clip
from anycharv_core.bench.compare import METRICS
from anycharv_core.bench.fvd import frechet_distance, load_features
from anycharv_core.bench.pck import pck
from anycharv_core.bench.videos import named_videos, video_frames
from anycharv_core.cli import main
from anycharv_core.jobs.evaluate import EvaluateJob, evaluate
from anycharv_core.media.pose import parse_poses
from anycharv_core.media.video_write import VideoWriter, write_masks

FRAMES, HEIGHT, WIDTH = 4, 24, 32
SSIM = pytest.mark.skipif(find_spec("torchmetrics") is None, reason="needs torchmetrics")


def write_clip(folder: Path, frames: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index}.png")


def random_clip(seed: int, frames: int = FRAMES) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(frames, HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def job(tmp_path: Path) -> EvaluateJob:
    """Two pairs: 'same' is equal, and of 'dark' every generated value is 250 where 5 is real, left of a mask."""
    for side in ("real", "made"):
        write_clip(tmp_path / side / "same", random_clip(0))
    dark = np.full((FRAMES, HEIGHT, WIDTH, 3), 5, np.uint8)
    write_clip(tmp_path / "real" / "dark", dark)
    dark[:, :, :8] = 250
    write_clip(tmp_path / "made" / "dark", dark)
    return EvaluateJob(tmp_path / "real", tmp_path / "made", tmp_path / "out")


def person(shift: float = 0.0, seen: int = 18, size: int = 100) -> dict:
    points = [[10.0 + 3 * i + shift, 20.0 + 2 * i, 1.0 if i < seen else 0.0] for i in range(18)]
    scale = np.array([size / 100, size / 100, 1])
    return clean_pose(
        {
            "canvas_width": size,
            "canvas_height": size,
            "people": [{"pose_keypoints_2d": (np.array(points) * scale).ravel().tolist()}],
        }
    )


@SSIM
def test_equal_clips_are_equal_and_nothing_wraps_around(job: EvaluateJob) -> None:
    report, _ = evaluate(job)
    same, dark = report["pairs"]["same"], report["pairs"]["dark"]
    assert same["PSNR"] == math.inf and same["SSIM"] == pytest.approx(1)
    # A quarter of the values is 245 apart, and the square is 60025; in uint8 arithmetic it is 121.
    assert dark["PSNR"] == pytest.approx(10 * math.log10(255**2 / (60025 / 4)))
    real, made = (np.stack(list(video_frames(folder / "dark"))) for folder in (job.real, job.generated))
    wrapped = float(((made - real) ** 2).mean())
    assert 10 * math.log10(255**2 / wrapped) > dark["PSNR"] + 10
    assert 0 < dark["SSIM"] < 0.9


@SSIM
def test_psnr_and_ssim_are_those_of_torchmetrics_on_floats(tmp_path: Path) -> None:
    from torchmetrics.functional import image

    real, made = random_clip(1), random_clip(2)
    write_clip(tmp_path / "real" / "a", real)
    write_clip(tmp_path / "made" / "a", made)
    found = evaluate(EvaluateJob(tmp_path / "real", tmp_path / "made", tmp_path / "out"))[0]["pairs"]["a"]
    a, b = (torch.as_tensor(x).movedim(-1, 1).double() for x in (made, real))
    assert found["PSNR"] == pytest.approx(float(image.peak_signal_noise_ratio(a, b, data_range=255.0)), abs=1e-5)
    theirs = image.structural_similarity_index_measure(a, b, data_range=255.0)
    assert found["SSIM"] == pytest.approx(float(theirs), abs=1e-9)


def test_what_is_missing_is_said_in_the_report_and_the_table(job: EvaluateJob) -> None:
    report, table = evaluate(job)
    options = {
        "LPIPS": "--lpips-weights",
        "background PSNR": "--masks",
        "seam jump": "--masks",
        "colour drift": "--masks",
        "CLIP-I": "--references",
        "pose PCK": "--pose-model",
        "FVD": "--fvd-model",
    }
    for metric, option in options.items():
        assert option in report["summary"][metric]["not measured"]
        assert f"- {metric} not measured: give {option}" in table
    written = json.loads((job.out / "evaluate.json").read_text())
    assert written["pairs"]["same"]["PSNR"] == "inf" and set(written["summary"]) == set(METRICS)
    assert table in (job.out / "evaluate.md").read_text()


def test_the_background_is_what_lies_outside_the_mask(job: EvaluateJob, tmp_path: Path) -> None:
    mask = np.zeros((FRAMES, HEIGHT, WIDTH), np.uint8)
    (tmp_path / "masks").mkdir()
    write_masks(tmp_path / "masks" / "same.mkv", mask)
    mask[:, :, :8] = 255
    write_masks(tmp_path / "masks" / "dark", mask)
    job = EvaluateJob(job.real, job.generated, job.out, masks=tmp_path / "masks")
    pairs = evaluate(job)[0]["pairs"]
    assert pairs["dark"]["background PSNR"] == pairs["same"]["background PSNR"] == math.inf
    assert all(math.isnan(pairs["same"][name]) for name in ("seam jump", "identity drift"))
    # Outside the mask nothing differs, but what is next to it shows the edge.
    assert pairs["dark"]["seam error"] == 0 and pairs["dark"]["seam jump"] > 100
    assert pairs["dark"]["colour drift"] == pytest.approx(0, abs=1e-4)
    mask[:, :, 4:] = 0
    write_masks(tmp_path / "masks" / "dark", mask)
    found = evaluate(job)[0]["pairs"]["dark"]["background PSNR"]
    assert found == pytest.approx(10 * math.log10(255**2 / (60025 * 4 / 28)))


def test_weights_by_path_measure_the_rest(job: EvaluateJob, tiny_model: Path, tmp_path: Path) -> None:
    references = tmp_path / "references"
    references.mkdir()
    Image.fromarray(random_clip(0)[0]).save(references / "same.png")
    Image.fromarray(np.dstack([random_clip(3)[0], np.full((HEIGHT, WIDTH), 255, np.uint8)])).save(
        references / "dark.png"
    )
    job = EvaluateJob(
        job.real, job.generated, job.out, references=references, clip_model=tiny_model / "image_encoder"
    )
    pairs = evaluate(job)[0]["pairs"]
    embed = load_clip(tiny_model / "image_encoder", "cpu")
    character, *frames = embed([random_clip(0)[0], *random_clip(0)])
    assert frames[0] @ character == pytest.approx(1)
    assert pairs["same"]["CLIP-I"] == pytest.approx(float(np.mean(frames @ character)))
    assert pairs["dark"]["CLIP-I"] < pairs["same"]["CLIP-I"]
    with pytest.raises(UserError, match="is not a folder of transformers' CLIP"):
        load_clip(tmp_path / "real", "cpu")
    # Another network, which transformers would take and fill with random weights.
    with pytest.raises(UserError, match="is not a folder of transformers' VideoMAE"):
        load_features(tiny_model / "image_encoder", "cpu")


def test_lpips_of_larger_clips(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(256, size=(2, 40, 40, 3), dtype=np.uint8)
    for name in ("real/a", "real/b", "made/a"):
        write_clip(tmp_path / name, frames)
    write_clip(tmp_path / "made" / "b", 255 - frames)
    weights = alexnet(tmp_path / "alexnet.pth")
    pairs = evaluate(EvaluateJob(tmp_path / "real", tmp_path / "made", tmp_path / "out", lpips_weights=weights))[0]
    assert pairs["pairs"]["a"]["LPIPS"] == 0 < pairs["pairs"]["b"]["LPIPS"]


def test_frechet_distance_of_known_gaussians() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60_000, 3))
    stretched = x * np.array([1, 2, 3]) + np.array([3, 0, 4])
    # |(3, 0, 4)|^2 + the sum of (1 - s)^2 over the deviations s.
    assert frechet_distance(x, stretched) == pytest.approx(25 + 1 + 4, rel=0.02)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + np.array([0, 5, 0])) == pytest.approx(25)
    # Fewer windows than features, where the covariances have no root that could be inverted.
    few = rng.normal(size=(5, 64))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(few, few[::-1] + 1) == pytest.approx(64)


def test_frechet_distance_is_that_of_a_matrix_root() -> None:
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4)), rng.normal(size=(70, 4)) + 1
    covariances = [np.cov(x, rowvar=False) for x in (a, b)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(float(expected))


class TinyI3D(torch.nn.Module):
    """Called as the published TorchScript I3D is; its features are the mean colours of the two halves."""

    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        assert rescale and resize and return_features
        halves = x.reshape(x.shape[0], 3, 2, -1).mean(dim=3)
        return halves.flatten(1)


def test_fvd_through_a_torchscript_file(tmp_path: Path) -> None:
    network = tmp_path / "i3d.pt"
    torch.jit.script(TinyI3D()).save(str(network))
    clips = np.repeat(random_clip(4, 1), 40, axis=0)
    for seed, name in enumerate("abc"):
        clip = clips.copy()
        clip[..., seed] //= 2
        write_clip(tmp_path / "real" / name, clip)
        write_clip(tmp_path / "made" / name, np.where(clip < 245, clip + 10, clip).astype(np.uint8))
    args = (tmp_path / "real", tmp_path / "real", tmp_path / "out")
    summary = evaluate(EvaluateJob(*args, fvd_model=network))[0]["summary"]["FVD"]
    assert summary["mean"] == pytest.approx(0, abs=1e-6)
    # Two whole windows of each clip's 40 frames.
    assert (summary["windows"], summary["features"]) == (6, 6)
    apart = evaluate(EvaluateJob(args[0], tmp_path / "made", args[2], fvd_model=network))[0]["summary"]["FVD"]
    # Every colour of both halves is about 10 higher.
    assert apart["mean"] == pytest.approx(600, rel=0.15)


def test_fvd_needs_two_windows(job: EvaluateJob, tmp_path: Path) -> None:
    network = tmp_path / "i3d.pt"
    torch.jit.script(TinyI3D()).save(str(network))
    job = EvaluateJob(job.real, job.generated, job.out, fvd_model=network)
    assert "2 are the fewest" in evaluate(job)[0]["summary"]["FVD"]["not measured"]


def test_feature_networks_that_are_none_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "i3d.pt"
    broken.write_bytes(b"nothing")
    with pytest.raises(UserError, match="is not a TorchScript file"):
        load_features(broken, "cpu")
    torch.jit.script(torch.nn.Identity()).save(str(broken))
    with pytest.raises(UserError, match="cannot be called as the TorchScript I3D"):
        load_features(broken, "cpu")(random_clip(0, 16))
    with pytest.raises(UserError, match="is not a folder of transformers' VideoMAE"):
        load_features(tmp_path, "cpu")


def test_features_of_a_videomae_folder(tmp_path: Path) -> None:
    from transformers import VideoMAEConfig, VideoMAEModel

    config = VideoMAEConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        num_frames=16,
    )
    torch.manual_seed(0)
    VideoMAEModel(config).save_pretrained(tmp_path / "videomae")
    features = load_features(tmp_path / "videomae", "cpu")
    one, other = features(random_clip(0, 16)), features(random_clip(1, 16))
    assert one.shape == (16,) and not np.allclose(one, other)
    assert np.array_equal(one, features(random_clip(0, 16)))


def counted(real: dict, generated: dict) -> tuple[int, int]:
    poses = parse_poses(real)
    return pck(poses.people[0], parse_poses(generated).scaled(*poses.size).people[0])


def test_pck_of_a_known_shift() -> None:
    # The person is 51 pixels wide, so points up to 5.1 pixels away are right.
    real = person()
    assert counted(real, real) == (18, 18)
    assert counted(real, person(5.0)) == (18, 18)
    assert counted(real, person(5.2)) == (0, 18)
    assert counted(real, person(seen=6)) == (6, 18)
    assert counted(person(seen=6), real) == (6, 6)
    assert counted(real, person(5.0, size=400)) == (18, 18)
    nobody = real | {"people": []}
    assert counted(real, nobody) == (0, 18) and counted(nobody, real) == (0, 0)


def test_pck_pairs_people_whatever_their_order() -> None:
    one, other = person()["people"][0], person(30.0)["people"][0]
    real, turned = (person() | {"people": people} for people in ([one, other], [other, one]))
    assert counted(real, turned) == (36, 36)
    assert counted(real, person()) == (18, 36)


def test_poses_by_name(job: EvaluateJob, tmp_path: Path) -> None:
    for side, shift in (("p", 0.0), ("q", 40.0)):
        (tmp_path / side).mkdir()
        write_poses(tmp_path / side / "same.json", [person()] * FRAMES)
        write_poses(tmp_path / side / "dark.json", [person()] * 2 + [person(shift)] * 2)
    job = EvaluateJob(job.real, job.generated, job.out, real_poses=tmp_path / "p", generated_poses=tmp_path / "q")
    pairs = evaluate(job)[0]["pairs"]
    assert (pairs["same"]["pose PCK"], pairs["dark"]["pose PCK"]) == (1.0, 0.5)
    write_poses(tmp_path / "q" / "same.json", [person()])
    with pytest.raises(UserError, match="There are 4 real and 1 generated poses of 'same'"):
        evaluate(job)
    with pytest.raises(UserError, match="together"):
        evaluate(EvaluateJob(job.real, job.generated, job.out, real_poses=tmp_path / "p"))


def test_the_embedded_pose_model_runs_on_both(tmp_path: Path) -> None:
    from anycharv_core.puppets.task import sample_swap

    swap = sample_swap(0, 2, 128)
    write_clip(tmp_path / "real" / "a", swap.driving.frames)
    write_clip(tmp_path / "made" / "a", swap.truth.frames)
    job = EvaluateJob(tmp_path / "real", tmp_path / "made", tmp_path / "out", pose_model="embedded")
    # Both characters do the same, which the skeletons show.
    assert evaluate(job)[0]["pairs"]["a"]["pose PCK"] > 0.7


def test_clips_are_videos_or_folders_and_every_one_has_a_partner(job: EvaluateJob, tmp_path: Path, capsys) -> None:
    with VideoWriter(job.real / "new.mp4", WIDTH, HEIGHT, rate=25) as video:
        for frame in random_clip(5):
            video.write(frame)
    (job.real / "new.report.json").write_text("{}")
    assert sorted(named_videos(job.real)) == ["dark", "new", "same"]
    command = ["evaluate", str(job.real), str(job.generated), "--out", str(job.out)]
    assert main(command) == 2
    assert f"'new' is in {job.real} and not in {job.generated}" in capsys.readouterr().err
    write_clip(job.generated / "new", random_clip(5, 3))
    assert main(command) == 2
    assert "has 3 frames but" in capsys.readouterr().err
    Image.fromarray(random_clip(5)[0]).save(job.generated / "new" / "3.png")
    assert main(command) == 0
    assert "| 3 pairs |" in capsys.readouterr().out


def test_sizes_that_differ_are_one_sentence(tmp_path: Path) -> None:
    write_clip(tmp_path / "real" / "a", random_clip(0))
    write_clip(tmp_path / "made" / "a", random_clip(0)[:, :20])
    job = EvaluateJob(tmp_path / "real", tmp_path / "made", tmp_path / "out")
    with pytest.raises(UserError, match=r"is 32x20 and .* is 32x24"):
        evaluate(job)
    with pytest.raises(UserError, match="is not a folder"):
        evaluate(EvaluateJob(tmp_path / "none", tmp_path / "made", tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no videos"):
        evaluate(EvaluateJob(tmp_path / "empty", tmp_path / "made", tmp_path / "out"))
