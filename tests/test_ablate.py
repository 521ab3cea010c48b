"""The paper's ablation, in small: every step of the command, and a table that says what was expected."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tiny_training import PHASE, recipe, write
from training_runs import own_precision as own_precision

from training import ablate
from training.config_file import read_config


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
    assert ablate.less(other, ours) == {"mean": 1.5, "low": 1.5, "high": 1.5, "clips": 3}
