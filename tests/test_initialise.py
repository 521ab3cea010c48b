"""Published layouts of other models become the networks of a recipe, weight by weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONFIGS
from safetensors.torch import save_file
from torch import Tensor

from anycharv_core.errors import UserError
from anycharv_core.models import DenoisingUNet, PoseGuider, PoseGuiderConfig, ReferenceNet, UNetConfig
from anycharv_core.systems import read_checkpoint
from training.config import Init
from training.start.initialise import GUIDER, SD15, denoising_config, initialise, reference_config
from training.start.layouts import guider_weights, ldm_name, unet_weights

# The tiny UNet of conftest.py as Stable Diffusion's unet/config.json would describe it.
BASE = {key: value for key, value in CONFIGS["reference_unet"].items() if key in SD15} | {
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
LIBRARY = {part: CONFIGS[part] for part in ("vae", "image_encoder")}


def quiet(_: str) -> None:
    pass


def sd_weights(base: dict[str, Any]) -> dict[str, Tensor]:
    """A text-to-image UNet in diffusers' names, random."""
    net = DenoisingUNet(UNetConfig.from_dict(base))
    return {key: torch.randn_like(value) for key, value in net.state_dict().items()}


def compvis_names(base: dict[str, Any]) -> dict[str, str]:
    """CompVis's name for every key of a text-to-image UNet: the opposite direction of what is tested."""
    ends = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    resnet = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    per_level = base["layers_per_block"] + 1

    def within(inner: str) -> str:
        head, _, end = inner.partition(".")
        return f"{resnet[head]}.{end}" if head in resnet and end in ("weight", "bias") else inner

    def name(key: str) -> str:
        head, end = key.rsplit(".", 1)
        if head in ends:
            return f"{ends[head]}.{end}"
        side, rest = key.split(".", 1)
        if side == "mid_block":
            kind, place, inner = rest.split(".", 2)
            number = {"resnets0": 0, "attentions0": 1, "resnets1": 2}[kind + place]
            return f"middle_block.{number}.{within(inner)}"
        level, kind, place, inner = rest.split(".", 3)
        first, down = per_level * int(level), side == "down_blocks"
        if kind == "downsamplers":
            return f"input_blocks.{first + per_level}.0.op.{end}"
        if kind == "upsamplers":
            # The lowest level has no attention, so its upsampler comes second, elsewhere third.
            return f"output_blocks.{first + per_level - 1}.{1 if level == '0' else 2}.conv.{end}"
        blocks = "input_blocks" if down else "output_blocks"
        return f"{blocks}.{first + int(place) + down}.{int(kind == 'attentions')}.{within(inner)}"

    with torch.device("meta"):
        keys = DenoisingUNet(UNetConfig.from_dict(base)).state_dict()
    return {key: name(key) for key in keys}


def test_all_686_keys_of_stable_diffusion_have_their_compvis_name() -> None:
    names = compvis_names(SD15)
    assert len(names) == len(set(names.values())) == 686
    assert all(ldm_name(old, 2) == new for new, old in names.items())


def test_diffusers_agrees_on_those_names() -> None:
    from diffusers.loaders import single_file_utils as utils

    names = compvis_names(SD15)
    with torch.device("meta"):
        shapes = DenoisingUNet(UNetConfig.from_dict(SD15)).state_dict()
    weights = {f"model.diffusion_model.{names[key]}": value for key, value in shapes.items()}
    config = SD15 | {"class_embed_type": None, "addition_embed_type": None}
    theirs = utils.convert_ldm_unet_checkpoint(dict(weights), config)
    ours = unet_weights(dict(weights), 2, Path("x"))
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_the_full_networks_have_the_released_sizes() -> None:
    """588 motion tensors, 42 of them position codes, are AnimateDiff v2's; 560 v1's and v3's; 682 and 16 the
    release's."""
    with torch.device("meta"):
        config = denoising_config(SD15, None)
        unet = DenoisingUNet(UNetConfig.from_dict(config))
        reference = ReferenceNet(UNetConfig.from_dict(reference_config(SD15)))
        guider = PoseGuider(PoseGuiderConfig.from_dict({**GUIDER, "conditioning_embedding_channels": 320}))
    motion = [key for key in unet.state_dict() if "motion_modules." in key]
    assert len(motion) == 588 and sum(key.endswith(".pe") for key in motion) == 42
    assert len(unet.state_dict()) == 686 + 588
    assert len(reference.state_dict()) == 682
    assert len(guider.state_dict()) == 16
    assert sum(p.numel() for p in unet.parameters()) == pytest.approx(1314e6, rel=0.002)
    assert unet.conv_in.weight.shape == (320, 9, 3, 3)
    original = {"motion_module_mid_block": False}
    with torch.device("meta"):
        first = DenoisingUNet(UNetConfig.from_dict(config | original)).state_dict()
    assert sum("motion_modules." in key for key in first) == 560


