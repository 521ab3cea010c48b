"""Training Animate Anyone 2: what its samples hold, what it starts from, and that it goes on where it stopped."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_animate
import tiny_animate2
import torch
from safetensors.torch import load_file
from shard_files import write_folder
from tiny_training import NETWORKS, recipe, write
from training_runs import clips, own_precision

from anycharv_core import UserError
from anycharv_core.inference.pipeline import Pipeline
from anycharv_core.media.pose import POINTS, Poses
from anycharv_core.models.schedule import NoiseSchedule
from anycharv_core.systems import system_of
from anycharv_core.systems.animate_anyone_2 import ANIMATE_ANYONE_2
from training import objective
from training.config import Data, Init, Objective, data_facts
from training.config_file import parse, read_config
from training.data.conditions import given_masks, on_background
from training.data.puppets import PuppetClips
from training.data.scaling import anchors
from training.data.shard_clips import ShardClips
from training.start.initialise import initialise
from training.train import main
from training.trainee import Trainee, choose_trained, trained_parameters

__all__ = ["own_precision"]
CONFIGS = Path(__file__).parents[1] / "training" / "configs"
SIZE = (48, 48)
DATA = Data(
    world="acts", size=SIZE, clips=6, conditions=("objects", "depth"), mask="block", rows=(1, 5), columns=(1, 3)
)
ADDED: dict[str, dict[str, Any]] = {
    "denoising_unet": {"reference_blocks": "mid_up", "object_blending": {"channels": 1}},
    "pose_guider": {"block_out_channels": [8, 32], "depth_modulation": True},
    "object_guider": {"latent_channels": 4, "block_out_channels": [32, 32]},
}


def networks() -> dict[str, Any]:
    made = deepcopy(NETWORKS)
    for part, settings in ADDED.items():
        made[part] = made.get(part, {}) | settings
    return made


def phase(**changes: Any) -> dict[str, Any]:
    """The tiny recipe with these networks, data and everything trained."""
    config = recipe(**({"train": ["denoising_unet", "reference_unet", "pose_guider", "object_guider"]} | changes))
    config["networks"] = networks()
    config["data"] = config["data"] | {"world": "acts", "mask": "block", "conditions": ["objects", "depth"]}
    config["objective"] = {"drop": 0.3, "drop_objects": 0.3, "drop_depth": 0.3}
    return config


def sample(data: Data, index: int = 0, epoch: int = 0, frames: int = 2) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in PuppetClips(data, frames)[index, epoch].items()}


def test_a_sample_has_exact_objects_and_structured_depth() -> None:
    seen = set()
    for index in range(6):
        made = sample(DATA, index)
        body, held, depth = made["mask"], made["objects"], made["depth"]
        assert depth.dtype == np.uint8 and depth.any() and (depth[made["pose"].max(-1) < 64] == 0).all()
        assert (made["character"][held > 0] == 255).all()
        alone = (made["character"] > 0) & (held == 0)
        assert (body[alone] == 255).all(), "the mask covers the body"
        seen.add(bool(held.any()))
        assert "scene" not in made
    assert seen == {True, False}
    assert "depth" not in sample(replace(DATA, conditions=("objects",)))
    assert not {"objects", "depth"} & sample(replace(DATA, conditions=())).keys()


def test_the_number_of_blocks_is_drawn_once_a_clip_from_its_place_alone() -> None:
    masks = np.zeros((3, 40, 30), np.uint8)
    masks[:, 3:37, 5:25] = np.tri(34, 20, dtype=np.uint8) * np.uint8(255)
    data = replace(DATA, rows=(1, 20), columns=(1, 20))
    shapes = set()
    for seed in range(12):
        given = given_masks(masks, data, np.random.default_rng(seed), 0)
        assert (given[masks > 0] == 255).all() and all(np.array_equal(given[0], each) for each in given)
        assert np.array_equal(given, given_masks(masks, data, np.random.default_rng(seed), 0))
        shapes.add(int((given > 0).sum()))
    assert len(shapes) > 4
    one, again, other = (sample(data, 1, epoch)["mask"] for epoch in (0, 0, 1))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_scaling_leaves_scene_and_mask_as_they_were() -> None:
    blocks = replace(DATA, rows=(5, 5), columns=(3, 3))  # drawing neither, as the factor is drawn before them
    scaled = replace(blocks, scale=(1.2, 1.2), scale_share=1.0)
    one = 1 + 1e-12  # which float32 cannot tell from 1, of which nothing would be scaled
    plain, same = sample(blocks, 2), sample(replace(scaled, scale=(one, one)), 2)
    assert same.keys() == plain.keys() | {"scene"}
    assert all(np.array_equal(plain[name], same[name]) for name in plain)
    assert np.array_equal(same["scene"], same["frames"])
    larger = sample(scaled, 2)
    assert np.array_equal(larger["scene"], plain["frames"]) and not np.array_equal(larger["pose"], plain["pose"])
    assert np.array_equal(larger["mask"], same["mask"]) and np.array_equal(larger["reference"], plain["reference"])
    body = (larger["character"] > 0) & (larger["objects"] == 0)
    assert (body & (larger["mask"] == 0)).any(), "the character leaves the mask"
    assert (larger["character"] > 0).sum() > (plain["character"] > 0).sum()


def test_depth_twins_differ_in_what_is_in_front() -> None:
    plain, turned = (sample(replace(DATA, depth_twins=share), 2) for share in (0.0, 1.0))
    for name in ("pose", "mask", "reference"):
        assert np.array_equal(plain[name], turned[name])
    assert not np.array_equal(plain["depth"], turned["depth"])
    assert not np.array_equal(plain["frames"], turned["frames"])
    apart = (np.abs(plain["frames"].astype(int) - turned["frames"]).max(-1) > 16) * 255
    assert "order" not in plain and np.array_equal(turned["order"], apart) and apart.any()


def test_where_depth_twins_differ_may_weigh_more() -> None:
    shape = 1, 2, 4, 3, 3
    prediction, wanted = torch.zeros(shape), torch.zeros(shape)
    wanted[..., 0, 0] = 1
    order = torch.zeros(1, 2, 1, 3, 3)
    order[..., 0, 0] = 0.5
    ones = torch.ones_like(order)
    encoded = {"mask": ones, "character": ones, "order": order}
    errors = [
        objective.weighed(
            prediction, wanted, encoded, torch.tensor([9]), Objective(order=weight), NoiseSchedule()
        )["loss"]
        for weight in (0.0, 4.0)
    ]
    torch.testing.assert_close(torch.cat(errors), torch.tensor([1 / 9, 3 / 11]))


def test_a_carried_frame_is_given_whole() -> None:
    given = sample(replace(DATA, carried=1.0, scale=(1.2, 1.2), scale_share=1.0), 2)
    assert np.array_equal(given["scene"][0], given["frames"][0]) and not given["mask"][0].any()
    assert not np.array_equal(given["scene"][1], given["frames"][1]) and given["mask"][1].any()
    assert sample(replace(DATA, carried=1e-9), 2)["mask"][0].any()


def test_references_show_empty_hands_before_something_else() -> None:
    picture, mask = np.full((8, 8, 3), 9, np.uint8), np.zeros((8, 8), np.uint8)
    mask[2:6, 2:6] = 255
    other = np.full_like(picture, 77)
    kinds = []
    for seed in range(40):
        made = on_background(picture, mask, other, np.random.default_rng(seed))
        assert (made[mask > 0] == 9).all()
        around = made[mask == 0]
        kinds.append(
            "other" if (around == 77).all() else "flat" if len(np.unique(around, axis=0)) == 1 else "noise"
        )
    assert {kind: kinds.count(kind) > 3 for kind in ("other", "flat", "noise")} == dict.fromkeys(kinds, True)
    shown = [sample(replace(DATA, reference="background"), 1, epoch)["reference"] for epoch in range(2)]
    assert not np.array_equal(*shown)


def test_old_data_are_known_by_the_facts_they_always_had() -> None:
    facts = data_facts(Data(world="bold"))
    assert (
        facts["world"] == "bold" and not {"rows", "columns", "conditions", "scale", "scale_share"} & facts.keys()
    )
    assert data_facts(DATA)["conditions"] == ["objects", "depth"]


def batch(count: int = 2) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(1)
    objects = torch.zeros(count, 2, 16, 16, dtype=torch.uint8)
    objects[0, :, 5:9, 6:12] = 255
    depth = torch.from_numpy(rng.integers(0, 256, (count, 2, 16, 16), dtype=np.uint8))
    scene = torch.from_numpy(rng.integers(0, 256, (count, 2, 16, 16, 3), dtype=np.uint8))
    return clips(count, objects=objects, depth=depth, scene=scene)


def trained() -> Any:
    nets, _ = initialise(Init(), networks(), say=lambda line: None)
    generator = torch.Generator().manual_seed(1)
    for net in filter(None, vars(nets).values()):
        for p in net.parameters():
            if not p.any():
                p.data = 0.1 * torch.randn(p.shape, generator=generator)
    return nets


def test_the_scene_of_a_batch_is_always_cut() -> None:
    nets, given = trained(), batch()
    made = objective.encode_batch(nets, given)
    other = given["scene"].clone()
    other[given["mask"] > 0] = 3
    again = objective.encode_batch(nets, given | {"scene": other})
    assert torch.equal(made["scene"], again["scene"])
    assert made["holds"].tolist() == [[1, 1], [0, 0]] and made["objects"].shape == made["latents"].shape
    assert torch.equal(made["depth"], given["depth"])


def test_objects_and_depth_reach_the_loss_unless_they_are_dropped() -> None:
    nets, given = trained(), batch()
    cfg = Objective()

    def losses(changed: dict[str, torch.Tensor], cfg: Objective, motion: bool = True) -> dict[str, float]:
        found = Trainee(nets, cfg, motion, 0, "test")(given | changed)
        return {name: value.item() for name, value in found.items()}

    for name in ("objects", "depth"):
        less = {name: torch.zeros_like(given[name])}
        assert losses(less, cfg) != losses({}, cfg)
        always = replace(cfg, **{f"drop_{name}": 1.0})
        assert losses(less, always) == losses({}, always) == losses(less, cfg)


def test_every_weight_that_is_trained_gets_a_gradient() -> None:
    nets = trained()
    for motion in (True, False):
        wanted = parse(phase(motion=motion)).phases["compose"]
        choose_trained(nets, wanted)
        for net in filter(None, vars(nets).values()):
            net.zero_grad()
        empty = batch() | {"objects": torch.zeros(2, 2, 16, 16, dtype=torch.uint8)}
        Trainee(nets, Objective(), motion, 0, "test")(empty)["loss"].backward()
        lacking = [name for name, p in trained_parameters(nets) if p.grad is None]
        assert [name for name in lacking if "motion_modules" not in name or motion] == []
        names = [name for name, _ in trained_parameters(nets)]
        assert any("temporal_conv" in name for name in names) == motion


def test_what_these_networks_lack_cannot_be_trained() -> None:
    nets, _ = initialise(Init(), NETWORKS, say=lambda line: None)
    with pytest.raises(UserError, match=r"'train' names object_guider, which"):
        choose_trained(nets, parse(phase()).phases["compose"])


def test_a_model_of_anycharv_is_added_to(tmp_path: Path, tiny_model: Path) -> None:
    said: list[str] = []
    added = {part: dict(settings) for part, settings in ADDED.items()}
    del added["pose_guider"]["block_out_channels"]
    added["object_guider"]["block_out_channels"] = [32, 64]
    plain, _ = initialise(Init(model=str(tiny_model)), None, say=lambda line: None)
    with pytest.raises(UserError, match="not divisible"):
        initialise(Init(model=str(tiny_model), additions=added), None, say=said.append)
    del added["pose_guider"]
    nets, configs = initialise(Init(model=str(tiny_model), additions=added), None, say=said.append)
    assert system_of(nets.denoising_unet.cfg) is ANIMATE_ANYONE_2 and nets.object_guider is not None
    assert configs["object_guider"] == added["object_guider"]
    old, new = plain.denoising_unet.state_dict(), nets.denoising_unet.state_dict()
    assert all(torch.equal(new[key], value) for key, value in old.items())
    assert {key.split(".")[2] for key in new.keys() - old.keys()} <= {"blendings", "0"}
    with pytest.raises(UserError, match=r"there is no key 'init\.additions\.guider'"):
        parse(phase() | {"init": {"additions": {"guider": {}}}})


def test_a_model_of_animate_anyone_gets_the_channels_for_a_scene(tmp_path: Path) -> None:
    start = tiny_animate.make(tmp_path / "start", v1=False)
    widths = tiny_animate.configs(v1=False)["denoising_unet"]["block_out_channels"]
    added = {
        "denoising_unet": {"reference_blocks": "mid_up", "object_blending": {"channels": 1, "bias": -2}},
        "object_guider": {"latent_channels": 4, "block_out_channels": widths},
    }
    plain, _ = initialise(Init(model=str(start)), None, say=lambda line: None)
    begun = Init(model=str(start), scene=True, additions=added)
    nets, configs = initialise(begun, None, say=lambda line: None)
    assert system_of(nets.denoising_unet.cfg) is ANIMATE_ANYONE_2 and configs["denoising_unet"]["in_channels"] == 9
    old, new = plain.denoising_unet.state_dict(), nets.denoising_unet.state_dict()
    assert all(torch.equal(new[key], value) for key, value in old.items() if key != "conv_in.weight")
    assert torch.equal(new["conv_in.weight"][:, :4], old["conv_in.weight"])
    assert not new["conv_in.weight"][:, 4:].any()
    for other in ("reference_unet", "pose_guider"):
        ours, theirs = getattr(nets, other).state_dict(), getattr(plain, other).state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_a_run_that_is_stopped_goes_on_bit_equal(tmp_path: Path) -> None:
    config = write(tmp_path / "config", phase(steps=3, save_every=1, motion=True, cache={"variants": 1}))

    def run(name: str, *options: str) -> Path:
        assert main([str(config), "--out", str(tmp_path / name), "--cpu", *options]) == 0
        return tmp_path / name / "compose"

    whole = run("whole")
    run("stopped", "--minutes", "0")
    assert not (tmp_path / "stopped" / "compose" / "weights.safetensors").exists()
    for _ in range(8):
        run("stopped", "--minutes", "0")
    again = run("stopped")
    one, other = (load_file(folder / "weights.safetensors") for folder in (whole, again))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert any(key.startswith("object_guider.") for key in one)
    pipe = Pipeline.from_pretrained(again / "model.safetensors")
    assert pipe.system is ANIMATE_ANYONE_2 and pipe.backend.extras == {"objects", "depth"}
    given = tiny_animate2.inputs(2)
    assert pipe(**given, steps=1).frames.shape == given["scene"].shape


@pytest.mark.parametrize("name", ["animate_anyone_2", "embedded_animate2", "tiny_animate2"])
def test_the_recipes_hold_together(name: str) -> None:
    config = read_config(CONFIGS / f"{name}.yaml")
    last = list(config.phases.values())[-1]
    assert last.frames == 16 and last.motion and "object_guider" in last.train and last.data.carried == 0.5
    assert set(last.data.conditions) == {"objects", "depth"} and last.data.mask == "block"
    if name == "animate_anyone_2":
        assert (last.steps, last.batch, list(config.phases)) == (100_000, 8, ["joint"])
    else:
        assert config.settings.blocks == (5, 3)


def test_pairs_have_none_of_it() -> None:
    for option in ({"conditions": ["depth"]}, {"scale": [1, 1.2]}, {"carried": 0.5}):
        with pytest.raises(UserError, match="which hold neither objects nor depth"):
            parse(recipe() | {"data": {"source": "pairs", "path": "x", **option}})


def test_only_puppets_have_depth_twins() -> None:
    for data in ({"source": "pairs", "path": "x"}, {"source": "shards", "path": "x"}):
        with pytest.raises(UserError, match="depth_twins' is for puppets"):
            parse(phase() | {"data": {**data, "depth_twins": 0.5}})


def test_a_smaller_person_would_bare_the_one_in_a_video() -> None:
    data = {"source": "shards", "path": "x", "scale": [0.9, 1.2]}
    with pytest.raises(UserError, match="would bare the one in the video"):
        parse(phase() | {"data": data})


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_folder(folder, {"a": [12], "b": [12], "c": [12]}, extras=True)
    return folder


def of_shards(folder: Path, epoch: int = 0, **changes: Any) -> dict[str, np.ndarray]:
    data = Data(source="shards", path=str(folder), conditions=("objects", "depth"), mask="block", **changes)
    return {name: value.numpy() for name, value in ShardClips(data, 4)[0, epoch].items()}


def test_prepared_videos_have_objects_and_depth(shards: Path, tmp_path: Path) -> None:
    made = of_shards(shards)
    assert made["objects"].any() and set(np.unique(made["objects"])) == {0, 255}
    assert made["depth"].any() and (made["depth"][made["pose"].max(-1) < 64] == 0).all()
    assert (made["character"][made["objects"] > 0] == 255).all()
    small = of_shards(shards, size=(48, 64))
    assert small["depth"].shape == small["objects"].shape == (4, 64, 48) and small["depth"].any()
    mirrored = of_shards(shards, flip=1.0)
    assert np.array_equal(mirrored["objects"], made["objects"][:, :, ::-1])
    write_folder(tmp_path, {"a": [8], "b": [8]})
    with pytest.raises(UserError, match=r"holds no objects .* prepare the videos with --objects-dir"):
        of_shards(tmp_path)


def test_persons_of_videos_are_made_larger(shards: Path) -> None:
    plain = of_shards(shards)
    larger = of_shards(shards, scale=(1.2, 1.2), scale_share=1.0)
    assert np.array_equal(larger["scene"], plain["frames"]) and np.array_equal(larger["mask"], plain["mask"])
    areas = [(made["character"] > 127).sum(axis=(1, 2)) for made in (plain, larger)]
    assert (areas[1] > 1.1 * areas[0]).all() and (larger["character"][larger["mask"] == 0] > 0).any()
    still = (larger["character"] == 0) & (plain["character"] == 0)
    apart = np.abs(larger["frames"].astype(int) - plain["frames"])[still]
    assert np.quantile(apart, 0.95) <= 1, "what is not the person stays"
    poses = Poses(8, 8, [np.zeros((1, POINTS, 3), np.float32)])
    figure = np.zeros((1, 8, 8), np.uint8)
    figure[0, 2:6, 3:5] = 255
    assert anchors(poses, figure).tolist() == [[4, 6]]
    poses.people[0][0, 10], poses.people[0][0, 13] = (3, 5, 1), (4, 5.5, 1)
    assert anchors(poses, figure).tolist() == [[4, 5.5]]


def test_references_of_videos_stand_before_something_else(shards: Path) -> None:
    shown = [of_shards(shards, epoch, reference="background")["reference"] for epoch in range(4)]
    assert all(picture.shape == (64, 64, 3) and picture.any() for picture in shown)
    assert len({picture.tobytes() for picture in shown}) == 4
