"""A folder of videos becomes shards: whole, exactly once, and whatever interrupts it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import needs
import numpy as np
import pytest
from keypoint_files import write_frames as write_poses

from anycharv_core.errors import UserError
from anycharv_core.media.masks import mask_box
from anycharv_core.media.pose import BODY
from anycharv_core.media.video_write import VideoWriter, write_masks
from anycharv_core.puppets import Clip, render, sample_character, sample_motion, sample_scene
from training.config import Data
from training.data.shards import open_shards, read_lines
from training.data.sources import open_dataset
from training.prepare import dataset as module
from training.prepare.dataset import main, parse_sizes, prepare_dataset
from training.prepare.video import Settings, pieces

SIDE = 96


def puppet(seed: int, frames: int) -> Clip:
    character = sample_character(seed)
    motion = sample_motion(seed, frames, character.proportions)
    return render(character, motion, sample_scene(seed), (SIDE, SIDE))


def write_video(folder: Path, name: str, shots: list[Clip]) -> None:
    """A video of puppets with its true poses and masks beside it, in the folders the settings name."""
    target = folder / "videos" / f"{name}.mp4"
    for kind in ("videos", "poses", "masks"):
        (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(target, SIDE, SIDE, rate=Fraction(24)) as writer:
        for shot in shots:
            for frame in shot.frames:
                writer.write(frame)
    write_poses(folder / "poses" / f"{name}.json", [pose for shot in shots for pose in shot.poses().keypoints()])
    write_masks(folder / "masks" / f"{name}.mkv", (mask for shot in shots for mask in shot.mask))


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Clip]]]:
    folder = tmp_path_factory.mktemp("material")
    shots = {
        "two.shots": [puppet(0, 10), puppet(1, 9)],
        "sub/long": [puppet(2, 20)],
        "plain": [puppet(3, 8)],
        "short": [puppet(4, 4)],
    }
    for name, parts in shots.items():
        write_video(folder, name, parts)
    (folder / "videos" / "torn.mp4").write_bytes((folder / "videos" / "plain.mp4").read_bytes()[:3000])
    (folder / "videos" / "text.mp4").write_text("no video")
    for kind, suffix in (("videos", "mp4"), ("poses", "json"), ("masks", "mkv")):
        shutil.copyfile(folder / kind / f"plain.{suffix}", folder / kind / "sub" / f"again.{suffix}")
    (folder / "videos" / "notes.txt").write_text("not a video either")
    return folder, shots


def settings(folder: Path) -> Settings:
    ready = {"poses_dir": folder / "poses", "masks_dir": folder / "masks"}
    return Settings(**ready, buckets=((64, 96), (64, 64)), min_frames=6, max_frames=12)


@pytest.fixture(scope="module")
def prepared(material, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("prepared")
    folder, _ = material
    return out, prepare_dataset(folder / "videos", out, settings(folder))


def contents(out: Path) -> dict[str, bytes]:
    return {f"{clip.key}.{kind}": clip.read(kind) for clip in open_shards(out) for kind in clip.members}


def test_videos_become_clips_at_cuts_and_lengths(material, prepared) -> None:
    out, statistics = prepared
    rows = {row["source"]: row for row in read_lines(out / "manifest.jsonl")}
    spans = {name: [(clip["start"], clip["frames"]) for clip in row["clips"]] for name, row in rows.items()}
    assert spans == {
        "two.shots.mp4": [(0, 10), (10, 9)],
        "sub/long.mp4": [(0, 10), (10, 10)],
        "plain.mp4": [(0, 8)],
    }
    assert rows["two.shots.mp4"]["shots"] == 2 and rows["two.shots.mp4"]["fps"] == 24
    assert statistics["videos"] == 3 and statistics["clips"] == 5 and statistics["frames"] == 47
    assert statistics["buckets"] == {"64x64": 5} and statistics["quantiles"]["fps"] == [24.0] * 3
    assert 0.3 < statistics["quantiles"]["person_height"][1] <= 1
    assert statistics == json.loads((out / "statistics.json").read_text())
    assert not list((out / "parts").iterdir())


def test_objects_and_depth_that_are_ready_become_members(material, tmp_path: Path) -> None:
    folder, _ = material
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    shutil.copyfile(folder / "videos" / "plain.mp4", videos / "plain.mp4")
    own = replace(settings(folder), objects_dir=folder / "masks", depth_dir=folder / "masks")
    prepare_dataset(videos, out, own)
    (clip,) = open_shards(out)
    masks, objects, depth = clip.masks(range(8)), clip.extra("objects", range(8)), clip.extra("depth", range(8))
    assert np.array_equal(masks, objects) and set(np.unique(depth)) == {0, 255} and depth.shape == masks.shape
    with pytest.raises(UserError, match="was begun with objects_dir"):
        prepare_dataset(videos, out, settings(folder))


def test_unfit_videos_are_put_aside_with_a_reason(prepared) -> None:
    reasons = {row["source"]: row["reason"] for row in read_lines(prepared[0] / "quarantine.jsonl")}
    assert set(reasons) == {"short.mp4", "torn.mp4", "text.mp4", "sub/again.mp4"}
    assert "shows nobody for 6 frames" in reasons["short.mp4"]
    assert "cut short" in reasons["torn.mp4"] or "not a video" in reasons["torn.mp4"]
    assert "not a video" in reasons["text.mp4"] and "is that of plain.mp4" in reasons["sub/again.mp4"]


def test_clips_show_what_the_videos_do(material, prepared) -> None:
    _, shots = material
    clip = next(clip for clip in open_shards(prepared[0]) if clip.start == 0 and clip.frames == 8)
    truth, facts = shots["plain"][0], clip.facts()
    x0, y0, x1, y1 = facts["window"]
    assert facts["source_size"] == [SIDE, SIDE] and facts["fps"] == 24 and facts["size"] == [64, 64]
    scale = 64 / (x1 - x0)
    for number, (mask, pose, box) in enumerate(
        zip(clip.masks(range(8)), clip.poses(range(8)).keypoints(), facts["boxes"], strict=True)
    ):
        assert mask_box(mask) == tuple(box)
        expected = np.array(mask_box(truth.mask[number][y0:y1, x0:x1])) * scale
        assert np.abs(expected - box).max() <= 1.5
        # All of the person is inside.
        assert (truth.mask[number] > 0).sum() == (truth.mask[number][y0:y1, x0:x1] > 0).sum()
        points = np.reshape(pose["people"][0][BODY], (18, 3))
        true = truth.keypoints[number]
        assert np.abs(points[:, :2] - (true[:, :2] - (x0, y0)) * scale)[true[:, 2] > 0].max() < 0.02
    if scale == 64 / SIDE:
        import cv2

        small = np.stack([cv2.resize(f, (64, 64), interpolation=cv2.INTER_AREA) for f in truth.frames])
        assert np.abs(small.astype(float) - clip.pictures(range(8))).mean() < 8


def test_the_trainer_reads_what_was_prepared(prepared) -> None:
    clips = open_dataset(Data(source="shards", path=str(prepared[0])), 6)
    sample = clips[0, 0]
    assert sample["frames"].shape == (6, 64, 64, 3) and sample["pose"].any() and sample["reference"].any()
    assert (sample["mask"] >= sample["character"]).all() and sample["character"].any()


def test_a_second_run_looks_at_nothing_again(material, prepared, monkeypatch, capsys, tmp_path: Path) -> None:
    folder, _ = material
    out = tmp_path / "out"
    shutil.copytree(prepared[0], out)
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    monkeypatch.setattr(module, "prepare_video", lambda *_, **__: pytest.fail("a video was looked at again"))
    prepare_dataset(folder / "videos", out, settings(folder))
    assert "7 videos, 0 of them" in capsys.readouterr().out
    assert before == {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    with pytest.raises(UserError, match="begun with min_frames = 6, not 5"):
        prepare_dataset(folder / "videos", out, replace(settings(folder), min_frames=5))


def test_a_lost_shard_and_new_videos_are_made_and_nothing_else(material, tmp_path: Path, capsys) -> None:
    folder, _ = material
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    for name in ("plain.mp4", "two.shots.mp4"):
        shutil.copyfile(folder / "videos" / name, videos / name)
    prepare_dataset(videos, out, settings(folder), shard_bytes=1)
    whole = contents(out)
    assert sorted(path.name for path in out.glob("*.tar")) == ["000000.tar", "000001.tar"]
    first = (out / "000000.tar").read_bytes()
    (out / "000001.tar").write_bytes(b"torn")
    capsys.readouterr()
    prepare_dataset(videos, out, settings(folder), shard_bytes=1)
    said = capsys.readouterr().out
    assert "000001.tar is cut short: its 1 videos are prepared again" in said and "2 videos, 1 of them" in said
    assert contents(out) == whole and (out / "000000.tar").read_bytes() == first


@pytest.mark.parametrize("moment", ["first part", "shard", "manifest", "parts"])
def test_an_interruption_at_any_step_loses_nothing(
    material, prepared, tmp_path, monkeypatch, moment, capsys
) -> None:
    folder, _ = material
    out = tmp_path / "out"

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        book = module._Book
        enter, save = book.enter, book._save
        if moment == "first part":
            patch.setattr(book, "enter", lambda self, row: interrupted() if self.parts else enter(self, row))
        elif moment == "shard":
            patch.setattr(module, "join_tars", interrupted)
        elif moment == "manifest":
            patch.setattr(book, "_save", interrupted)
        else:
            patch.setattr(book, "_save", lambda self: interrupted(save(self)))
        with pytest.raises(KeyboardInterrupt):
            prepare_dataset(folder / "videos", out, settings(folder))
    capsys.readouterr()
    prepare_dataset(folder / "videos", out, settings(folder))
    todo = int(capsys.readouterr().out.split(" videos, ")[1].split()[0])
    assert todo < 7 if moment == "first part" else todo == 0
    assert contents(out) == contents(prepared[0])
    assert not list((out / "parts").iterdir())


KILLED = """
import os, signal, sys
from training.prepare import dataset
def run_all(*given):
    for row in original(*given):
        if "clips" in row:
            os.killpg(0, signal.SIGKILL)
        yield row