def test_controlnets_two_layouts_give_the_same_pose_guider() -> None:
    with torch.device("meta"):
        config = PoseGuiderConfig.from_dict({**GUIDER, "conditioning_embedding_channels": 320})
        keys = PoseGuider(config).state_dict()
    diffusers = {f"controlnet_cond_embedding.{key}": value for key, value in keys.items()}
    original = {
        f"control_model.input_hint_block.{2 * i}.{end}": keys[f"{name}.{end}"]
        for i, name in enumerate(["conv_in", *(f"blocks.{j}" for j in range(6)), "conv_out"])
        for end in ("weight", "bias")
    }
    for weights in (diffusers, original | {"control_model.zero_convs.0.0.weight": torch.zeros(1)}):
        assert {k: v.shape for k, v in guider_weights(weights, Path("x")).items()} == {
            k: v.shape for k, v in keys.items()
        }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files in the published layouts."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("published")
    (folder / "sd" / "unet").mkdir(parents=True)
    (folder / "sd" / "unet" / "config.json").write_text(json.dumps(BASE | {"sample_size": 8, "_class_name": "X"}))
    save_file(sd_weights(BASE), folder / "sd" / "unet" / "diffusion_pytorch_model.safetensors")
    moving = DenoisingUNet(UNetConfig.from_dict(denoising_config(BASE, None)))
    motion = {
        key: value if key.endswith(".pe") else torch.randn_like(value)
        for key, value in moving.state_dict().items()
        if "motion_modules." in key
    }
    torch.save({"global_step": 3, "state_dict": {f"module.{k}": v for k, v in motion.items()}}, folder / "v2.ckpt")
    first = {
        key: value[:, :24] if key.endswith(".pe") else value
        for key, value in motion.items()
        if not key.startswith("mid_block.")
    }
    torch.save(first, folder / "v1.ckpt")
    guider = PoseGuider(PoseGuiderConfig.from_dict({**GUIDER, "conditioning_embedding_channels": 32}))
    (folder / "openpose").mkdir()
    save_file(
        {f"controlnet_cond_embedding.{k}": torch.randn_like(v) for k, v in guider.state_dict().items()},
        folder / "openpose" / "diffusion_pytorch_model.safetensors",
    )
    return folder


