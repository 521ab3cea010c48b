"""The order of samples, the samples of every source, and the shards they are read from."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import needs
import numpy as np
import pytest
import torch
from shard_files import write_folder
from torch.utils.data import Dataset
from waiting import PATIENCE

from anycharv_core.errors import UserError
from anycharv_core.media.masks import mask_box
from anycharv_core.media.pose import BODY, BOX, HANDS, parse_poses
from anycharv_core.puppets import render, sample_character, sample_motion, sample_scene
from training.config import Data
from training.data.crops import cut, cut_poses, figure_window, mirror_poses, nearest_bucket, person_window
from training.data.samples import batches, loader, positions
from training.data.shards import open_shards, write_lines
from training.data.sources import open_dataset

BUCKETS = [0, 0, 1, 0, 2, 1, 0, 0, 1, 0, 0]
SHARE = """
import sys
from training.data.samples import loader

class Numbers:
    def __len__(self):
        return 11

    def __getitem__(self, sample):
        return {}

for batch in loader(Numbers(), 3, 0, 36, 4, rank=int(sys.argv[1]), world=2):
    print(*(f"{i}/{e}" for i, e in zip(batch["index"].tolist(), batch["epoch"].tolist())))
"""


class Numbers(Dataset):
    """Sample (index, epoch) is those two numbers."""

    def __init__(self, buckets: list[int]):
        self.buckets = buckets

    def __len__(self) -> int:
        return len(self.buckets)

    def __getitem__(self, sample: tuple[int, int]) -> dict[str, torch.Tensor]:
        return {"sample": torch.tensor(sample)}


class Broken(Numbers):
    def __getitem__(self, sample: tuple[int, int]) -> dict[str, torch.Tensor]:
        raise UserError("Sample 0 is broken; mend it.")


def seen(dataset: Dataset, start: int, stop: int, batch: int, world: int, workers: int) -> list[list[list[int]]]:
    """By process and batch, the (index, epoch) of every sample, as their tensors say."""
    return [
        [b["sample"].tolist() for b in loader(dataset, 3, start, stop, batch, rank, world, workers)]
        for rank in range(world)
    ]


@pytest.mark.parametrize("buckets", [[0] * 11, BUCKETS])
@pytest.mark.parametrize(("batch", "world", "workers"), [(4, 1, 0), (4, 2, 2), (6, 3, 1)])
def test_every_sample_comes_exactly_once_per_epoch(
    buckets: list[int], batch: int, world: int, workers: int
) -> None:
    stop = batch * 14
    shares = seen(Numbers(buckets), 0, stop, batch, world, workers)
    together = [[sample for share in shares for sample in share[g]] for g in range(14)]
    counts = Counter(tuple(sample) for whole in together for sample in whole)
    assert set(counts.values()) == {1}
    assert {(i, e) for i in range(11) for e in range(3)} <= set(counts)
    for whole in together:
        assert len(whole) == batch and len({buckets[index] for index, _ in whole}) == 1
    # The same from the middle on, and whatever the number of processes.
    rest = seen(Numbers(buckets), batch * 5, stop, batch, world, 0)
    assert rest == [share[5:] for share in shares]
    assert seen(Numbers(buckets), 0, stop, batch, 1, 0)[0] == together


def test_epochs_are_shuffled_differently_and_one_bucket_is_the_plain_stream() -> None:
    stream = positions(3, 11, 0, 33)
    epochs = [[index for index, _ in stream[e * 11 : (e + 1) * 11]] for e in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(11))] * 3
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(11))
    assert positions(4, 11, 0, 33) != stream
    assert [sample for whole in batches(3, [7] * 11, 4, 0, 8) for sample in whole] == positions(3, 11, 0, 32)
    assert positions(3, 11, 5, 20) == stream[5:25]


def test_real_processes_see_every_sample_once() -> None:
    root = Path(__file__).parents[1]
    started = [
        subprocess.Popen([sys.executable, "-c", SHARE, str(rank)], cwd=root, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [process.communicate(timeout=PATIENCE)[0].split() for process in started]
    assert all(process.returncode == 0 for process in started)
    counts = Counter(said[0] + said[1])
    assert set(counts.values()) == {1} and len(counts) == 36
    assert {f"{i}/{e}" for i in range(11) for e in range(3)} <= set(counts)


def test_a_broken_sample_is_one_sentence_also_from_a_worker() -> None:
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"^Sample 0 is broken; mend it\.$"):
            next(loader(Broken([0] * 4), 0, 0, 4, 4, workers=workers))


def test_the_loader_leaves_global_random_state_alone_and_checks_the_batch() -> None:
    before = torch.random.get_rng_state()
    found = list(loader(Numbers([0] * 4), 0, 4, 12, 4, rank=1, world=2))
    assert [b["position"].tolist() for b in found] == [[6, 7], [10, 11]]
    assert torch.equal(before, torch.random.get_rng_state())
    with pytest.raises(UserError, match="does not divide by 3 processes"):
        loader(Numbers([0] * 4), 0, 0, 4, 4, world=3)
    with pytest.raises(UserError, match="holds no sample"):
        loader(Numbers([]), 0, 0, 4, 4)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], *names: str) -> bool:
    return all(torch.equal(one[name], other[name]) for name in names or one)


def test_puppet_clips_depend_on_index_and_epoch_only() -> None:
    data = Data(size=(32, 32), clips=5)
    clips = open_dataset(data, 2)
    first = clips[3, 0]
    assert len(clips) == 5 and same(first, clips[3, 0])
    assert {name: tuple(t.shape) for name, t in first.items()} == {
        "frames": (2, 32, 32, 3),
        "pose": (2, 32, 32, 3),
        "character": (2, 32, 32),
        "mask": (2, 32, 32),
        "reference": (32, 32, 3),
    }
    assert all(t.dtype == torch.uint8 for t in first.values())
    assert not torch.equal(first["frames"], clips[4, 0]["frames"])
    assert not torch.equal(first["reference"], clips[3, 1]["reference"])
    assert torch.equal(first["reference"], clips.reference(3, 0))
    box = open_dataset(replace(data, mask="box"), 2)[3, 0]
    assert same(first, box, "frames", "pose", "character", "reference")
    assert not torch.equal(first["mask"], box["mask"])
    other = open_dataset(replace(data, split="heldout"), 2)[3, 0]
    assert not torch.equal(first["frames"], other["frames"])
    # Nine frames and more follow each other, so neighbours differ less than frames picked at random.
    longer = open_dataset(data, 9)[3, 0]["frames"].float()
    assert (longer[1:] - longer[:-1]).abs().mean() < (longer[4:] - longer[:-4]).abs().mean()


def test_every_kind_of_mask_covers_the_character() -> None:
    clip = {}
    for name, change in {
        "exact": {"augment": False},
        "fine": {},
        "box": {"mask": "box"},
        "block": {"mask": "block"},
        "some boxes": {"box_share": 1.0},
    }.items():
        sample = open_dataset(replace(Data(size=(48, 64)), **change), 3)[1, 0]
        clip[name] = sample["mask"]
        assert clip[name][sample["character"] > 0].min() == 255 and set(clip[name].unique().tolist()) <= {0, 255}
    assert torch.equal(clip["exact"], sample["character"])
    areas = {name: int((mask > 0).sum()) for name, mask in clip.items()}
    assert areas["exact"] < areas["fine"] and areas["exact"] < areas["block"] < areas["box"] == areas["some boxes"]


def test_windows_keep_the_person_and_the_proportions() -> None:
    assert nearest_bucket((1920, 1080), [(576, 1024), (1024, 576), (768, 768)]) == (1024, 576)
    boxes = [(900, 300, 1000, 700), (700, 320, 820, 720)]
    x0, y0, x1, y1 = person_window(boxes, (1920, 1080), (576, 1024))
    assert 0 <= x0 <= 700 and x1 >= 1000 and x1 <= 1920 and 0 <= y0 <= 300 and 720 <= y1 <= 1080
    assert abs((x1 - x0) / (y1 - y0) - 576 / 1024) < 0.01
    # Wider than the window can be: still inside the picture, around the middle.
    x0, y0, x1, y1 = person_window([(100, 10, 1900, 1000)], (1920, 1080), (576, 1024))
    assert (y0, y1) == (0, 1080) and abs((x0 + x1) / 2 - 1000) <= 1
    # A distant person is not lost in the scene.
    x0, y0, x1, y1 = person_window([(950, 500, 970, 560)], (1920, 1080), (512, 512))
    assert x1 - x0 == y1 - y0 == 150
    picture = np.full((20, 10, 3), 200, np.uint8)
    window = figure_window((0, 0, 10, 20), (32, 32), margin=0.1)
    assert window[2] - window[0] == window[3] - window[1] == 24 and window[0] == -7
    shown = cut(picture, window, (24, 24))
    assert mask_box(shown[..., 0] > 0) == (7, 2, 17, 22) and (shown[2:22, 7:17] == 200).all()


def test_poses_follow_crop_and_mirror_as_the_pictures_do() -> None:
    character = sample_character(1)
    clip = render(character, sample_motion(1, 1, character.proportions), sample_scene(1), (96, 96))
    pose = next(clip.poses().keypoints())
    pose["people"][0][BOX] = [10.0, 20.0, 1.0, 40.0, 80.0, 1.0]
    pose["people"][0][HANDS[0]] = [30.0, 40.0, 1.0] * 21
    window = (8, 16, 72, 80)
    (small,) = cut_poses(parse_poses(pose), window, (32, 32)).keypoints()
    assert (small["canvas_width"], small["canvas_height"]) == (32, 32)
    points, before = (np.reshape(p["people"][0][BODY], (18, 3)) for p in (small, pose))
    assert np.allclose(points[:, :2], (before[:, :2] - (8, 16)) / 2) and (points[:, 2] == before[:, 2]).all()
    (flipped,) = mirror_poses(parse_poses(pose)).keypoints()
    body = np.reshape(flipped["people"][0][BODY], (18, 3))
    assert np.allclose(body[4, 0], 96 - before[7, 0]) and np.allclose(body[4, 1], before[7, 1])
    assert flipped["people"][0][BOX] == [56.0, 20.0, 1.0, 86.0, 80.0, 1.0]
    assert flipped["people"][0][HANDS[0]] is None and flipped["people"][0][HANDS[1]][0] == 66.0
    (again,) = mirror_poses(parse_poses(flipped)).keypoints()
    assert all(np.allclose(again["people"][0][k] or 0, pose["people"][0].get(k) or 0) for k in again["people"][0])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    folder = tmp_path_factory.mktemp("shards")
    return folder, write_folder(folder, {"a": [12, 6], "b": [9], "c": [10]})


def test_any_frame_is_read_by_itself(shards: tuple[Path, list[np.ndarray]]) -> None:
    folder, frames = shards
    clips = open_shards(folder)
    assert [clip.frames for clip in clips] == [12, 6, 9, 10]
    for clip, truth in zip(clips, frames, strict=True):
        every, masks = clip.pictures(range(clip.frames)), clip.masks(range(clip.frames))
        error = np.square(every.astype(float) - truth).mean()
        assert 10 * np.log10(255**2 / error) > 38
        assert set(np.unique(masks)) == {0, 255}
        for chosen in ([0], [clip.frames - 1], [3, 5], [1, 2, 4]):
            assert (clip.pictures(chosen) == every[chosen]).all() and (clip.masks(chosen) == masks[chosen]).all()
            assert clip.poses(chosen).size == (64, 64) and len(clip.poses(chosen)) == len(chosen)


def test_shard_clips_are_samples(shards: tuple[Path, list[np.ndarray]]) -> None:
    folder, _ = shards
    data = Data(source="shards", path=str(folder), augment=False)
    train, held_out = open_dataset(data, 4), open_dataset(replace(data, split="heldout"), 4)
    assert {clip.video for clip in train.clips} | {clip.video for clip in held_out.clips} == {"a", "b", "c"}
    assert train.videos == 2 and held_out.videos == 1 and len(train) == len(train.clips)
    sample = train[0, 5]
    assert same(sample, train[0, 5]) and not torch.equal(sample["frames"], train[0, 6]["frames"])
    assert {name: tuple(t.shape) for name, t in sample.items()} == {
        "frames": (4, 64, 64, 3),
        "pose": (4, 64, 64, 3),
        "character": (4, 64, 64),
        "mask": (4, 64, 64),
        "reference": (64, 64, 3),
    }
    assert torch.equal(sample["mask"], sample["character"]) and sample["pose"].any()
    assert torch.equal(sample["reference"], train.reference(0, 5))
    # The reference is elsewhere in the same video, cut out and large.
    origin = train.origin(0, 5)
    clip = train.clips[0]
    offers = sorted(
        abs(c.start + n - (origin["first_frame"] + 2))
        for c in train.clips
        if c.video == clip.video
        for n in c.references
    )
    assert abs(origin["reference_frame"] - (origin["first_frame"] + 2)) >= offers[len(offers) // 2]
    shown = mask_box(sample["reference"].numpy().max(2) > 0)
    assert max(shown[2] - shown[0], shown[3] - shown[1]) > 40
    assert (sample["reference"] == 0).all(2).float().mean() > 0.3
    scene = open_dataset(replace(data, reference="picture"), 4)[0, 5]["reference"]
    assert (scene == 0).all(2).float().mean() < 0.3


def test_shard_clips_are_cropped_around_the_person_and_mirrored(shards: tuple[Path, list[np.ndarray]]) -> None:
    folder, _ = shards
    data = Data(source="shards", path=str(folder), augment=False)
    narrow = open_dataset(replace(data, size=(32, 64)), 2)
    for index in range(len(narrow)):
        sample, whole = narrow[index, 0], open_dataset(data, 2)[index, 0]
        assert sample["frames"].shape == (2, 64, 32, 3) and sample["pose"].shape == (2, 64, 32, 3)
        # Of the person about as much is seen as in the whole picture.
        share = sample["character"].float().mean() / 2 / whole["character"].float().mean()
        assert share > 0.8
        inside = sample["character"].bool()
        joints = sample["pose"].amax(-1) > 0
        assert (joints & inside).sum() > 0.5 * joints.sum()
    flipped, plain = (open_dataset(replace(data, flip=flip), 2)[0, 0] for flip in (1.0, 0.0))
    for name in ("frames", "character"):
        assert torch.equal(flipped[name].flip(2), plain[name])
    assert torch.equal(flipped["reference"].flip(1), plain["reference"])


def test_strides_lengths_and_sizes_make_samples_and_buckets(tmp_path: Path, shards, caplog) -> None:
    folder, _ = shards
    data = Data(source="shards", path=str(folder))
    assert all(clip.frames >= 9 for clip in open_dataset(replace(data, stride=4), 3).clips)
    with pytest.raises(UserError, match=r"no clip of 21 frames \(21, 1 apart\), the longest has"):
        open_dataset(data, 21)
    with pytest.raises(UserError, match="names no folder"):
        open_dataset(replace(data, path=None), 1)
    with pytest.raises(UserError, match="holds no prepared videos"):
        open_dataset(replace(data, path=str(tmp_path)), 1)
    write_folder(tmp_path, {"only": [8]})
    alone = open_dataset(replace(data, path=str(tmp_path)), 1)
    assert len(alone) == 1 and alone.videos == 1 and "a single video" in caplog.text
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    other = tmp_path / "two_sizes"
    other.mkdir()
    (other / "000000.tar").symlink_to(folder / "000000.tar")
    rows[-1]["clips"][0]["size"] = [64, 96]
    write_lines(other / "manifest.jsonl", rows)
    assert open_dataset(replace(data, path=str(other)), 1).buckets == [0, 1]
    assert open_dataset(replace(data, path=str(other), size=(32, 32)), 1).buckets == [0, 0]


def test_missing_and_torn_shards_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": [4], "b": [4]})
    data = Data(source="shards", path=str(tmp_path))
    clips = open_dataset(data, 2)
    shard = tmp_path / "000000.tar"
    whole = shard.read_bytes()
    offset, size = clips.clips[0].members["mp4"]
    shard.write_bytes(whole[:offset] + bytes(size) + whole[offset + size :])
    with pytest.raises(UserError, match=r"000000\.tar is damaged in b_000000\.mp4: restore it from a copy"):
        clips[0, 0]
    shard.write_bytes(whole[:-20000])
    with pytest.raises(UserError, match=r"000000\.tar is cut short.*prepare_dataset again"):
        open_dataset(data, 2)
    with pytest.raises(UserError, match=r"000000\.tar is (cut short|damaged)"):
        clips[0, 0]
    shard.unlink()
    with pytest.raises(UserError, match=r"000000\.tar is missing"):
        open_dataset(data, 2)
    with pytest.raises(UserError, match=r"000000\.tar"):
        next(loader(clips, 0, 0, 1, 1, workers=1))


def test_webdataset_reads_the_shards(shards: tuple[Path, list[np.ndarray]]) -> None:
    webdataset = needs.installed("webdataset")
    samples = list(webdataset.WebDataset(str(shards[0] / "000000.tar"), shardshuffle=False))
    clips = open_shards(shards[0])
    assert [sample["__key__"] for sample in samples] == [clip.key for clip in clips]
    for sample, clip in zip(samples, clips, strict=True):
        assert all(sample[kind] == clip.read(kind) for kind in ("mp4", "mask.mkv", "pose.jsonl", "json"))
