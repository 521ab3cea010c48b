"""The training loop: what it leaves, averages, validates and goes on from, and bad input in one sentence."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import needs
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_training import recipe, write
from training_runs import CONFIGS, clips, fresh, log, train
from training_runs import own_precision as own_precision
from waiting import PATIENCE

from anycharv_core import Pipeline
from training import checkpoints, objective, speed
from training.config import Objective, Phase
from training.config_file import parse, read_config
from training.ema import Ema
from training.loop import rate
from training.train import main
from training.trainee import Trainee


def test_accumulation_is_a_bigger_batch(tmp_path: Path) -> None:
    options = {"batch": 4, "lr": 1e-3, "steps": 3}
    whole, portions = (train(tmp_path, str(n), accumulate=n, **options) for n in (1, 4))
    for one, other in zip(log(whole), log(portions), strict=True):
        for key in ("loss", "character", "norm"):
            assert other[key] == pytest.approx(one[key], rel=1e-4), (one["step"], key)


@pytest.mark.parametrize(("name", "shape"), [("frames", (3, 4, 8, 8, 3)), ("latents", (3, 4, 16, 2, 2))])
def test_every_frame_is_an_image_a_second_encoded_or_not(
    name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10))
    monkeypatch.setattr(speed, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    meter = speed.Meter(torch.device("cpu"))
    meter.count({"position": torch.arange(3), name: torch.zeros(shape)})
    assert meter.read()["images_per_second"] == 12


def test_what_it_leaves(tmp_path: Path) -> None:
    changes = {"export": {"layout": "both", "dtype": "fp16"}, "keep": 3, "save_every": 1, "cache": {"variants": 1}}
    folder = train(tmp_path, "run", **changes)
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000005", "step-00000006"]
    weights = load_file(folder / "weights.safetensors")
    for path in (folder / "model.safetensors", folder / "model"):
        own = Pipeline.from_pretrained(path).backend.networks.denoising_unet.conv_in.weight
        torch.testing.assert_close(own, weights["denoising_unet.conv_in.weight"].half().float())
    # The average, not the last step's.
    last = load_file(folder / "checkpoints" / "step-00000006" / "model.safetensors")
    assert not torch.equal(last["denoising_unet.conv_in.weight"], weights["denoising_unet.conv_in.weight"])
    assert not any(name.startswith("vae.") for name in last)
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["phases"]["compose"]["keep"] == 3
    assert parse(saved) == read_config(tmp_path / "run.config" / "recipe.yaml")
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert [row["step"] for row in record["log"]["compose"]] == [1, 2, 3, 4, 5, 6]


def test_the_moving_average() -> None:
    p = torch.nn.Parameter(torch.zeros(2))
    ema, expected = Ema([p], 0.5), torch.zeros(2)
    for step in range(30):
        p.data = torch.full((2,), float(step))
        ema.update(step)
        decay = min(0.5, step / (step + 10))
        expected = decay * expected + (1 - decay) * step
    torch.testing.assert_close(ema.average[0], expected)
    with ema.swapped():
        torch.testing.assert_close(p.data, expected)
    assert p.data.tolist() == [29, 29]


def test_validation_changes_nothing(tmp_path: Path) -> None:
    without = train(tmp_path, "without", steps=4)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    held_out = {"every": 2, "clips": 2, "sheet": 1, "steps": 1, "guidance": 2.0, "timesteps": [100, 999]}
    checked = train(tmp_path, "with", validate=held_out, steps=4)
    state = copy.deepcopy(before)
    one, other = (load_file(folder / "weights.safetensors") for folder in (without, checked))
    assert all(torch.equal(one[name], other[name]) for name in one)
    rows = [row for row in log(checked) if "held_out" in row]
    assert len(rows) == 2 and rows[0]["held_out"] != rows[-1]["held_out"]
    assert rows[0].keys() >= {"held_out/100", "held_out/999"}
    assert len(list((checked / "sheets").glob("*.png"))) == 2
    assert (np.random.get_state()[1] == state[1]).all()


def test_validation_draws_from_no_global_generator() -> None:
    trainee = Trainee(fresh(), Objective(), False, 0, "x")
    before = torch.get_rng_state()
    with torch.no_grad():
        first, again = (trainee(clips(1), task="held_out", timesteps=(10, 999)) for _ in range(2))
        made = trainee(clips(1), task="sample", steps=2, guidance=2.0)
    assert torch.equal(first, again) and first.shape == (1, 2)
    assert made.shape == (1, 2, 3, 16, 16) and torch.equal(before, torch.get_rng_state())


def test_guidance_is_on_above_one_as_in_the_pipeline() -> None:
    trainee = Trainee(fresh(), Objective(), False, 0, "x")
    with torch.no_grad():
        none, half, one, two = (
            trainee(clips(1), task="sample", steps=2, guidance=g) for g in (0.0, 0.5, 1.0, 2.0)
        )
    assert torch.equal(none, one) and torch.equal(half, one) and not torch.equal(two, one)


def test_half_precision(tmp_path: Path) -> None:
    config = recipe(steps=2)
    config["engine"]["precision"] = "bf16"
    assert main([str(write(tmp_path, config)), "--out", str(tmp_path / "run"), "--cpu"]) == 0
    weights = load_file(tmp_path / "run" / "compose" / "weights.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float32}


def test_a_finished_phase_says_how_it_goes_on(tmp_path: Path, capsys) -> None:
    args = [str(write(tmp_path, recipe(steps=2))), "--out", str(tmp_path / "run"), "--cpu"]
    assert main(args) == 0
    weights = tmp_path / "run" / "compose" / "weights.safetensors"
    log = weights.with_name("log.jsonl")
    steps = len(log.read_text().splitlines())
    capsys.readouterr()
    longer = [*args, "--set", "phases.compose.steps=3"]
    assert main(longer) == 0
    assert f"to go on with more steps, remove {weights}." in capsys.readouterr().out
    assert len(log.read_text().splitlines()) == steps
    weights.unlink()
    assert main(longer) == 0
    assert len(log.read_text().splitlines()) > steps and weights.exists()


def test_the_learning_rate() -> None:
    cosine = Phase(steps=100, lr=1e-2, warmup=10, schedule="cosine")
    rates = [rate(cosine, step) for step in range(100)]
    assert int(np.argmax(rates)) in range(8, 12) and rates[0] < 0.2 * max(rates)
    assert rates[-1] == pytest.approx(0.1 * cosine.lr, rel=0.05)
    assert [rate(Phase(steps=9, lr=2.0, warmup=2), step) for step in (0, 1, 8)] == [1.0, 2.0, 2.0]


def test_a_lora_phase(tmp_path: Path) -> None:
    needs.installed("peft")
    config = recipe(steps=2)
    config["phases"]["lora"] = config["phases"]["compose"] | {"train": [], "lora": {"rank": 2}}
    out = tmp_path / "run"
    assert main([str(write(tmp_path, config)), "--out", str(out), "--cpu"]) == 0
    folder = out / "lora"
    before, after = (load_file(out / name / "model.safetensors") for name in ("compose", "lora"))
    key = "denoising_unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert before.keys() == after.keys() and not torch.equal(before[key], after[key])
    assert (folder / "pytorch_lora_weights.safetensors").exists()
    weights = load_file(folder / "weights.safetensors")
    assert key in weights and all(name.endswith("weight") and "lora" not in name for name in weights)


def fails(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    last = said.splitlines()[-1]
    assert last.startswith("training: ")
    return last


def test_a_nan_loss_stops_before_the_weights_are_spoiled(tmp_path: Path, capsys, monkeypatch) -> None:
    def spoilt(*args: Any) -> dict[str, torch.Tensor]:
        losses = objective_loss(*args)
        spoilt.calls += 1
        return losses | {"loss": losses["loss"] * float("nan")} if spoilt.calls == 6 else losses

    spoilt.calls, objective_loss = 0, objective.loss
    monkeypatch.setattr(objective, "loss", spoilt)
    config = write(tmp_path, recipe())
    said = fails(capsys, str(config), "--out", str(tmp_path / "run"), "--cpu")
    assert "compose: the loss of step 6 is nan; the checkpoint after step 4 is kept" in said
    assert checkpoints.newest(tmp_path / "run" / "compose" / "checkpoints")[0] == 4


FULL_DISK = """
import resource, sys
from training import checkpoints, train
real = checkpoints.save
def save(accelerator, folder, step, keep):
    if step == 4:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    real(accelerator, folder, step, keep)
