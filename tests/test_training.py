"""The trainer: what each phase trains and how, what it keeps, what it says."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import needs
import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tiny_training import recipe, write
from torch.autograd.graph import saved_tensors_hooks
from waiting import PATIENCE

from anycharv_core import Pipeline
from anycharv_core.models.schedule import alphas_cumprod
from training import checkpoints, networks, objective
from training.config import Objective, Phase, parse, read_config
from training.ema import Ema
from training.loop import rate
from training.objective import clip_generator, draw, min_snr_weight
from training.train import main
from training.trainee import Trainee, choose_trained, trained_parameters

CONFIGS = Path(__file__).parents[1] / "training" / "configs"
ALL = ("denoising_unet", "reference_unet", "pose_guider")


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """A precision of the test's own, which accelerate fixes for a whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def train(tmp_path: Path, name: str = "run", *options: str, **phase: Any) -> Path:
    """The folder of the phase trained by the tiny recipe, changed by `phase`."""
    config = write(tmp_path / f"{name}.config", recipe(**phase))
    assert main([str(config), "--out", str(tmp_path / name), "--cpu", *options]) == 0
    return tmp_path / name / "compose"


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def fresh(train: tuple[str, ...] = ALL, config: dict[str, Any] | None = None, **phase: Any) -> networks.Networks:
    """Untrained tiny networks whose every part has a say in the result, with gradients for `train`."""
    nets, _ = networks.build(parse(config or recipe()), [], lambda line: None)
    generator = torch.Generator().manual_seed(1)
    for net in vars(nets).values():
        for p in net.parameters():
            if not p.any():
                p.data = 0.1 * torch.randn(p.shape, generator=generator)
    choose_trained(nets, Phase(train=train, **phase))
    return nets


def clips(count: int, frames: int = 2, **more: Any) -> dict[str, torch.Tensor]:
    """Random uint8 clips with positions, as a loader gives them."""
    rng = np.random.default_rng(0)
    shapes = {"frames": (frames, 16, 16, 3), "pose": (frames, 16, 16, 3), "reference": (16, 16, 3)}
    batch = {n: torch.from_numpy(rng.integers(0, 256, (count, *s), dtype=np.uint8)) for n, s in shapes.items()}
    for name in ("mask", "character"):
        batch[name] = torch.zeros(count, frames, 16, 16, dtype=torch.uint8)
        batch[name][..., 4:12, 4:10] = 255
    return batch | {"position": torch.arange(count)} | more


def gradients(nets: networks.Networks, batch: dict[str, torch.Tensor], cfg: Objective, motion: bool) -> dict:
    Trainee(nets, cfg, motion, 0, "test")(batch)["loss"].backward()
    return {name: p.grad for name, p in trained_parameters(nets)}


# The objective


def test_the_reference_net_gets_a_gradient_even_where_no_row_reads_it() -> None:
    """Processes that share its weights would otherwise wait for the one whose videos all go without it."""
    nets = fresh()
    encoded = objective.encode_batch(nets, clips(2))
    noisy, t = torch.randn_like(encoded["latents"]), torch.full((2,), 500)
    made = objective.predict(nets, encoded, noisy, t, 2, True)
    made.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in nets.reference_unet.conv_in.parameters())
    for p in nets.reference_unet.parameters():
        torch.nn.init.normal_(p)
    assert torch.equal(made, objective.predict(nets, encoded, noisy, t, 2, True))


