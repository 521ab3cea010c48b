"""The paper's ablation, in small: every step of the command, and a table that says what was expected."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import tiny_animate2
import torch
from tiny_training import PHASE, recipe, write
from training_runs import own_precision as own_precision

from anycharv_core import Pipeline
from anycharv_core.checkpoints.networks import untrained
from anycharv_core.inference.backend import DEPTH, OBJECTS
from anycharv_core.systems.animate_anyone_2 import ANIMATE_ANYONE_2
from training import ablate, ablate_animate2, objective
from training.config_file import read_config
from training.stop import Stop

Capture = pytest.CaptureFixture[str]


def small() -> dict:
    """A recipe with the phases of the embedded model's, of a few steps."""
    config = recipe(steps=2)
    config["data"] |= {"world": "bold", "context": [0.02, 0.1]}
    config["settings"] = {"size": [16, 16], "pose_scale": 4, "steps": 1, "guidance_scale": 1.0}
    first = {"codec": {"task": "codec", "batch": 8, "frames": 1}}
    first |= {"decoder": {"task": "decoder", "steps": 1, "batch": 2, "frames": 1}}
    pairs = {"task": "pairs", "frames": 2, "pairs": {"pairs": 4, "steps": 1, "guidance": 1.0}}
    boost = PHASE | {"train": ["spatial"], "data": {"source": "pairs", "made_by": "pairs", "mask": "box"}}
    config["phases"] = first | config["phases"] | {"pairs": pairs, "boost": boost}
    for phase in config["phases"].values():
        phase["export"] = {"layout": "single"}
    return config


def test_the_variants_are_trained_and_scored(tmp_path: Path, monkeypatch, capsys) -> None:
    path, out = write(tmp_path, small()), tmp_path / "out"
    changes = ["data.clips=8", "phases.decoder.steps=1", "phases.compose.steps=2", "phases.boost.steps=2"]
    changes += ["phases.pairs.pairs.pairs=4", "engine.cache.variants=0"]
    words = ["ablate", "--out", str(out), "--config", str(path), "--seeds", "0", "--clips", "2"]
    words += ["--only", ablate.OURS, "without self-boost", *(f"--set={change}" for change in changes)]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(ablate, "SIZE", 64)
    assert ablate.main() == 0
    said = capsys.readouterr().out
    assert said.index(ablate.HYPOTHESIS) < said.index("| variant |")
    report = json.loads((out / "ablation.json").read_text())
    assert report["hypothesis"] == ablate.HYPOTHESIS
    assert {ablate.OURS, "without self-boost", "copy driving"} <= set(report["variants"])
    assert len(report["variants"][ablate.OURS]["character PSNR"]["0"]) == 2
    assert (out / "sheet.png").exists()
    # Stage one is shared.
    assert sorted(p.name for p in (out / "seed_0").iterdir()) == ["seg_box__ours", "seg_box__ours_boost"]


@pytest.mark.parametrize("name", ablate.VARIANTS)
def test_every_variant_is_a_recipe(name: str) -> None:
    variant = ablate.VARIANTS[name]
    config = read_config(ablate.CONFIG, [*ablate.SHORT, *variant.first, *variant.second])
    assert config.phases["compose"].steps == 8000
    assert config.phases["boost"].data.mask == ("fine" if variant.fine and variant.boost else "box")


def test_the_difference_to_ours_is_over_the_same_clips() -> None:
    ours, other = ({ablate.PSNR: {0: [low, low + 1], 1: [low + 2]}} for low in (10.0, 11.5))
    assert ablate.less(other, ours, ablate.PSNR) == {"mean": 1.5, "low": 1.5, "high": 1.5, "clips": 3}


def animate2(out: Path, steps: int) -> list[str]:
    """A command line on which next to nothing is learned."""
    few = (f"steps={steps}", "batch=1", "frames=2", "data.clips=2")
    changes = [f"phases.{phase}.{change}" for phase in ("frames", "clips") for change in few]
    words = ["ablate", "--paper", "animate2", "--out", str(out), "--seeds", "0"]
    return words + [f"--set={change}" for change in (*changes, "engine.workers=0")]


