"""Distillation: few steps of the student lead where many guided ones of its teacher lead."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path

import needs
import pytest
import torch
from safetensors.torch import load_file
from tiny_animate import V1
from tiny_training import PHASE, recipe, write
from training_runs import clips, fresh
from training_runs import own_precision as own_precision

from anycharv_core.models.schedule import NoiseSchedule, ddim_step, ddim_timesteps
from anycharv_core.systems import read_checkpoint
from training import networks
from training.config import Distil, Lora, Objective, Phase
from training.config_file import parse
from training.distil import needed, teacher_path
from training.lora import without_lora
from training.train import main
from training.trainee import Trainee, choose_trained, copied
from training.trainees import new_trainee

LESSON = Distil(steps=2, substeps=4, guidance=2.0)
SCHEDULES = (NoiseSchedule(), NoiseSchedule("sample"), V1)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.prediction)
def test_the_prediction_that_is_learned_leads_to_the_end_of_the_path(schedule: NoiseSchedule) -> None:
    x, end = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    for t, t_prev in ddim_timesteps(4, schedule):
        made = ddim_step(needed(x, end, t, max(t_prev, -1), schedule), x, t, t_prev, schedule)
        torch.testing.assert_close(made, end, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.prediction)
@pytest.mark.parametrize("steps", [1, 3, 4])
def test_every_timestep_lies_in_one_step_of_the_student(schedule: NoiseSchedule, steps: int) -> None:
    lesson = Distil(steps=steps, substeps=5)
    paths = [teacher_path(t, lesson, schedule) for t in range(1000)]
    whole = {(path[0][0], path[-1][1]) for path in paths}
    assert whole == {(t, max(t_prev, -1)) for t, t_prev in ddim_timesteps(steps, schedule)}
    for path in paths:
        assert len(path) == 5 and all(t >= t_next for t, t_next in path)
        assert all(before[1] == after[0] for before, after in pairwise(path))


def learn(trainee: Trainee, steps: int, batch: dict, lr: float) -> None:
    optimizer = torch.optim.Adam([p for p in trainee.parameters() if p.requires_grad], lr=lr)
    for step in range(steps):
        # Other draws at every step.
        trainee(batch | {"position": 1000 * step + batch["position"]})["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()


def test_the_student_comes_nearer_to_the_teachers_many_steps() -> None:
    phase, batch = Phase(task="distil", train=("denoising_unet",)), clips(2, frames=1)
    nets, _ = networks.build(parse(recipe()), [], lambda line: None)
    choose_trained(nets, phase)
    teacher = Trainee(nets, Objective(drop=0.3, terminal=0.3), False, 0, "x")
    learn(teacher, 80, batch, 5e-3)
    own = copy.deepcopy(nets)
    student = Trainee(own, Objective(terminal=0.2), False, 0, "x", lesson=LESSON, copies=copied(own, phase))

    def sampled(trainee: Trainee, steps: int, guidance: float) -> torch.Tensor:
        with torch.no_grad():
            return trainee(batch, task="sample", steps=steps, guidance=guidance)

    goal = sampled(teacher, LESSON.steps * LESSON.substeps, LESSON.guidance)
    untaught, coarse = sampled(student, LESSON.steps, 1.0), sampled(teacher, LESSON.steps, LESSON.guidance)
    learn(student, 50, batch, 2e-3)
    error, *others = ((made - goal).square().mean() for made in (sampled(student, 2, 1.0), untaught, coarse))
    assert all(error < 0.7 * other for other in others)
    # What was not trained, and the teacher, are what they were.
    for part in ("denoising_unet", "reference_unet"):
        kept, first = (getattr(each, part).state_dict() for each in (student.teacher, nets))
        assert all(torch.equal(kept[key], first[key]) for key in first)


def test_a_loras_teacher_is_the_network_without_it() -> None:
    needs.installed("peft")
    phase, batch = Phase(task="distil", lora=Lora(rank=4)), clips(2)
    teacher, nets = Trainee(fresh(), Objective(), False, 0, "x"), fresh()
    choose_trained(nets, phase)
    student = Trainee(nets, Objective(), False, 0, "x", lesson=LESSON, copies=copied(nets, phase))
    assert not student.copies and student.teacher.denoising_unet is student.denoising_unet
    learn(student, 2, batch, 1e-2)
    with torch.no_grad():
        changed = student(batch, task="sample", steps=1, guidance=1.0)
        with without_lora(student.denoising_unet):
            base = student(batch, task="sample", steps=1, guidance=1.0)
        assert torch.equal(base, teacher(batch, task="sample", steps=1, guidance=1.0))
    assert not torch.equal(changed, base)
    assert all("lora_" in name for name, p in student.named_parameters() if p.requires_grad)


def two_phases(steps: int) -> dict:
    """A training and its distillation in so many steps."""
    config = recipe(steps=2)
    config["phases"]["few"] = PHASE | {
        "task": "distil",
        "steps": steps,
        "save_every": 1,
        "distil": {"steps": 2, "substeps": 2, "guidance": 2.0},
        "validate": {"every": 2, "clips": 1, "sheet": 1, "steps": 2, "timesteps": [499, 999]},
    }
    return config


def run(folder: Path, steps: int) -> Path:
    config = write(folder / "config", two_phases(steps))
    assert main([str(config), "--out", str(folder), "--cpu"]) == 0
    return folder / "few"


def test_the_trainer_distils_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", 4)
    parts = run(tmp_path / "parts", 2)
    (parts / "weights.safetensors").unlink()
    run(tmp_path / "parts", 4)
    one, other = (load_file(folder / "weights.safetensors") for folder in (whole, parts))
    assert one.keys() == other.keys() and not any("copies" in name for name in one)
    assert all(torch.equal(one[name], other[name]) for name in one)
    settings = read_checkpoint(str(whole / "model.safetensors")).settings
    assert (settings["steps"], settings["guidance_scale"]) == (2, 1.0)
    assert (whole / "sheets" / "000004.png").exists()


def test_the_teacher_is_the_model_of_the_phase_before() -> None:
    config = parse(two_phases(4))
    trainee = new_trainee(config, "few", fresh())
    assert set(trainee.copies) == {"denoising_unet", "reference_unet", "pose_guider"}
    assert not any(p.requires_grad for p in trainee.copies.parameters())
    assert trainee.teacher.vae is trainee.vae
