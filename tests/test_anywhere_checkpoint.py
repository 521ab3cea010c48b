"""AnimateAnywhere's weights on disk: one file beside its base, whether that is sharded or not (I16)."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_anywhere
import torch
from dit_nets import REAL, TINY
from safetensors.torch import load_file, save_file
from tiny_anywhere import CONFIGS, write_base

from anycharv_core.checkpoints.check import check_checkpoint
from anycharv_core.checkpoints.checkpoint import Checkpoint
from anycharv_core.checkpoints.cogvideox import join_base, without_base
from anycharv_core.checkpoints.dit_networks import DiTNetworks, build_dit_networks
from anycharv_core.checkpoints.download import APART, NAMES, choose
from anycharv_core.checkpoints.single_file import read_single, write_single
from anycharv_core.errors import UserError
from anycharv_core.inference.anywhere import AnywhereBackend
from anycharv_core.systems import read_unet_checkpoint


@pytest.fixture(scope="module")
def model() -> Checkpoint:
    return tiny_anywhere.checkpoint()


@pytest.fixture(scope="module")
def tied(model: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of what was trained."""
    path = tmp_path_factory.mktemp("model") / "anywhere.safetensors"
    write_single(without_base(model), path)
    return path


def _joined(path: Path, base: Path | None) -> Checkpoint:
    checkpoint = read_single(path)
    join_base(checkpoint, base, path.name)
    check_checkpoint(checkpoint, path.name)
    return checkpoint


def _same(nets: DiTNetworks, model: Checkpoint) -> bool:
    return all(
        torch.equal(value, model.weights[part][key])
        for part, module in nets.modules.items()
        for key, value in module.state_dict().items()
    )


def test_the_file_and_its_base_are_the_model(model: Checkpoint, tied: Path, tmp_path: Path) -> None:
    parts = {key.partition(".")[0] for key in load_file(tied)}
    assert parts == {"control", "reference", "bml", "prompt"}
    for shards in (3, 1):
        joined = _joined(tied, write_base(model, tmp_path / str(shards), shards))
        nets = build_dit_networks(joined)
        assert set(nets.modules) == set(CONFIGS)
        assert _same(nets, model)
        assert {k: v for k, v in joined.settings.items() if k != "base"} == model.settings


def test_a_single_file_is_a_base_too(model: Checkpoint, tied: Path, tmp_path: Path) -> None:
    base = tmp_path / "cogvideox.safetensors"
    save_file({key: value.float() for key, value in model.weights["transformer"].items()}, base)
    nets = build_dit_networks(_joined(tied, base))
    assert nets.vae is None
    assert _same(nets, model)