def test_animate_anyone_2_is_ablated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    words = [*animate2(tmp_path / "out", steps=1), "--clips", "1"]
    names = [ablate_animate2.OURS, ablate_animate2.MERGED, ablate_animate2.UNCARRIED]
    monkeypatch.setattr(sys, "argv", [*words, "--only", *names])
    assert ablate.main() == 0
    said = capsys.readouterr().out
    assert said.index(ablate_animate2.HYPOTHESIS) < said.index("| variant |")
    report = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert report["hypothesis"] == ablate_animate2.HYPOTHESIS and list(report["variants"])[:3] == names
    choices = [report["variants"][name]["object choice"]["0"] for name in names]
    assert [len(each) for each in choices] == [1, 1, 1]
    # The last one begins as the first did.
    first, last = (tmp_path / "out" / "seed_0" / name / "frames" for name in ("full", "no_carried_frame"))
    assert (first / "model.safetensors").read_bytes() == (last / "model.safetensors").read_bytes()
    monkeypatch.setattr(sys, "argv", [*words, "--only", "fuller"])
    assert ablate.main() == 2 and "There is no variant 'fuller'" in capsys.readouterr().err


def test_stopped_it_begins_no_other_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """The trainer, which saves what it has, takes Ctrl-C for the end of a phase."""
    monkeypatch.setattr(sys, "argv", [*animate2(tmp_path, steps=2), "--train-only"])
    monkeypatch.setattr(Stop, "now", lambda self: True)
    assert ablate.main() == 130
    said = capsys.readouterr()
    assert "run again to go on" in said.out and said.err.endswith("ablate: stopped; the same command goes on.\n")
    assert [path.name for path in (tmp_path / "seed_0").iterdir()] == ["full"]


@pytest.mark.parametrize("name", ablate_animate2.VARIANTS)
def test_every_variant_of_animate_anyone_2_is_a_recipe(name: str) -> None:
    variant = ablate_animate2.VARIANTS[name]
    config = read_config(ablate_animate2.CONFIG, [*ablate_animate2.SHORT, *variant.changes])
    last = config.phases["clips"]
    assert (DEPTH in last.data.conditions) == (variant.without != DEPTH)
    branch = OBJECTS in last.data.conditions and not last.objective.object_input
    assert branch == (variant.without != OBJECTS)


def test_a_model_without_depth_is_one_of_its_system(tmp_path: Path) -> None:
    made = Pipeline.from_pretrained(ablate_animate2.write_without_depth(tmp_path / "a.safetensors"))
    assert made.backend.extras == {OBJECTS} and made.system is ANIMATE_ANYONE_2


def test_objects_without_a_branch_stay_in_the_scene() -> None:
    nets = untrained(tiny_animate2.configs())
    given = {name: torch.from_numpy(value)[None] for name, value in tiny_animate2.inputs(2).items()}
    batch = given | {"frames": given["scene"], "character": given["mask"], "reference": given["reference"]}
    with_branch = objective.encode_batch(nets, batch)
    asked = objective.encode_batch(nets, batch, object_input=True)
    nets.object_guider = None
    merged = objective.encode_batch(nets, batch)
    inside = with_branch["mask"] > merged["mask"]
    assert inside.any() and not torch.equal(merged["scene"], with_branch["scene"])
    assert torch.equal(merged["scene"], asked["scene"]) and torch.equal(merged["mask"], asked["mask"])
    assert "objects" not in asked and "holds" not in asked
    bare = objective.encode_batch(nets, {name: value for name, value in batch.items() if name != "objects"})
    assert torch.equal(bare["scene"], with_branch["scene"]) and torch.equal(bare["mask"], with_branch["mask"])