def test_everything_comes_from_where_the_recipe_says(files: Path) -> None:
    said: list[str] = []
    init = {"unet": str(files / "sd"), "motion": str(files / "v2.ckpt"), "pose_guider": str(files / "openpose")}
    nets, configs = initialise(Init(**init), LIBRARY, say=said.append)
    base = read_layout(files / "sd" / "unet" / "diffusion_pytorch_model.safetensors")
    unet, reference = nets.denoising_unet.state_dict(), nets.reference_unet.state_dict()
    assert torch.equal(unet["conv_in.weight"][:, :4], base["conv_in.weight"])
    assert not unet["conv_in.weight"][:, 4:].any()
    assert set(reference) == {k for k in base if not k.startswith(("conv_out.", "conv_norm_out."))}
    for key, value in base.items():
        assert key == "conv_in.weight" or torch.equal(unet[key], value)
        assert key not in reference or torch.equal(reference[key], value)
    motion = torch.load(files / "v2.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(unet[key.removeprefix("module.")], value) for key, value in motion.items())
    guider = read_layout(files / "openpose" / "diffusion_pytorch_model.safetensors")
    for key, value in nets.pose_guider.state_dict().items():
        theirs = guider[f"controlnet_cond_embedding.{key}"]
        assert not value.any() if key.startswith("conv_out.") else torch.equal(value, theirs)
    assert configs["denoising_unet"]["motion_module_mid_block"] is True
    assert configs["denoising_unet"]["in_channels"] == 9
    learned = [key for key in unet if not key.endswith(".pe")]
    line = next(line for line in said if line.startswith("denoising_unet"))
    counts = f"{len(base)} from {files / 'sd' / 'unet' / 'diffusion_pytorch_model.safetensors'}"
    assert f"{len(learned)} weights" in line and counts in line and "5 new input channels" in line
    assert "new" not in line.replace("new input channels", "")
    assert all(not p.requires_grad for p in nets.denoising_unet.parameters())


def read_layout(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def test_the_first_step_of_a_new_model_ignores_scene_mask_and_pose(files: Path) -> None:
    init = {"unet": str(files / "sd"), "pose_guider": str(files / "openpose")}
    nets, _ = initialise(Init(**init), LIBRARY, say=quiet)
    x = torch.randn(2, 9, 8, 8)
    bare = torch.cat([x[:, :4], torch.zeros(2, 5, 8, 8)], dim=1)
    embeds, t = torch.randn(2, 16), torch.tensor([7])
    pose = nets.pose_guider(torch.rand(2, 3, 64, 64))
    assert not pose.any()
    first = nets.denoising_unet(x, t, embeds, pose, None, frames=2)
    assert torch.equal(first, nets.denoising_unet(bare, t, embeds, pose, None, frames=2))
    # Fresh motion modules add nothing.
    assert torch.allclose(first, nets.denoising_unet(x, t, embeds, pose, None, motion=False), atol=1e-6)


def test_the_first_step_of_animate_anyone_2_ignores_scene_mask_pose_and_depth(files: Path) -> None:
    added = {
        "denoising_unet": {"reference_blocks": "mid_up", "object_blending": {"bias": 0}},
        "pose_guider": {"depth_modulation": True},
        "object_guider": {"latent_channels": 4, "block_out_channels": BASE["block_out_channels"]},
    }
    init = {"unet": str(files / "sd"), "motion": str(files / "v2.ckpt"), "pose_guider": str(files / "openpose")}
    said: list[str] = []
    nets, _ = initialise(Init(**init, additions=added), LIBRARY, say=said.append)
    assert any(line.startswith("object_guider") and "new" in line for line in said)
    x = torch.randn(2, 9, 8, 8)
    bare = torch.cat([x[:, :4], torch.zeros(2, 5, 8, 8)], dim=1)
    embeds, t = torch.randn(2, 16), torch.tensor([7])
    pose = nets.pose_guider(torch.rand(2, 3, 64, 64), torch.rand(2, 1, 64, 64), frames=2)
    assert not pose.any()
    first = nets.denoising_unet(x, t, embeds, pose, None, frames=2)
    assert torch.equal(first, nets.denoising_unet(bare, t, embeds, pose, None, frames=2))


def test_a_motion_file_without_a_middle_block(files: Path) -> None:
    said: list[str] = []
    init = {"unet": str(files / "sd"), "motion": str(files / "v1.ckpt")}
    _, configs = initialise(Init(**init), LIBRARY, say=said.append)
    assert configs["denoising_unet"]["motion_module_mid_block"] is False
    assert configs["denoising_unet"]["motion_module_kwargs"]["temporal_position_encoding_max_len"] == 24

    nets, _ = initialise(
        Init(**init), {**LIBRARY, "denoising_unet": denoising_config(BASE, None)}, say=said.append
    )
    middle = nets.denoising_unet.mid_block.motion_modules[0].temporal_transformer
    assert not middle.proj_out.weight.any()
    assert any("26 new" in line and "positions 24 to 31 were never trained" in line for line in said)


def test_a_compvis_checkpoint_is_the_same_unet(tmp_path: Path) -> None:
    weights, names = sd_weights(BASE), compvis_names(BASE)
    stored = {f"model.diffusion_model.{names[key]}": value for key, value in weights.items()}
    save_file(stored | {"first_stage_model.x": torch.zeros(1)}, tmp_path / "v1-5.safetensors")
    unets = {"denoising_unet": denoising_config(BASE, None), "reference_unet": reference_config(BASE)}
    nets, _ = initialise(Init(unet=str(tmp_path / "v1-5.safetensors")), {**LIBRARY, **unets}, say=quiet)
    unet = nets.denoising_unet.state_dict()
    assert all(torch.equal(unet[key], value) for key, value in weights.items() if key != "conv_in.weight")


def test_fine_tuning_starts_from_an_anycharv_model(tiny_model: Path) -> None:
    said: list[str] = []
    nets, configs = initialise(Init(model=str(tiny_model)), None, say=said.append)
    stored = read_checkpoint(tiny_model)
    for part in stored.weights:
        state = getattr(nets, part).state_dict()
        assert all(torch.equal(state[key], value) for key, value in stored.weights[part].items())
    assert configs == stored.configs
    assert len(said) == 5 and all(str(tiny_model) in line and "new" not in line for line in said)


def test_a_recipe_without_files_starts_fresh() -> None:
    said: list[str] = []
    nets, configs = initialise(Init(), CONFIGS, say=said.append)
    assert configs == CONFIGS
    assert not nets.denoising_unet.conv_out.weight.any()
    assert not nets.pose_guider.conv_out.weight.any()
    assert all("new" in line for line in said)


def unlike(files: Path, tmp_path: Path, case: str) -> tuple[dict[str, str], dict[str, Any], str]:
    """An init that cannot work, the recipe's networks, and what must be named."""
    unet = files / "sd" / "unet" / "diffusion_pytorch_model.safetensors"
    sd, recipe = {"unet": str(files / "sd")}, dict(LIBRARY)
    bad = tmp_path / "bad.safetensors"
    weights = read_layout(unet)
    motion = torch.load(files / "v1.ckpt", weights_only=True)
    key = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    wide = {**recipe, "denoising_unet": denoising_config(BASE, None), "reference_unet": reference_config(BASE)}
    code = next(k for k in motion if k.endswith(".pe"))
    cases: dict[str, tuple[dict[str, Tensor], dict[str, str], dict[str, Any], str]] = {
        "missing key": ({k: v for k, v in weights.items() if k != key}, {"unet": str(bad)}, wide, key),
        "other text width": ({**weights, key: torch.zeros(32, 24)}, {"unet": str(bad)}, wide, r"\(32, 24\)"),
        "unknown key": (
            {**weights, "add_embedding.linear_1.weight": torch.zeros(1)},
            {"unet": str(bad)},
            wide,
            "add_embedding",
        ),
        "inpainting": (
            {**weights, "conv_in.weight": torch.zeros(32, 9, 3, 3)},
            {"unet": str(bad)},
            wide,
            "inpainting",
        ),
        "no unet": ({"a.weight": torch.zeros(1)}, {"unet": str(bad)}, wide, "no Stable Diffusion UNet"),
        "no motion": ({"a.weight": torch.zeros(1)}, {**sd, "motion": str(bad)}, recipe, "AnimateDiff"),
        "adapter": (
            {"mid_block.motion_modules.0.transformer_blocks.0.attn1.to_q.weight": torch.zeros(1)},
            {**sd, "motion": str(bad)},
            recipe,
            "MotionAdapter",
        ),
        "other codes": (
            {**motion, code: torch.randn_like(motion[code])},
            {**sd, "motion": str(bad)},
            recipe,
            "codes",
        ),
        "middle too many": (
            torch.load(files / "v2.ckpt", weights_only=True)["state_dict"],
            {**sd, "motion": str(bad)},
            {**recipe, "denoising_unet": denoising_config(BASE, motion)},
            "no place",
        ),
        "no controlnet": ({"a.weight": torch.zeros(1)}, {**sd, "pose_guider": str(bad)}, recipe, "no ControlNet"),
        "nan": ({**weights, key: torch.full((32, 16), torch.nan)}, {"unet": str(bad)}, wide, "NaN"),
        "nothing": ({"a": torch.zeros(1)}, {}, recipe, "init.unet"),
        "no vae": ({"a": torch.zeros(1)}, sd, {}, "init.vae"),
        "absent": ({"a": torch.zeros(1)}, {"unet": str(tmp_path / "nowhere")}, recipe, "has no weights"),
    }
    tensors, init, networks, named = cases[case]
    save_file({key.removeprefix("module."): value.contiguous() for key, value in tensors.items()}, bad)
    return init, networks, named


CASES = [
    "missing key",
    "other text width",
    "unknown key",
    "inpainting",
    "no unet",
    "no motion",
    "adapter",
    "other codes",
    "middle too many",
    "no controlnet",
    "nan",
    "nothing",
    "no vae",
    "absent",
]


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_named(files: Path, tmp_path: Path, case: str) -> None:
    init, networks, named = unlike(files, tmp_path, case)
    with pytest.raises(UserError, match=named):
        initialise(Init(**init), networks, say=quiet)


def test_a_pickle_with_code_in_it_is_not_run(files: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "callback": Path("x")}, tmp_path / "sd.ckpt")
    with pytest.raises(UserError, match=r"safetensors version"):
        initialise(Init(unet=str(tmp_path / "sd.ckpt")), CONFIGS, say=quiet)
