"""Animate Anyone's two stages by the same trainer; the public trainer's defects, of which each has a test here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_animate import V1, configs
from tiny_training import PHASE, recipe, write
from training_runs import ALL, CONFIGS, clips, gradients, log
from training_runs import fresh as untrained
from training_runs import own_precision as own_precision

from anycharv_core import Pipeline
from anycharv_core.errors import UserError
from anycharv_core.models.schedule import NoiseSchedule, alphas_cumprod
from anycharv_core.systems import read_checkpoint, system_of
from anycharv_core.systems.animate_anyone import ANIMATE_ANYONE
from training import networks
from training.config import Init, Objective
from training.config_file import read_config
from training.objective import clip_generator, draw, min_snr_weight
from training.start.initialise import initialise
from training.train import main
from training.trainee import Trainee, trained_parameters

FRAMES = ("spatial", "reference_unet", "pose_guider")
STAGES = {"frames": (FRAMES, False), "motion": (("motion",), True)}


def animating(v1: bool = False, **phase: Any) -> dict[str, Any]:
    """The tiny recipe without scene and mask: both stages, of the first or the second configuration."""
    config = recipe()
    config["networks"]["denoising_unet"] |= configs(v1)["denoising_unet"] | {
        "block_out_channels": [32, 32],
        "norm_num_groups": 8,
    }
    config["data"]["reference"] = "frame"
    config["settings"] = {"noise_scheduler_kwargs": V1.to_dict()} if v1 else {}
    common = PHASE | {"steps": 3, "export": {"layout": "folder", "dtype": "fp32"}} | phase
    config["phases"] = {
        name: common | {"train": list(train), "motion": motion} for name, (train, motion) in STAGES.items()
    }
    return config


def fresh(v1: bool, stage: str, **phase: Any) -> networks.Networks:
    """Untrained networks with gradients for what the stage trains."""
    return untrained(STAGES[stage][0], animating(v1), **phase)


def run(folder: Path, config: dict[str, Any]) -> Path:
    assert main([str(write(folder / "config", config)), "--out", str(folder), "--cpu"]) == 0
    return folder


@pytest.mark.parametrize("v1", [True, False], ids=["v1", "v2"])
def test_the_loss_is_the_papers(monkeypatch, v1: bool) -> None:
    """Noisy latents alone go in; the target is that of the schedule that inference samples on."""
    nets, seen = fresh(v1, "frames"), []
    monkeypatch.setattr(nets.denoising_unet, "forward", lambda x, t, *_, **__: seen.append((x, t)) or 0 * x)
    schedule, batch = (V1 if v1 else NoiseSchedule()), clips(3)
    loss = Trainee(nets, Objective(), False, 5, "phase", schedule)(batch)["loss"]
    (x, t), positions = seen[0], range(3)
    unit = batch["frames"].flatten(0, 1).movedim(-1, 1) / 255
    latents = nets.vae.encode(2 * unit - 1).latent_dist.mean
    draws = [draw(Objective(), [clip_generator(5, "phase", p)], (2, 4, 8, 8), x.device) for p in positions]
    noise = torch.cat([each.noise[0] for each in draws])
    power = alphas_cumprod(not v1)[t].reshape(-1, 1, 1, 1)
    torch.testing.assert_close(x, power.sqrt() * latents + (1 - power).sqrt() * noise)
    target = noise if v1 else power.sqrt() * noise - (1 - power).sqrt() * latents
    torch.testing.assert_close(loss, target.square().mean())


def test_min_snr_of_epsilon() -> None:
    t = torch.tensor([0, 300, 999])
    snr = alphas_cumprod(False)[t] / (1 - alphas_cumprod(False)[t])
    torch.testing.assert_close(min_snr_weight(t, 5.0, V1), snr.clamp_max(5) / snr)


@pytest.mark.parametrize("v1", [True, False], ids=["v1", "v2"])
@pytest.mark.parametrize("stage", STAGES)
def test_checkpointing_works_in_both_stages(v1: bool, stage: str) -> None:
    """There it raises, because checkpoint() is given keywords."""
    cfg, motion = Objective(drop=0.4), STAGES[stage][1]
    plain, again = (gradients(fresh(v1, stage, checkpointing=on), clips(3), cfg, motion) for on in (False, True))
    assert sum(gradient is not None for gradient in plain.values()) > 10
    for name, gradient in plain.items():
        if gradient is not None:
            torch.testing.assert_close(again[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_accumulation_is_a_bigger_batch(tmp_path: Path) -> None:
    """There the second portion reads the references of the first, and the way back raises."""
    whole, portions = (run(tmp_path / str(n), animating(batch=2, accumulate=n, lr=1e-3, steps=2)) for n in (1, 2))
    for stage in STAGES:
        for one, other in zip(log(whole / stage), log(portions / stage), strict=True):
            assert other["loss"] == pytest.approx(one["loss"], rel=1e-4), (stage, one["step"])


def test_every_clip_reads_its_reference_after_a_validation_too() -> None:
    """There half of each batch is trained without one, once the nets have sampled with guidance."""
    trainee, batch = Trainee(fresh(False, "frames"), Objective(), False, 0, "x"), clips(4)
    before = {name: p.clone() for name, p in trainee.state_dict().items()}
    expected = trainee(batch)["loss"]
    with torch.no_grad():
        trainee(clips(1), task="sample", steps=2, guidance=2.0)
        trainee(clips(1), task="held_out", timesteps=(10, 999))
    assert torch.equal(trainee(batch)["loss"], expected)
    assert all(torch.equal(value, before[name]) for name, value in trainee.state_dict().items())
    for clip in range(4):
        other = batch["reference"].clone()
        other[clip] = 255 - other[clip]
        assert not torch.equal(trainee(batch | {"reference": other})["loss"], expected), clip


def test_a_dropped_clip_has_the_embedding_that_inference_gives_it(monkeypatch) -> None:
    """There training shows CLIP a black picture and inference gives zeros."""
    nets, seen = fresh(False, "frames"), []
    monkeypatch.setattr(nets.denoising_unet, "forward", lambda x, t, e, *_, **__: seen.append(e) or 0 * x)
    for drop in (1.0, 0.0):
        Trainee(nets, Objective(drop=drop), False, 0, "x")(clips(2))
    assert not seen[0].any() and seen[1].any(dim=1).all()


def test_nothing_with_a_gradient_is_frozen() -> None:
    """There all of the ReferenceNet's last level is, though only what follows its last norm1 goes unread."""
    nets = fresh(False, "frames")
    chosen = {name for name, _ in trained_parameters(nets)}
    for part in ALL:
        getattr(nets, part).requires_grad_(True)
    found = gradients(nets, clips(2), Objective(), False)
    assert {name for name, gradient in found.items() if gradient is not None} == chosen


