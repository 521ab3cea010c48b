"""Training AnimateAnywhere: its losses, its stages, and going on after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_anywhere
import torch
from keypoint_files import write_frames as write_poses
from PIL import Image
from safetensors.torch import load_file
from tiny_training import write
from tiny_vgg import write_vgg
from training_runs import log, own_precision

from anycharv_core.checkpoints.checkpoint import Checkpoint
from anycharv_core.checkpoints.single_file import write_single
from anycharv_core.errors import UserError
from anycharv_core.media.cameras import Cameras
from anycharv_core.media.video_write import VideoWriter, write_masks
from anycharv_core.puppets.travel import sample_travel
from anycharv_core.systems import read_checkpoint
from training import ablate, ablate_anywhere, anywhere, networks
from training.anywhere_trainee import AnywhereTrainee
from training.config import Data, Objective
from training.config_file import parse, read_config
from training.data.sources import open_dataset
from training.objective import draw
from training.prepare.dataset import main as prepare
from training.train import main
from training.trainee import trained_parameters
from training.trainees import new_trainee

__all__ = ["own_precision"]
SIZE, FRAMES = (32, 32), 16
EPIPOLAR = {"weight": 0.5, "queries": 8}
STAGE = {
    "steps": 4,
    "batch": 2,
    "frames": FRAMES,
    "lr": 1e-3,
    "save_every": 1,
    "log_every": 1,
    "export": {"layout": "single", "dtype": "fp32"},
}


def recipe(**phases: dict[str, Any]) -> dict[str, Any]:
    return {
        "seed": 0,
        "settings": deepcopy(
            {k: tiny_anywhere.SETTINGS[k] for k in ("size", "frames", "noise_scheduler_kwargs", "guidance_scale")}
        ),
        "networks": deepcopy({part: each for part, each in tiny_anywhere.CONFIGS.items() if part != "prompt"}),
        "data": {"source": "puppets", "world": "travel", "size": list(SIZE), "clips": 4},
        "objective": {"drop": 0.25},
        "engine": {"tracker": "none"},
        "phases": {name: STAGE | phase for name, phase in phases.items()},
    }


JOINT = {"train": ["control", "reference", "bml"], "objective": {"epipolar": EPIPOLAR}}
WHOLE = {
    "codec": {"task": "codec", "batch": 4, "frames": 8, "data": {"world": "wander"}},
    "decoder": {"task": "decoder", "steps": 2, "frames": 8, "lr": 1e-3},
    "base": {"train": ["transformer"], "data": {"world": "wander"}, "steps": 2},
    "control": {"train": ["control"], "steps": 2},
    "reference": {"train": ["reference"], "steps": 2, "cache": {"variants": 1}},
    "joint": JOINT
    | {"validate": {"every": 4, "clips": 1, "sheet": 1, "steps": 1, "timesteps": [500], "guidance": 2}},
}


def trainee(**joint: Any) -> AnywhereTrainee:
    """Of random weights, none of which is 0."""
    config = parse(recipe(joint=JOINT | joint))
    nets, _ = networks.build(config, [], lambda line: None)
    made = tiny_anywhere.checkpoint()
    for part, module in nets.modules.items():
        module.load_state_dict(made.weights[part])
    found = new_trainee(config, "joint", nets)
    assert isinstance(found, AnywhereTrainee)
    return found


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    clips = open_dataset(Data(world="travel", size=SIZE, clips=4), FRAMES)
    samples = [clips[index, 0] for index in range(3)]
    stacked = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    return stacked | {"position": torch.arange(3)}


def test_samples_hold_what_the_losses_need() -> None:
    clips = open_dataset(Data(world="travel", size=SIZE, clips=2), FRAMES)
    one, again, later = clips[1, 0], clips[1, 0], clips[1, 1]
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["background"], later["background"]) and torch.equal(one["frames"], later["frames"])
    assert one["cameras"].dtype == torch.double and one["cameras"].shape == (FRAMES, 3, 7)
    wander = open_dataset(Data(world="wander", size=SIZE, clips=2), FRAMES)[0, 0]
    near = wander["background"].int() - wander["frames"][0].int()
    assert near.abs().float().mean() < 20


def test_a_fresh_phase_begins_as_the_base(batch: dict[str, torch.Tensor]) -> None:
    config = parse(recipe(joint=JOINT, control={"train": ["control"]}))
    nets, _ = networks.build(config, [], lambda line: None)
    module = new_trainee(config, "control", nets)
    assert isinstance(module, AnywhereTrainee)
    encoded = batch | module.encode(batch)
    noisy, t = (
        torch.randn(encoded["latents"].shape, generator=torch.Generator().manual_seed(0)),
        torch.tensor([9] * 3),
    )
    assert module.reference is None and module.parts.bml is None  # they would only take memory
    own = anywhere.predict(module._model(), encoded, noisy, t, 0).latents
    base = anywhere.predict(anywhere.Model(nets, (), 1.0, 1.0), encoded, noisy, t, 0).latents
    assert torch.equal(own, base)


def test_a_dropped_clip_loses_pose_reference_and_background(batch: dict[str, torch.Tensor]) -> None:
    module = trainee()
    encoded = batch | module.encode(batch)
    other = {**encoded, **{name: encoded[name].flip(0) for name in ("pose", "picture", "reference")}}
    noisy, t = (
        torch.randn(encoded["latents"].shape, generator=torch.Generator().manual_seed(0)),
        torch.tensor([9] * 3),
    )
    with torch.no_grad():
        one, two = (anywhere.predict(module._model(), each, noisy, t, 1).latents for each in (encoded, other))
        nobody = anywhere.predict(module._model(), encoded, noisy, t, 3).latents
    torch.testing.assert_close(one[0], two[0])
    torch.testing.assert_close(one[0], nobody[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(one[2], two[2])


def test_every_part_that_is_trained_gets_a_gradient_in_checkpointed_blocks_too(
    batch: dict[str, torch.Tensor],
) -> None:
    found = []
    for checkpointing in (False, True):
        module = trainee(checkpointing=checkpointing)
        losses = module(batch)
        assert losses["epipolar"] > 0
        losses["loss"].backward()
        found.append({name: p.grad for name, p in trained_parameters(module.parts)})
    assert set(found[0]) == set(found[1])
    for name, gradient in found[0].items():
        assert gradient is not None and gradient.any(), name
        torch.testing.assert_close(gradient, found[1][name], atol=1e-6, rtol=1e-4)


def test_clips_without_cameras_have_no_epipolar_loss(batch: dict[str, torch.Tensor]) -> None:
    module = trainee()
    bare = batch | {"cameras": torch.zeros_like(batch["cameras"])}
    losses = module(bare)
    assert losses["epipolar"] == 0 and torch.isfinite(losses["loss"])
    # One clip with cameras among three counts as if it were alone.
    mixed = bare["cameras"].clone()
    mixed[0] = batch["cameras"][0]
    part = {name: value[:1] for name, value in batch.items()}
    alone, among = (
        {**each, "position": torch.arange(len(each["frames"]))} for each in (part, batch | {"cameras": mixed})
    )
    cfg = module.cfg
    draws = [
        draw(Objective(), _generators(n), module.encode(b)["latents"].shape[1:], torch.device("cpu"))
        for n, b in ((1, alone), (3, among))
    ]
    values = [
        module._losses(each | module.encode(each), each_draw, cfg)["epipolar"].mean()
        for each, each_draw in zip((alone, among), draws, strict=True)
    ]
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("mask", ["adaptive", "outside"])
def test_the_loss_of_some_queries_is_on_average_that_of_all(
    mask: str, batch: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """I10, for parts of unequal size too, of each of which the loss is scaled to all background tokens."""
    module = trainee(objective={"epipolar": EPIPOLAR | {"mask": mask, "percentile": 0.5}})
    assert isinstance(module.cfg, Objective)
    cfg, own = module.cfg.epipolar, {name: value[:1] for name, value in batch.items()}
    encoded = own | module.encode(own)
    noisy = torch.randn(encoded["latents"].shape, generator=torch.Generator().manual_seed(0))
    t, every = torch.tensor([500]), torch.arange(int(encoded["free"].sum()))

    def loss(places: torch.Tensor) -> torch.Tensor:
        monkeypatch.setattr(anywhere, "_some", lambda count, wanted, generator: places)
        with torch.no_grad():
            made = anywhere.predict(module._model(), encoded, noisy, t, 0, blocks=(0, 3))
            return anywhere.epipolar_loss(module._model(), made, encoded, t, 0, cfg, _generators(1), SIZE)

    whole = loss(every)
    assert whole.shape == (1,) and whole > 0
    parts = every[:5], every[5::2], every[6::2]
    shares = torch.tensor([len(part) / len(every) for part in parts])
    losses = torch.cat([loss(part) for part in parts])
    assert (losses - whole).abs().max() > 1e-2 * whole
    torch.testing.assert_close((shares * losses).sum(0, keepdim=True), whole)


def test_cameras_follow_videos_through_shards_strides_and_mirrors(tmp_path: Path) -> None:
    size, frames = 96, 20
    truth = sample_travel(1, frames, size, kind="follow").truth
    own = truth.cameras
    assert own is not None
    for name in ("videos", "poses", "masks", "cameras"):
        (tmp_path / name).mkdir()
    with VideoWriter(tmp_path / "videos" / "walk.mp4", size, size, rate=Fraction(24)) as writer:
        for frame in truth.frames:
            writer.write(frame)
    shutil.copyfile(tmp_path / "videos" / "walk.mp4", tmp_path / "videos" / "alone.mp4")
    with (tmp_path / "videos" / "alone.mp4").open("ab") as file:
        file.write(b"another video by its hash")
    for name in ("walk", "alone"):
        write_poses(tmp_path / "poses" / f"{name}.json", truth.poses().keypoints())
        write_masks(tmp_path / "masks" / f"{name}.mkv", truth.mask)
    lines = (
        f"{t} {x} {y} {z} 0 0 0 1 {k / size} {k / size}"
        for t, ((x, y, z), k) in enumerate(zip(own.T, own.K[:, 0, 0], strict=True))
    )
    (tmp_path / "cameras" / "walk.txt").write_text("\n".join(lines))
    out = tmp_path / "shards"
    options = ["--cameras-from", "unreal"]
    for name in ("poses", "masks", "cameras"):
        options += [f"--{name}-dir", str(tmp_path / name)]
    more = ["--buckets", "64x64", "--min-frames", "8", "--max-frames", "20"]
    assert prepare([str(tmp_path / "videos"), "--out", str(out), *options, *more]) == 0
    assert prepare([str(tmp_path / "videos"), "--out", str(tmp_path / "no"), "--cameras-dir", str(tmp_path)]) == 2
    found = {}
    for split in ("train", "heldout"):
        data = Data(
            source="shards", path=str(out), conditions=("background",), stride=2, flip=1.0, split=split, size=SIZE
        )
        clips = open_dataset(data, 8)
        found[clips.origin(0, 0)["first_frame"], bool(clips[0, 0]["cameras"].any())] = (clips, clips[0, 0])
    assert {known for _, known in found} == {False, True}
    (((first, _), (clips, sample)),) = [each for each in found.items() if each[0][1]]
    assert sample["hands"].shape == (8, *SIZE) and sample["background"].shape == (*SIZE, 3)
    plates = tmp_path / "plates" / "walk"
    plates.mkdir(parents=True)
    for t in range(frames):
        Image.fromarray(np.full((size, size, 3), 10 * t, np.uint8)).save(plates / f"{t:03d}.png")
    ready = replace(clips.data, backgrounds=str(plates.parent))
    background = open_dataset(ready, 8)[0, 0]["background"].float()
    assert abs(float(background.mean()) - 10 * first) < 12
    (plates / "019.png").unlink()
    (plates / "000.png").rename(plates / "000.jpg")
    lacking = open_dataset(ready, 8)
    with pytest.raises(UserError, match="one for each is wanted"):
        lacking._plate(lacking.clips[0], 18)
    cameras, clip = Cameras.unpacked(sample["cameras"].numpy()), clips.clips[0]
    x0, y0, x1, y1 = clip.facts()["window"]
    ax0, ay0, ax1, ay1 = clips._window(clip, list(range(first, first + 15, 2)))
    point = np.array((0.2, -0.5, 6.0))
    for place, number in enumerate(range(first, first + 15, 2)):
        # The reader puts the axis in the middle of the picture.
        K = own.K[number].copy()
        K[:2, 2] = size / 2
        seen = K @ (point + own.T[number])
        u = (seen[:2] / seen[2] - (x0, y0)) * 64 / (x1 - x0, y1 - y0)
        u = (u - (ax0, ay0)) * SIZE / (ax1 - ax0, ay1 - ay0)
        mirrored = cameras.K[place] @ (cameras.R[place] @ (point * (-1, 1, 1)) + cameras.T[place])
        np.testing.assert_allclose(mirrored[:2] / mirrored[2], u * (-1, 1) + (SIZE[0], 0), atol=1e-6)


def _generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(n) for n in range(count)]


def test_the_decoder_runs_for_late_steps_alone(
    batch: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vgg = {"weight": 0.2, "file": str(write_vgg(tmp_path / "vgg16.pth")), "crop": 4}
    module = trainee(objective={"vgg": vgg, "drop": 0.0})
    encoded = batch | module.encode(batch)
    draws = module._draws(encoded)
    decoded = []
    inner = anywhere.decode_clips
    monkeypatch.setattr(anywhere, "decode_clips", lambda vae, z: decoded.append(z.shape) or inner(vae, z))
    for steps, expected in (((300, 999, 500), 0), ((0, 299, 300), 2)):
        decoded.clear()
        at = type(draws)(**{**vars(draws), "t": torch.tensor(steps)})
        losses = module._losses(encoded, at, module.cfg)
        assert len(decoded) == expected and (losses["vgg"] > 0).sum() == expected
        assert all(shape[-2:] == (4, 4) for shape in decoded)


@pytest.mark.parametrize(
    ("section", "change", "said"),
    (
        ("networks", {"control": {"blocks": "x"}}, "networks.control"),
        ("networks", {"reference": {}}, "networks.reference"),
        ("networks", {"bml": {"rank": 0}}, "networks.bml"),
        ("init", {"unet": "sd15"}, "'init.unet' is of UNets"),
        ("init", {"model": "embedded"}, "embedded has no transformer"),
        ("init", {"model": "embedded-anywhere"}, "embedded-anywhere was made with another noise schedule"),
        ("data", {"size": [32, 36]}, "multiples of 8"),
    ),
)
def test_a_recipe_that_cannot_be_is_said_in_one_sentence(
    section: str, change: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = recipe(joint=JOINT)
    config[section] = config.get(section, {}) | change
    assert main([str(write(tmp_path, config)), "--out", str(tmp_path / "run"), "--cpu"]) == 2
    assert said in capsys.readouterr().err


def test_a_phase_with_vgg_makes_clips_of_its_own_after_one_without(tmp_path: Path) -> None:
    vgg = {"weight": 0.2, "file": str(write_vgg(tmp_path / "vgg16.pth")), "crop": 4, "below": 1000}
    shared = {"cache": {"variants": 1}, "steps": 1, "train": ["control"]}
    config = recipe(plain=shared, seen=shared | {"objective": {"vgg": vgg}})
    folder = tmp_path / "run"
    assert main([str(write(tmp_path / "config", config)), "--out", str(folder), "--cpu"]) == 0
    assert "vgg" in log(folder / "seen")[0]
    assert len(list((folder / "cache").iterdir())) == 2


def test_a_trained_transformer_is_in_the_model_though_there_is_a_base(tmp_path: Path) -> None:
    base = tiny_anywhere.write_base(tiny_anywhere.checkpoint(), tmp_path / "base")
    given = recipe(first={"train": ["transformer"], "steps": 1})
    given["networks"] = {part: given["networks"][part] for part in ("control", "reference", "bml")}
    given["init"] = {"base": str(base)}
    folder = tmp_path / "run"
    assert main([str(write(tmp_path / "config", given)), "--out", str(folder), "--cpu"]) == 0
    assert read_checkpoint(folder / "first" / "model.safetensors").weights["transformer"]


def test_a_model_is_fine_tuned_and_what_it_lacks_begins_anew(tmp_path: Path) -> None:
    model = tiny_anywhere.checkpoint()
    for parts in (model.configs, model.weights):
        del parts["bml"]
    write_single(model, tmp_path / "model.safetensors")
    phase = {"train": ["transformer", "bml"], "steps": 1}
    given = recipe(first=phase, second=phase) | {"init": {"model": str(tmp_path / "model.safetensors")}}
    config, folder = write(tmp_path, given), tmp_path / "run"
    nets, _ = networks.build(read_config(config), [], lambda line: None)
    for part, weights in model.weights.items():
        assert all(torch.equal(value, weights[key]) for key, value in getattr(nets, part).state_dict().items())
    assert nets.bml is not None
    assert main([str(config), "--out", str(folder), "--cpu"]) == 0
    last = read_checkpoint(folder / "second" / "model.safetensors").weights
    key = "transformer_blocks.1.attn1.to_q.weight"
    assert torch.equal(last["control"][key], model.weights["control"][key])
    assert not torch.equal(last["transformer"][key], model.weights["transformer"][key])


def test_all_stages_run_in_turn_and_the_base_is_copied(tmp_path: Path) -> None:
    config = write(tmp_path / "config", recipe(**WHOLE))
    assert main([str(config), "--out", str(tmp_path / "run"), "--cpu"]) == 0
    folder = tmp_path / "run"
    rows = log(folder / "joint")
    assert {"latent", "epipolar", "held_out"} <= set().union(*rows)
    assert next((folder / "joint" / "sheets").glob("*.png")).stat().st_size > 1000
    base, control = (load_file(folder / name / "weights.safetensors") for name in ("base", "control"))
    assert all(name.startswith("transformer.") for name in base)
    assert all(name.startswith("control.") for name in control)
    built, configs = networks.build(
        read_config(config), [folder / name for name in ("codec", "decoder", "base")], lambda line: None
    )
    key = "transformer_blocks.1.attn1.to_q.weight"
    assert torch.equal(built.control.state_dict()[key], base[f"transformer.{key}"])
    assert torch.equal(built.reference.state_dict()[key], base[f"transformer.{key}"])
    assert "transformer" in configs


def test_variants_go_on_from_one_model_without_its_motion_learner_and_are_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_anywhere.checkpoint()
    write_single(model, tmp_path / "model.safetensors")
    last = JOINT | {"train": ["transformer", *JOINT["train"]], "cache": {"variants": 1}}
    whole = recipe(**{"base": WHOLE["base"], ablate_anywhere.LAST: last})
    whole["init"] = {"model": str(tmp_path / "model.safetensors")}
    whole["settings"] |= {"steps": 1, "guidance_scale": 1.0}
    config, out = write(tmp_path / "config", whole), tmp_path / "out"
    words = ["ablate", "--paper", "anywhere", "--out", str(out), "--config", str(config), "--frames", "8"]
    words += ["--seeds", "0", "--clips", "1", "--only", ablate_anywhere.OURS, ablate_anywhere.BLIND]
    words += [f"--set=phases.{ablate_anywhere.LAST}.{change}" for change in ("steps=1", "data.clips=2")]
    monkeypatch.setattr(sys, "argv", words)
    assert ablate.main() == 0
    said = capsys.readouterr().out
    assert said.index(ablate_anywhere.HYPOTHESIS) < said.index("| variant |")
    variants = json.loads((out / "ablation.json").read_text())["variants"]
    assert {ablate_anywhere.OURS, ablate_anywhere.BLIND, "still plate"} <= set(variants)
    assert variants["still plate"]["pan choice"]["0"] == [0.5]
    # What one variant encoded was there for the next.
    assert len(list((out / "cache").iterdir())) == 1 and not list(out.glob("seed_0/*/cache"))
    full, blind = (
        read_checkpoint(out / "seed_0" / name / "whole" / "model.safetensors") for name in ("full", "without_bml")
    )
    assert learned(full) and not learned(blind) and learned(model)


def learned(model: Checkpoint) -> bool:
    """Whether its motion learner adds anything."""
    return any(value.any() for key, value in model.weights["bml"].items() if key.endswith("up.weight"))


@pytest.mark.parametrize("name", ablate_anywhere.VARIANTS)
def test_every_variant_is_a_recipe(name: str) -> None:
    last = read_config(ablate_anywhere.CONFIG, ablate_anywhere.VARIANTS[name]).phases[ablate_anywhere.LAST]
    assert ("bml" in last.train) == (name != ablate_anywhere.BLIND)
    assert bool(last.objective.epipolar.weight) == (name != ablate_anywhere.FREE)


def test_killed_in_the_last_stage_it_goes_on_to_equal_weights(tmp_path: Path) -> None:
    config = write(tmp_path / "config", recipe(joint=JOINT))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([str(config), "--out", str(whole), "--cpu"]) == 0
    script = tmp_path / "kill.py"
    script.write_text(
        "import os, signal, sys\n"
        "from training import checkpoints, train\n"
        "save, done = checkpoints.save, []\n"
        "def counted(*call):\n"
        "    save(*call)\n"
        "    done.append(call)\n"
        "    if len(done) == 2:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "checkpoints.save = counted\n"
        f"train.main([{str(config)!r}, '--out', {str(cut)!r}, '--cpu'])\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    killed = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert main([str(config), "--out", str(cut), "--cpu"]) == 0
    one, two = (load_file(out / "joint" / "weights.safetensors") for out in (whole, cut))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("change", "said"),
    (
        ({"train": ["denoising_unet"]}, "only UNets have"),
        ({"frames": 12}, "multiples of 8"),
        ({"data": {"world": "bold"}}, "travel or wander"),
        ({"objective": {"vgg": {"weight": 0.2}}}, "VGG16"),
        ({"lora": {"rank": 4}, "train": []}, "only UNets have"),
        ({"objective": {"min_snr": 5}}, "objective.min_snr' is of UNets"),
        ({"export": {"parts": ["control"]}}, "written whole"),
    ),
)
def test_what_does_not_fit_is_said_in_one_sentence(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse(recipe(joint=JOINT | change))