def test_the_loss_is_the_papers(monkeypatch) -> None:
    """eq. 2: the network sees noisy latents, the scene with the mask cut out, and the mask; eq. 3: the
    generated clip in place of the scene. Its target is v."""
    nets, seen = fresh(), []
    monkeypatch.setattr(nets.denoising_unet, "forward", lambda x, t, *_, **__: seen.append((x, t)) or x[:, :4])
    batch = clips(3)
    scene = clips(3)["frames"].flip(0)
    for extra in ({}, {"scene": scene}):
        trainee = Trainee(nets, Objective(), False, 5, "phase")
        loss = trainee(batch | extra)["loss"]
        x, t = seen[-1]
        first, second = t.reshape(3, 2).unbind(1)
        assert torch.equal(first, second) and len(set(first.tolist())) > 1
        unit = batch["frames"].flatten(0, 1).movedim(-1, 1) / 255
        around = unit * (batch["mask"].flatten(0, 1)[:, None] == 0)
        if extra:
            around = scene.flatten(0, 1).movedim(-1, 1) / 255
        latents, hollow = (nets.vae.encode(2 * p - 1).latent_dist.mean for p in (unit, around))
        torch.testing.assert_close(x[:, 4:8], hollow)
        assert torch.equal(x[:, 8:], (batch["mask"].flatten(0, 1)[:, None, ::2, ::2] > 0).float())
        power = alphas_cumprod()[t].reshape(-1, 1, 1, 1)
        noise = torch.cat(
            [draw(Objective(), [clip_generator(5, "phase", p)], (2, 4, 8, 8), x.device).noise[0] for p in range(3)]
        )
        torch.testing.assert_close(x[:, :4], power.sqrt() * latents + (1 - power).sqrt() * noise)
        v = power.sqrt() * noise - (1 - power).sqrt() * latents
        torch.testing.assert_close(loss, (x[:, :4] - v).square().mean())


def test_the_vae_takes_few_pictures_at_a_time(monkeypatch) -> None:
    vae, batch = fresh().vae, clips(3)
    unit = batch["frames"].flatten(0, 1).movedim(-1, 1) / 255
    latents = objective.encode(vae, unit)
    made = objective.decode(vae, latents)
    taken: list[int] = []
    for name in ("encode", "decode"):
        whole = getattr(vae, name)
        monkeypatch.setattr(vae, name, lambda x, whole=whole: taken.append(len(x)) or whole(x))
    monkeypatch.setattr("anycharv_core.inference.encode.CHUNK_PIXELS", 4 * 16 * 16)
    torch.testing.assert_close(objective.encode(vae, unit), latents)
    torch.testing.assert_close(objective.decode(vae, latents), made)
    assert taken == [4, 2, 4, 2]


def test_a_clips_draws_depend_on_seed_phase_and_position_only() -> None:
    cfg, shape, cpu = Objective(drop=0.5, terminal=0.5), torch.Size((2, 4, 8, 8)), torch.device("cpu")
    together = draw(cfg, [clip_generator(0, "a", p) for p in range(16)], shape, cpu)
    for position in range(16):
        alone = draw(cfg, [clip_generator(0, "a", position)], shape, cpu)
        assert torch.equal(alone.noise[0], together.noise[position]) and alone.t[0] == together.t[position]
    other = draw(cfg, [clip_generator(0, "b", p) for p in range(16)], shape, cpu)
    assert not torch.equal(other.noise, together.noise)
    assert 3 <= int(together.dropped.sum()) <= 13 and 3 <= int((together.t == 999).sum()) <= 13


def test_weights_and_min_snr() -> None:
    t = torch.tensor([0, 300, 999])
    snr = alphas_cumprod()[t] / (1 - alphas_cumprod()[t])
    torch.testing.assert_close(min_snr_weight(t, 5.0), (snr + 1).clamp_max(5) / (snr + 1))
    assert min_snr_weight(t, 0.0).tolist() == [1, 1, 1]
    # Weighting normalises per clip, so a constant weight changes nothing and clips weigh the same.
    nets, batch = fresh(), clips(3)
    plain = Trainee(nets, Objective(), False, 0, "x")(batch)["loss"]
    nobody = batch | {"character": torch.zeros_like(batch["character"])}
    everywhere = batch | {"mask": torch.full_like(batch["mask"], 255)}
    for cfg, given in ((Objective(outside=0.25, inside=0.25), nobody), (Objective(outside=0.5), everywhere)):
        weighted = Trainee(nets, cfg, False, 0, "x")(given)["loss"]
        torch.testing.assert_close(weighted, Trainee(nets, Objective(), False, 0, "x")(given)["loss"])
    assert Trainee(nets, Objective(outside=0.25), False, 0, "x")(batch)["loss"] != plain
    each = [
        Trainee(nets, Objective(), False, 0, "x")({k: v[i : i + 1] for k, v in batch.items()})["loss"]
        for i in range(3)
    ]
    torch.testing.assert_close(plain, torch.stack(each).mean())