def test_frames_that_are_not_square_keep_their_proportions() -> None:
    """There width and height change places on the way to the crop."""
    from training.data.crops import cut, person_window

    picture = np.zeros((90, 160, 3), np.uint8)
    picture[30:60, 50:80] = 255
    for size in ((48, 32), (32, 48), (64, 16)):
        shown = cut(picture, person_window([(40, 20, 90, 70)], (160, 90), size), size)
        assert shown.shape[:2] == size[::-1]
        rows, columns = (np.flatnonzero((shown[..., 0] > 127).any(axis)) for axis in (1, 0))
        assert abs(len(rows) - len(columns)) <= 1 and len(rows) > 4, size


@pytest.mark.parametrize("v1", [True, False], ids=["v1", "v2"])
def test_both_stages_leave_the_published_layout(tmp_path: Path, v1: bool) -> None:
    """There nothing is saved at the end, and a fresh pose guider has a size that inference cannot load."""
    out = run(tmp_path, animating(v1, validate={"every": 3, "clips": 1, "sheet": 1, "steps": 1}))
    model = out / "motion" / "model"
    assert {path.name for path in model.glob("*.pth")} >= {"denoising_unet.pth", "motion_module.pth"}
    pipe = Pipeline.from_pretrained(model)
    assert pipe.system is ANIMATE_ANYONE and pipe.backend.schedule == (V1 if v1 else NoiseSchedule())
    assert pipe.backend.networks.denoising_unet.cfg.joint_norm == v1
    trained = load_file(out / "motion" / "weights.safetensors")
    assert trained and all("motion_modules" in name for name in trained)
    before = Pipeline.from_pretrained(out / "frames" / "model").backend.networks.denoising_unet.state_dict()
    for key, value in pipe.backend.networks.denoising_unet.state_dict().items():
        same = torch.equal(value, before[key])
        assert same or "motion_modules" in key, key
    rng = np.random.default_rng(0)
    reference, pose = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
    assert pipe(reference, pose=np.stack([pose] * 3), steps=1).frames.shape == (3, 16, 16, 3)
    assert list((out / "frames" / "sheets").glob("*.png"))
    assert [row["step"] for row in json.loads((out / "training.json").read_text())["log"]["motion"]][-1] == 3


def test_an_anycharv_model_without_its_scene_is_the_start(tiny_model: Path) -> None:
    whole = read_checkpoint(tiny_model)
    nets, made = initialise(Init(model=str(tiny_model), scene=False), None, say=lambda line: None)
    assert system_of(nets.denoising_unet.cfg) is ANIMATE_ANYONE and made["denoising_unet"]["in_channels"] == 4
    entrance = whole.weights["denoising_unet"]["conv_in.weight"]
    assert torch.equal(nets.denoising_unet.conv_in.weight, entrance[:, :4])


def test_another_schedule_than_the_models_is_named(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="another noise schedule than the recipe's: write noise_scheduler_kwargs"):
        initialise(Init(model=str(tiny_model)), None, say=lambda line: None, schedule=V1)


def test_the_config_has_the_papers_numbers() -> None:
    config = read_config(CONFIGS / "animate_anyone.yaml")
    numbers = {name: (p.steps, p.batch, p.frames, p.lr, p.motion) for name, p in config.phases.items()}
    assert numbers == {"frames": (30_000, 64, 1, 1e-5, False), "motion": (10_000, 4, 24, 1e-5, True)}
    assert config.phases["frames"].data.size == (768, 768) and config.phases["motion"].data.stride == 4
    assert config.init.scene is False and config.schedule == NoiseSchedule()
    for file in ("animate_anyone", "embedded_bold_animate"):
        phases = read_config(CONFIGS / f"{file}.yaml").phases
        assert all(phase.data.reference == "frame" for phase in phases.values())
        assert phases["motion"].train == ("motion",) and "motion" not in phases["frames"].train