checkpoints.save = save
sys.exit(train.main(sys.argv[1:]))
"""


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    config = write(tmp_path, recipe())
    command = [sys.executable, "-c", FULL_DISK, str(config), "--out", str(tmp_path / "run"), "--cpu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CONFIGS.parents[1], timeout=PATIENCE)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith("training: Cannot write"), done.stderr
    assert "Traceback" not in done.stderr
    states = tmp_path / "run" / "compose" / "checkpoints"
    assert [path.name for path in states.iterdir()] == ["step-00000002"]
    assert checkpoints.newest(states)[0] == 2


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys) -> None:
    config = write(tmp_path / "config", recipe())
    assert main([str(config), "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "compose: diffusion, 6 steps of 2 clips of 2 frames" in said and "8 clips from puppets" in said
    assert [path.name for path in tmp_path.iterdir()] == ["config"]


def test_what_a_phase_has_no_networks_for_is_said_before_it_trains(tmp_path: Path, capsys) -> None:
    without = recipe(export={"parts": ["denoising_unet", "object_guider"]})
    other = recipe(task="codec")
    other["networks"]["vae"] = {"block_out_channels": [8, 8], "norm_num_groups": 4, "layers_per_block": 1}
    for config, said in ((without, "export.parts' names object_guider"), (other, "has AutoencoderKL: leave")):
        assert main([str(write(tmp_path / "config", config)), "--out", str(tmp_path / "run"), "--cpu"]) == 2
        assert said in capsys.readouterr().err
        assert not list(tmp_path.glob("run/compose/weights*"))