def test_dropped_clips_see_no_reference() -> None:
    nets, batch = fresh(), clips(4)
    other = batch | {"reference": batch["reference"].flip(0)}
    for drop, same in ((1.0, True), (0.0, False)):
        trainee = Trainee(nets, Objective(drop=drop), False, 0, "x")
        assert torch.equal(trainee(batch)["loss"], trainee(other)["loss"]) == same


@pytest.mark.parametrize("motion", [False, True])
def test_checkpointing_changes_no_gradient(motion: bool) -> None:
    cfg, batch = Objective(drop=0.4), clips(4)
    plain, again = (
        gradients(fresh((*ALL, "image_encoder"), checkpointing=on), batch, cfg, motion) for on in (False, True)
    )
    assert any(name.startswith("reference_unet") and g is not None for name, g in plain.items())
    for name, gradient in plain.items():
        assert (gradient is None) == (again[name] is None), name
        if gradient is not None:
            torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_checkpointing_keeps_fewer_activations() -> None:
    held = {}
    for on in (False, True):
        nets, kept = fresh(checkpointing=on), []
        trainee = Trainee(nets, Objective(), False, 0, "x")
        with saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            trainee(clips(2))
        held[on] = sum(kept)
    assert held[True] < 0.5 * held[False]


def test_each_phase_trains_what_the_paper_says() -> None:
    expected = {
        "compose": {"denoising_unet", "reference_unet", "pose_guider"},
        "boost": {"denoising_unet"},
        "motion": {"denoising_unet motion"},
        "boost_clips": {"denoising_unet", "denoising_unet motion"},
    }
    nets, _ = networks.build(parse(recipe()), [], lambda line: None)
    for file in ("anycharv", "embedded", "tiny"):
        config = read_config(CONFIGS / f"{file}.yaml")
        for phase, parts in expected.items():
            choose_trained(nets, config.phases[phase])
            names = [name for name, _ in trained_parameters(nets)]
            found = {n.split(".")[0] + (" motion" if "motion_modules" in n else "") for n in names}
            assert found - {"image_encoder"} == parts, (file, phase)
            assert ("image_encoder" in found) == (phase == "compose" and file != "anycharv")
            assert config.phases[phase].data.mask == ("box" if "boost" in phase else "fine")


def test_the_paper_config_has_the_papers_numbers() -> None:
    phases = read_config(CONFIGS / "anycharv.yaml").phases
    trained = {name: p for name, p in phases.items() if p.task != "pairs"}
    numbers = {name: (p.steps, p.batch, p.frames, p.lr, p.motion) for name, p in trained.items()}
    assert numbers == {
        "compose": (50_000, 64, 1, 1e-5, False),
        "boost": (3_000, 64, 1, 1e-5, False),
        "motion": (10_000, 8, 24, 1e-5, True),
        "boost_clips": (10_000, 8, 24, 1e-5, True),
    }


# The loop


def test_accumulation_is_a_bigger_batch(tmp_path: Path) -> None:
    options = {"batch": 4, "lr": 1e-3, "steps": 3}
    whole, portions = (train(tmp_path, str(n), accumulate=n, **options) for n in (1, 4))
    for one, other in zip(log(whole), log(portions), strict=True):
        for key in ("loss", "character", "norm"):
            assert other[key] == pytest.approx(one[key], rel=1e-4), (one["step"], key)


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


# Bad input, said in one sentence


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
