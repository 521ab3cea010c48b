"""Self-boosting pairs: made by the first-stage model, resumable, and read back as training samples."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import needs
import numpy as np
import pytest
import torch
import yaml

from anycharv_core.errors import UserError
from anycharv_core.inference.finish import paste_weights
from training.commands import LOCK
from training.config import Data, Pairs
from training.data.pairs import PairClips, read_pairs
from training.data.samples import loader
from training.data.sources import open_dataset
from training.prepare import pairs as maker
from training.prepare.pairs import Job, make_pairs, unfinished
from training.prepare.parallel import run_all

DATA = Data(clips=6, size=(32, 32), seed=3)
FRAMES = 2


@pytest.fixture(scope="module")
def job(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Five pairs, two to a shard, all made."""
    settings = Pairs(pairs=5, per_shard=2, steps=2, guidance=2.0)
    job = Job(settings, DATA, FRAMES, 0, str(tiny_model), tmp_path_factory.mktemp("pairs") / "made")
    said: list[str] = []
    assert make_pairs(job, say=said.append)
    assert len(said) == 3
    return job


def as_pairs(job: Job) -> Data:
    return replace(DATA, source="pairs", path=str(job.out), mask="box")


def test_the_generated_clip_is_the_original_outside_the_mask(job: Job) -> None:
    pairs, changed = read_pairs(job.out), 0
    assert [pair.key for pair in pairs] == [f"{k:08d}" for k in range(5)]
    dataset = PairClips(as_pairs(job), FRAMES)
    source = open_dataset(DATA, FRAMES)
    for index, pair in enumerate(pairs):
        sample = {name: tensor.numpy() for name, tensor in dataset[index, 0].items()}
        told = pair.clip(range(FRAMES))["mask"]
        touched = np.stack([paste_weights(mask) > 0 for mask in told])
        assert np.array_equal(sample["scene"][~touched], sample["frames"][~touched])
        changed += int((sample["scene"] != sample["frames"])[told >= 128].any(axis=-1).mean() > 0.9)
        assert (sample["mask"][sample["character"] > 0] == 255).all()
        origin = pair.origin
        assert origin["driving"]["video"] != origin["partner"]["video"]
        assert len(origin["model"]) == 64 and 0 <= origin["quality"] <= 1
        driven, epoch = int(origin["driving"]["video"].split()[-1]), origin["driving"]["epoch"]
        original = source[driven, epoch]
        for key in ("frames", "pose", "character", "reference"):
            assert np.array_equal(sample[key], original[key].numpy()), key
    assert changed == 5


def test_samples_are_those_of_the_other_sources(job: Job) -> None:
    made, rendered = PairClips(as_pairs(job), 1)[0, 0], open_dataset(DATA, 1)[0, 0]
    assert made.keys() == rendered.keys() | {"scene"}
    for key, value in rendered.items():
        assert made[key].shape == value.shape and made[key].dtype == value.dtype, key


def test_a_place_in_the_clip_and_a_box_of_its_own_every_epoch(job: Job) -> None:
    dataset = PairClips(replace(as_pairs(job), padding=(0.0, 0.6)), 1)
    first = [dataset[0, epoch] for epoch in range(8)]
    again = [dataset[0, epoch] for epoch in range(8)]
    assert all(
        torch.equal(a["frames"], b["frames"]) and torch.equal(a["mask"], b["mask"])
        for a, b in zip(first, again, strict=True)
    )
    assert len({a["frames"].numpy().tobytes() for a in first}) == 2
    assert len({a["mask"].numpy().tobytes() for a in first}) > 2


def test_fewer_pairs_than_a_batch_still_train(job: Job) -> None:
    batches = list(loader(PairClips(as_pairs(job), 1), 0, 0, 24, 8))
    assert [len(batch["frames"]) for batch in batches] == [8, 8, 8]
    seen = [(int(i), int(e)) for batch in batches for i, e in zip(batch["index"], batch["epoch"], strict=True)]
    assert len(set(seen)) == 24 and {i for i, e in seen if e == 0} == set(range(5))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LOCK}


