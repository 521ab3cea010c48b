"""A finished model becomes one of few steps that needs no guidance: task "distil" of a phase.

Progressive distillation (Salimans and Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models",
algorithm 2) with the guidance folded in (Meng et al. 2023, "On Distillation of Guided Diffusion Models", of one
scale), in one round: a step of the student spans as many of the teacher's DDIM steps as are asked for, not two.
What it learns is no mean of many pictures but the one end of the teacher's path, so that it need not blur, and no
adversary is needed.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from anycharv_core.checkpoints.networks import Networks
from anycharv_core.models.schedule import TRAIN_STEPS, NoiseSchedule, add_noise, ddim_step, ddim_timesteps
from training.config import Distil, Objective
from training.lora import without_lora
from training.objective import Batch, Draws, guided, predict, shown, weighed

Path = list[tuple[int, int]]
"""(t, next t) of successive DDIM steps; a negative one is the clean picture."""


def loss(
    nets: Networks,
    teacher: Networks,
    encoded: Batch,
    draws: Draws,
    cfg: Objective,
    lesson: Distil,
    motion: bool,
    schedule: NoiseSchedule,
) -> dict[str, Tensor]:
    """Squared errors [B] as `objective.loss` gives them, between the student's predictions and those that would
    take it in one step to where the teacher's guided path ends.

    A clip starts at the step of the student that holds its drawn timestep, from its own latents and noise. No clip
    goes without its reference, as nothing is guided any more. Of a network with a LoRA the teacher is the network
    without it.
    """
    paths = [teacher_path(t, lesson, schedule) for t in draws.t.tolist()]
    t = torch.tensor([path[0][0] for path in paths], device=draws.t.device)
    noisy, _ = add_noise(encoded["latents"].float(), draws.noise, t, schedule)
    seen = shown(encoded, cfg)
    with torch.no_grad(), without_lora(teacher.denoising_unet):
        ends = follow(teacher, seen, noisy, paths, lesson.guidance, motion, schedule)
    rows = zip(noisy, ends, paths, strict=True)
    wanted = torch.stack([needed(x, end, path[0][0], path[-1][1], schedule) for x, end, path in rows])
    prediction = predict(nets, seen, noisy, t, 0, motion).float()
    return weighed(prediction, wanted, encoded, t, cfg, schedule)


def teacher_path(t: int, lesson: Distil, schedule: NoiseSchedule) -> Path:
    """The teacher's steps through that step of the student, of `ddim_timesteps`, which holds timestep t."""
    start, end = ddim_timesteps(lesson.steps, schedule)[lesson.steps - 1 - t * lesson.steps // TRAIN_STEPS]
    end = max(end, -1)
    stops = [start + round((end - start) * part / lesson.substeps) for part in range(lesson.substeps + 1)]
    return list(pairwise(stops))


def follow(
    teacher: Networks,
    encoded: Batch,
    noisy: Tensor,
    paths: list[Path],
    guidance: float,
    motion: bool,
    schedule: NoiseSchedule,
) -> Tensor:
    """Latents [B, F, c, h, w] at the ends of the clips' paths, from noisy ones of that shape at their starts."""
    predicted = guided(teacher, encoded, guidance, motion)
    for steps in zip(*paths, strict=True):
        t = torch.tensor([t for t, _ in steps], device=noisy.device)
        rows = zip(predicted(noisy, t), noisy, steps, strict=True)
        noisy = torch.stack([ddim_step(made, x, now, after, schedule) for made, x, (now, after) in rows])
    return noisy


def needed(x: Tensor, end: Tensor, t: int, t_end: int, schedule: NoiseSchedule) -> Tensor:
    """The prediction with which one DDIM step, which is linear, goes from latents x at t to `end` at t_end."""
    nothing = torch.zeros(())
    share = ddim_step(torch.ones(()), nothing, t, t_end, schedule)
    return (end - ddim_step(nothing, x, t, t_end, schedule)) / share
