"""The trainer resumes as if nothing had happened, and trains what each phase says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from training.data import PuppetClips, loader
from training.loop import Schedule, Unfinished, fit
from training.train import Config, choose_trained, new_networks

CONFIG = Path(__file__).parents[1] / "training" / "configs" / "embedded.yaml"
SCHEDULE = Schedule(steps=12, batch=2, lr=1e-2, warmup=2, pool=2, passes=3)


def train(folder: Path, deadlines: list[float], monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Fits a line, stopped by each deadline in turn; returns the final weights."""
    ticks = 0

    def clock() -> float:
        nonlocal ticks
        ticks += 1
        return float(ticks)

    monkeypatch.setattr("training.loop.time.monotonic", clock)
    data = [{"x": torch.randn(4, 3, generator=torch.Generator().manual_seed(i))} for i in range(20)]
    for deadline in deadlines:
        torch.manual_seed(0)
        model, ticks = nn.Linear(3, 1), 0

        def loss(batch: dict, generator: torch.Generator, model: nn.Module = model) -> dict:
            noise = torch.randn(4, 1, generator=generator)
            return {"loss": (model(batch["x"]) - batch["x"].sum(1, keepdim=True) - noise).square().mean()}

        try:
            fit(
                {"line": model}, lambda batch: batch, loss, lambda first, last: data[first:last],
                SCHEDULE, folder, seed=0, deadline=deadline,
            )
        except Unfinished:
            continue
        return torch.cat([p.detach().flatten() for p in model.parameters()])
    raise AssertionError("the training never finished")


def test_an_interrupted_run_ends_where_a_whole_one_does(tmp_path: Path, monkeypatch) -> None:
    whole = train(tmp_path / "whole", [1e9], monkeypatch)
    # The clock ticks once per step, so these stop it after steps 3, 7 and 9.
    parts = train(tmp_path / "parts", [3, 4, 2, 1e9], monkeypatch)
    assert torch.equal(whole, parts)


def test_a_clip_depends_on_nothing_but_its_index() -> None:
    fine, box = (PuppetClips(32, 2, 0, mask) for mask in ("fine", "box"))
    first, again, coarse = fine[7], fine[7], box[7]
    assert all(torch.equal(first[key], again[key]) for key in first)
    for key in ("frames", "pose", "reference", "character"):
        assert torch.equal(first[key], coarse[key])
    assert not torch.equal(first["frames"], fine[8]["frames"])
    assert (coarse["mask"] >= first["character"]).all()


def test_batches_continue_where_they_stopped() -> None:
    data = PuppetClips(32, 2, 0, "box")
    whole = [batch["frames"] for batch in loader(data, 2, 0, 3, 0)]
    rest = [batch["frames"] for batch in loader(data, 2, 2, 3, 0)]
    assert len(rest) == 1 and torch.equal(whole[2], rest[0])


def test_masked_scene_never_shows_the_character() -> None:
    for index in range(6):
        sample = PuppetClips(32, 2, 0, "fine")[index]
        assert (sample["mask"][sample["character"] > 0] == 255).float().mean() > 0.99


@pytest.fixture(scope="module")
def config() -> Config:
    return Config.read(CONFIG)


def test_each_phase_trains_what_the_paper_says(config: Config) -> None:
    nets = new_networks(config, "cpu")

    def trained(phase: str) -> set[str]:
        choose_trained(nets, phase)
        names = {f"{part}.{name}" for part, net in vars(nets).items() for name, p in net.named_parameters()
                 if p.requires_grad}
        return {n.split(".")[0] + (" motion" if "motion_modules" in n else "") for n in names}

    assert trained("decoder") == {"vae"}
    assert trained("compose") == {"denoising_unet", "reference_unet", "pose_guider", "image_encoder"}
    assert trained("boost") == {"denoising_unet"}
    assert trained("motion") == {"denoising_unet motion"}
    assert trained("boost_clips") == {"denoising_unet", "denoising_unet motion"}


def test_the_learning_rate_warms_up_and_falls() -> None:
    schedule = replace(SCHEDULE, steps=100, warmup=10)
    rates = [schedule.rate(step) for step in range(100)]
    assert int(np.argmax(rates)) in range(8, 12)
    assert rates[0] < 0.2 * max(rates) and rates[-1] == pytest.approx(0.1 * schedule.lr, rel=0.05)