def test_an_interrupted_run_makes_only_what_is_missing(job: Job, tmp_path: Path, monkeypatch) -> None:
    stopped = replace(job, out=tmp_path / "stopped")
    assert not make_pairs(stopped, stop=lambda: True, say=lambda line: None)
    # Killed while it wrote: a shard without an index, and a temporary file.
    (stopped.out / "000001.tar").write_bytes(b"torn")
    (stopped.out / ".writing-0123.tar").write_bytes(b"torn")
    assert unfinished(stopped) == [1, 2]
    before = (stopped.out / "000000.tar").stat().st_mtime_ns
    assert make_pairs(stopped, say=lambda line: None)
    assert (stopped.out / "000000.tar").stat().st_mtime_ns == before
    (stopped.out / ".writing-0123.tar").unlink()
    assert content(stopped.out) == content(job.out)

    def never(job: Job, number: int) -> str:
        raise AssertionError(number)

    monkeypatch.setattr(maker, "make_shard", never)
    assert make_pairs(stopped, say=lambda line: None)


def test_processes_side_by_side_make_the_same(job: Job, tmp_path: Path) -> None:
    shared = replace(job, out=tmp_path / "shared")
    assert not make_pairs(shared, share=(0, 2), say=lambda line: None)
    assert make_pairs(shared, share=(1, 2), say=lambda line: None) is False or unfinished(shared) == []
    assert make_pairs(shared, say=lambda line: None)
    assert content(shared.out) == content(job.out)


def test_more_pairs_are_added_to_a_folder(job: Job, tmp_path: Path) -> None:
    fewer = replace(job, out=tmp_path / "more", settings=replace(job.settings, pairs=3))
    assert make_pairs(fewer, say=lambda line: None)
    assert len(read_pairs(fewer.out)) == 3
    assert make_pairs(replace(fewer, settings=job.settings), say=lambda line: None)
    assert content(fewer.out) == content(job.out)
    other = replace(job, out=fewer.out, seed=1)
    with pytest.raises(UserError, match="another folder"):
        make_pairs(other)


def test_bad_pairs_are_left_out_when_asked(job: Job, tmp_path: Path) -> None:
    qualities = sorted(pair.origin["quality"] for pair in read_pairs(job.out))
    least = (qualities[1] + qualities[2]) / 2
    strict = replace(job, out=tmp_path / "strict", settings=replace(job.settings, min_quality=least))
    said: list[str] = []
    assert make_pairs(strict, say=said.append)
    assert len(read_pairs(strict.out)) == 3
    assert sum("left" in line for line in said) >= 1


def test_what_is_missing_or_damaged_is_named(job: Job, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make_pairs"):
        PairClips(replace(as_pairs(job), path=str(tmp_path)), 1)
    with pytest.raises(UserError, match="2 frames, but the phase asks for 3"):
        PairClips(as_pairs(job), 3)
    for name, file in content(job.out).items():
        (tmp_path / name).write_bytes(file[: len(file) // 3] if name == "000001.tar" else file)
    torn = PairClips(replace(as_pairs(job), path=str(tmp_path)), FRAMES)
    with pytest.raises(UserError, match=r"000001\.tar"):
        [torn[index, 0] for index in (2, 3)]
    (tmp_path / "000001.tar").unlink()
    with pytest.raises(UserError, match=r"000001\.tar is missing"):
        PairClips(replace(as_pairs(job), path=str(tmp_path)), 1)
    with pytest.raises(UserError, match="at least two videos"):
        make_pairs(replace(job, data=replace(DATA, clips=1), out=tmp_path / "one"), say=lambda line: None)


def test_the_command(job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {
        "networks": {},
        "phases": {
            "pairs": {
                "task": "pairs",
                "frames": FRAMES,
                "data": {"clips": 6, "size": [32, 32], "seed": 3},
                "pairs": {"pairs": 100, "per_shard": 2, "steps": 2, "guidance": 2.0},
            }
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [str(path), "--model", job.model, "--out", str(tmp_path / "out"), "--pairs", "5"]
    assert maker.main(command) == 0
    assert content(tmp_path / "out") == content(job.out)
    for wrong in (["--phase", "nothing"], ["--set", "phases.pairs.pairs.stepz=1"], ["--pairs", "0"]):
        assert maker.main([*command, *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def squared(x: int) -> int:
    return x * x


def test_all_backends_give_the_same_results(monkeypatch) -> None:
    expected = [x * x for x in range(7)]
    assert list(run_all(squared, range(7))) == expected
    assert sorted(run_all(squared, range(7), workers=2)) == expected


def test_ray_gives_the_same_pairs(job: Job, tmp_path: Path) -> None:
    ray = needs.installed("ray", (2, 9))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        far = replace(job, out=tmp_path / "far")
        assert make_pairs(far, workers=1, ray=True, say=lambda line: None)
        assert content(far.out) == content(job.out)
        assert json.loads((far.out / "pairs.json").read_bytes())["model_hash"] != ""
    finally:
        ray.shutdown()