def test_a_model_with_all_its_parts_needs_no_base(model: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "whole.safetensors"
    write_single(model, path)
    assert _same(build_dit_networks(_joined(path, None)), model)
    with pytest.raises(UserError, match="leave --base out"):
        _joined(path, tmp_path)


def test_without_the_learner_the_file_is_a_model(tmp_path: Path) -> None:
    model = tiny_anywhere.checkpoint()
    del model.configs["bml"], model.weights["bml"]
    path = tmp_path / "whole.safetensors"
    write_single(model, path)
    assert build_dit_networks(_joined(path, None)).bml is None


def test_other_bases_are_refused(model: Checkpoint, tied: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--base DIR.*anycharv download cogvideox"):
        _joined(tied, None)
    with pytest.raises(UserError, match="has no transformer folder"):
        _joined(tied, tmp_path)
    other = tiny_anywhere.checkpoint()
    other.weights["transformer"]["proj_out.weight"] = other.weights["transformer"]["proj_out.weight"] + 1
    with pytest.raises(UserError, match=r"is not the base that anywhere.safetensors was trained on, CogVideoX1.5"):
        _joined(tied, write_base(other, tmp_path / "other"))
    first = write_base(model, tmp_path / "first")
    config = {key: value for key, value in TINY.items() if key not in ("patch_size_t", "ofs_embed_dim")}
    (first / "transformer" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="CogVideoX-5b-I2V"):
        _joined(tied, first)


@pytest.mark.parametrize("settings", [[1], {"base": "x"}, {"base": []}, {"base": None}, {"base": {"sha256": 5}}])
def test_damaged_ties_to_a_base_are_said_in_a_sentence(settings: Any, model: Checkpoint, tmp_path: Path) -> None:
    held = {part: weights for part, weights in model.weights.items() if part not in ("transformer", "vae")}
    with pytest.raises(UserError, match="it"):
        join_base(replace(model, weights=held, settings=settings), write_base(model, tmp_path / "base"), "it")


@pytest.mark.parametrize(
    ("weights", "what"),
    [
        ({"patch_embed.proj.weight": torch.zeros(4, 8, 2, 2), "proj_out.weight": torch.zeros(1)}, "5b-I2V"),
        ({"blocks.0.attn_out.weight": torch.zeros(2)}, "ComfyUI"),
        ({"something": torch.zeros(2)}, "another model's file"),
    ],
)
def test_single_files_of_others_are_refused(
    weights: dict[str, Any], what: str, tied: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base.safetensors"
    save_file(weights, base)
    with pytest.raises(UserError, match=what):
        _joined(tied, base)


def test_damaged_shards_are_named(model: Checkpoint, tied: Path, tmp_path: Path) -> None:
    base = write_base(model, tmp_path / "base")
    index = next((base / "transformer").glob("*.index.json"))
    content = json.loads(index.read_text())
    index.write_text(json.dumps(content | {"weight_map": content["weight_map"] | {"more": "../x.safetensors"}}))
    with pytest.raises(UserError, match=r"no \.safetensors file beside it"):
        _joined(tied, base)
    index.write_text(json.dumps(content | {"weight_map": content["weight_map"] | {"more": content_file(content)}}))
    with pytest.raises(UserError, match="lists 'more'"):
        _joined(tied, base)
    index.write_text(json.dumps(content))
    (base / "transformer" / content_file(content)).unlink()
    with pytest.raises(UserError, match="is not there"):
        _joined(tied, base)


def content_file(index: dict[str, Any]) -> str:
    """One of the files of an index."""
    return next(iter(index["weight_map"].values()))


def test_parts_that_do_not_belong_together_are_refused(model: Checkpoint) -> None:
    for change, match in (
        ({"control": {"blocks": 1}}, "control weights have the unexpected"),
        ({"bml": {"rank": 3}}, "bml weight"),
        ({"reference": {"blocks": 9}}, "reference has 9 blocks"),
        ({"vae": CONFIGS["vae"] | {"latent_channels": 8}}, "vae has 8 channels"),
        ({"vae": CONFIGS["vae"] | {"_class_name": "AutoencoderKL"}}, "no autoencoder of clips"),
    ):
        with pytest.raises(UserError, match=match):
            build_dit_networks(Checkpoint(CONFIGS | change, model.weights))
    for change, match in (
        ({"transformer": REAL}, "asks for"),
        ({"bml": {"rank": 10**6}}, "asks for a size"),
    ):
        with pytest.raises(UserError, match=match):
            check_checkpoint(Checkpoint(CONFIGS | change, model.weights), "it")
    with pytest.raises(UserError, match="has no prompt"):
        check_checkpoint(Checkpoint(CONFIGS, {k: v for k, v in model.weights.items() if k != "prompt"}), "it")


@pytest.mark.parametrize("value", [None, -1, 0, 10**9, 1.5, "x", [], {}, [1], True, float("nan"), [8, 8, 8, 8]])
def test_damaged_configs_are_said_in_a_sentence(value: Any, model: Checkpoint) -> None:
    changes = [({part: value}, {}) for part in CONFIGS]
    changes += [({part: config | {key: value}}, {}) for part, config in CONFIGS.items() for key in config]
    changes += [({}, {key: value}) for key in (*model.settings, "base")]
    for configs, settings in changes:
        damaged = Checkpoint(CONFIGS | configs, model.weights, model.settings | settings)
        with suppress(UserError):
            check_checkpoint(damaged, "it")
            AnywhereBackend(build_dit_networks(damaged), damaged.settings)


def test_diffusers_vae_is_built_from_its_folder(tmp_path: Path) -> None:
    from diffusers import AutoencoderKLCogVideoX

    from anycharv_core.checkpoints.folders import read_library_part
    from anycharv_core.checkpoints.networks import library_part

    vae = AutoencoderKLCogVideoX(
        down_block_types=["CogVideoXDownBlock3D"] * 2,
        up_block_types=["CogVideoXUpBlock3D"] * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        invert_scale_latents=True,
    )
    vae.save_pretrained(tmp_path)
    config, weights = read_library_part("vae", tmp_path)
    made = library_part("vae", config, weights)
    assert isinstance(made, AutoencoderKLCogVideoX)
    assert made.config.invert_scale_latents
    assert set(weights) == set(vae.state_dict())


def test_the_download_is_asked_for_by_name() -> None:
    assert "cogvideox" in NAMES
    assert choose(["cogvideox"]) == list(APART)
    assert not set(APART) & set(choose(["all"]))
    assert APART[0].folder == "diffusers/CogVideoX1.5-5B-I2V"
    places = [names[0] for names in APART[0].files]
    assert [place for place in places if "transformer/" in place][-1] == "transformer/config.json"


def test_what_runs_unets_alone_refuses_it(tied: Path) -> None:
    with pytest.raises(UserError, match="has no UNet"):
        read_unet_checkpoint(tied)