original, dataset.run_all = dataset.run_all, run_all
sys.exit(dataset.main(sys.argv[1:]))
"""


def test_kill_9_and_the_same_command_again(material, prepared, tmp_path: Path) -> None:
    """Killed with its workers when the first video is finished, whatever the others are at."""
    folder, _ = material
    out, root = tmp_path / "out", Path(__file__).parents[1]
    arguments = [str(folder / "videos"), "--out", str(out)]
    arguments += ["--poses-dir", str(folder / "poses"), "--masks-dir", str(folder / "masks")]
    arguments += ["--buckets", "64x96,64x64", "--min-frames", "6", "--max-frames", "12"]
    run = subprocess.Popen(
        [sys.executable, "-c", KILLED, *arguments, "--workers", "2"],
        cwd=root,
        start_new_session=True,
        stdout=subprocess.PIPE,
    )
    run.communicate()  # the workers share its output, which ends when the last of them does
    assert run.returncode == -signal.SIGKILL
    finished = {json.loads(path.read_text())["source"] for path in out.glob("parts/[!.]*.json")}
    put_aside = {row["source"] for row in read_lines(out / "quarantine.jsonl")}
    assert finished and not (out / "manifest.jsonl").exists()
    command = [sys.executable, "-m", "training.prepare_dataset", *arguments]
    again = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"7 videos, {7 - len(finished | put_aside)} of them" in again.stdout
    redone = {line.split(" ", 1)[1].split(":")[0] for line in again.stdout.splitlines() if line[:1].isdigit()}
    assert not redone & (finished | put_aside)
    assert set(contents(out)) == set(contents(prepared[0])) and not list((out / "parts").iterdir())


def test_what_is_wrong_with_the_machine_is_not_blamed_on_a_video(material, tmp_path: Path, monkeypatch) -> None:
    folder, _ = material

    def full(*_: object, **__: object) -> None:
        raise UserError("Cannot write here: the disk is full.") from OSError(28, "No space left on device")

    monkeypatch.setattr("training.prepare.video.write_tar", full)
    with pytest.raises(UserError, match="disk is full"):
        prepare_dataset(folder / "videos", tmp_path / "out", settings(folder))
    assert not any("disk" in row["reason"] for row in read_lines(tmp_path / "out" / "quarantine.jsonl"))
    with pytest.raises(UserError, match="no_model"):
        prepare_dataset(
            folder / "videos", tmp_path / "other", replace(settings(folder), poses_dir=None, pose_model="no_model")
        )


def test_the_embedded_networks_find_a_puppet(tmp_path: Path) -> None:
    character = sample_character(5)
    clip = render(character, sample_motion(5, 8, character.proportions), sample_scene(5), (192, 192))
    (tmp_path / "videos").mkdir()
    with VideoWriter(tmp_path / "videos" / "a.mp4", 192, 192, rate=Fraction(25)) as writer:
        for frame in clip.frames:
            writer.write(frame)
    chosen = Settings("embedded", "embedded", buckets=((128, 128),), min_frames=4, max_frames=8, device="cpu")
    prepare_dataset(tmp_path / "videos", tmp_path / "out", chosen)
    assert read_lines(tmp_path / "out" / "quarantine.jsonl") == []
    (found,) = open_shards(tmp_path / "out")
    x0, y0, x1, y1 = found.facts()["window"]
    masks = found.masks(range(found.frames)) > 0
    true = clip.mask[found.start : found.start + found.frames, y0:y1, x0:x1] > 0
    assert abs(masks.mean() / true.mean() - 1) < 0.25 and len(found.poses([0]).people[0])


def test_ray_makes_the_same(material, prepared, tmp_path: Path, monkeypatch) -> None:
    ray = needs.installed("ray", (2, 9))
    folder, _ = material
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        prepare_dataset(folder / "videos", tmp_path / "out", settings(folder), ray=True)
    finally:
        ray.shutdown()
    assert set(contents(tmp_path / "out")) == set(contents(prepared[0]))


def test_runs_of_frames() -> None:
    present = [False] * 2 + [True] * 10 + [False] + [True] * 3 + [True] * 5
    assert pieces(present, [16], 3, 100) == [(2, 12), (13, 16), (16, 21)]
    assert pieces(present, [16], 4, 100) == [(2, 12), (16, 21)]
    assert pieces(present, [], 4, 8) == [(2, 7), (7, 12), (13, 21)]


def test_bad_arguments_are_one_sentence(tmp_path: Path, capsys) -> None:
    assert parse_sizes("576x1024,64x64") == ((576, 1024), (64, 64))
    for arguments, said in (
        ([str(tmp_path / "none"), "--out", str(tmp_path / "out")], "is not a folder"),
        ([str(tmp_path), "--out", str(tmp_path / "out")], "holds no videos"),
        ([str(tmp_path), "--out", str(tmp_path / "out"), "--buckets", "big"], "not a list of sizes"),
        ([str(tmp_path), "--out", str(tmp_path / "out"), "--max-frames", "30"], "at least twice"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert said in error and error.startswith("prepare_dataset: ") and error.count("\n") == 1
