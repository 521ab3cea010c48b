"""What training minimises: the losses of the papers, their draws and gradients, and the weights a phase trains."""

from __future__ import annotations

import pytest
import torch
from tiny_training import recipe
from torch.autograd.graph import saved_tensors_hooks
from training_runs import ALL, CONFIGS, clips, fresh, gradients
from training_runs import own_precision as own_precision

from anycharv_core.models.schedule import alphas_cumprod
from training import networks, objective
from training.config import Objective
from training.config_file import parse, read_config
from training.objective import clip_generator, draw, min_snr_weight
from training.trainee import Trainee, choose_trained, trained_parameters


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
