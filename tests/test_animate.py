"""Animate Anyone: the variant that its checkpoint makes of the same networks, pipeline and command line."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import needs
import numpy as np
import pytest
import torch
from conftest import CONFIGS, UNET
from keypoint_files import draw_pose, people_of
from keypoint_files import write_frames as write_poses
from PIL import Image
from safetensors.torch import load_file

from anycharv_core import Pipeline, UserError
from anycharv_core.checkpoints.checkpoint import Checkpoint
from anycharv_core.checkpoints.networks import build_networks, untrained
from anycharv_core.checkpoints.single_file import write_single
from anycharv_core.cli import main
from anycharv_core.files import MANIFEST
from anycharv_core.media.chroma_key import key_colour, key_onto, on_colour
from anycharv_core.media.pose import BODY, body_points, parse_poses
from anycharv_core.media.video_read import probe, read_frames
from anycharv_core.media.video_write import VideoWriter
from anycharv_core.models import DenoisingUNet, PoseGuider, PoseGuiderConfig, ReferenceNet, UNetConfig
from anycharv_core.models.schedule import NoiseSchedule, alphas_cumprod, ddim_step, ddim_timesteps
from anycharv_core.models.windows import closed_loop_windows
from anycharv_core.preprocess.retarget import rescale
from anycharv_core.systems import read_checkpoint, write_folder
from anycharv_core.systems.animate_anyone import ANIMATE_ANYONE, SD15
from anycharv_core.systems.animate_anyone import RECIPES as ANIMATE_RECIPES
from anycharv_core.systems.anycharv import ANYCHARV

MOORE = needs.PARITY / "moore"
recorded = needs.recorded(MOORE)
CASES = sorted(path.name for path in (MOORE / "public" / "cases").glob("*"))

SIZE, FRAMES = 32, 5
V1 = NoiseSchedule(epsilon=True, zero_snr=False, leading=True)
MOTION = "motion_module.pth"


def configs(v1: bool) -> dict[str, Any]:
    """A tiny Animate Anyone of the first or the second configuration."""
    base = CONFIGS["reference_unet"]
    own = {"use_inflated_groupnorm": not v1, "use_motion_module": True, "motion_module_mid_block": not v1}
    kwargs = UNET["motion_module_kwargs"] | {"temporal_position_encoding_max_len": 24 if v1 else 32}
    return CONFIGS | {"denoising_unet": base | own | {"motion_module_kwargs": kwargs}}


def make(folder: Path, v1: bool) -> Path:
    torch.manual_seed(0)
    chosen = configs(v1)
    weights = {part: module.state_dict() for part, module in vars(untrained(chosen)).items()}
    settings = {"noise_scheduler_kwargs": (V1 if v1 else NoiseSchedule()).to_dict()}
    write_folder(Checkpoint(chosen, weights, settings), folder)
    return folder


@pytest.fixture(scope="module", params=[True, False], ids=["v1", "v2"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("animate") / "model", request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One of the second configuration, to be spoilt."""
    return make(tmp_path / "model", v1=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("animate") / "model", v1=False)


@pytest.fixture(scope="module")
def pipe(model: Path) -> Pipeline:
    return Pipeline.from_pretrained(model)


@pytest.fixture
def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "reference": rng.integers(256, size=(40, 24, 3), dtype=np.uint8),
        "pose": rng.integers(256, size=(FRAMES, SIZE, 28, 3), dtype=np.uint8),
    }


# Against what the release made of the same weights.


@pytest.fixture(scope="module")
def release() -> Pipeline:
    return Pipeline.from_pretrained(MOORE / "public" / "models" / "m0")


@recorded
@pytest.mark.parametrize("name", CASES)
def test_latents_equal_the_release(release: Pipeline, name: str) -> None:
    case = json.loads((MOORE / "public" / "cases" / name / "case.json").read_text())
    golden = load_file(MOORE / "public" / "cases" / name / "golden.safetensors")
    given = np.load(MOORE / "public" / case["inputs"])
    out = release(
        given["ref"],
        pose=given["pose"],
        size=(case["width"], case["height"]),
        steps=case["num_inference_steps"],
        guidance_scale=case["guidance_scale"],
        noise=golden["noise"][0].movedim(0, 1),
        recipe="official",
    )
    assert (out.latents - golden["final_latents"][0].movedim(0, 1)).abs().max() <= 2e-4
    pixels = golden["video_uint8_thwc_every4"].numpy().astype(int)
    assert np.abs(out.frames[::4].astype(int) - pixels).max() <= 1


@recorded
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_schedules_are_those_of_the_release(version: str) -> None:
    table = json.loads((MOORE / "scheduler.json").read_text())[version]
    schedule = NoiseSchedule.from_dict(table["kwargs"])
    assert schedule == (V1 if version == "v1" else NoiseSchedule())
    np.testing.assert_allclose(alphas_cumprod(schedule.zero_snr), table["alphas_cumprod"], atol=1e-6)
    for steps, rows in table["steps"].items():
        pairs = zip(rows["timesteps"], rows["prev_timestep"], strict=True)
        assert ddim_timesteps(int(steps), schedule) == list(pairs)


@recorded
def test_windows_are_those_of_the_release() -> None:
    for case in json.loads((MOORE / "context_windows.json").read_text()):
        if (case["context_stride"], case["step"]) == (1, 0):
            sizes = case["context_size"], case["context_overlap"]
            windows = closed_loop_windows(case["num_frames"], True, *sizes)
            assert [list(window) for window in windows.indices] == case["windows"]


def test_epsilon_leads_back_to_the_clean_latents() -> None:
    clean, noise = torch.randn(2, 3, 4, 5)
    x = alphas_cumprod(False)[991].sqrt() * clean + (1 - alphas_cumprod(False)[991]).sqrt() * noise
    for t, t_prev in ddim_timesteps(100, V1):
        x = ddim_step(noise, x, t, t_prev, V1)
    torch.testing.assert_close(x, clean, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "change", [{"beta_schedule": "scaled_linear"}, {"prediction_type": "sample"}, {"clip_sample": True}]
)
def test_other_schedulers_are_refused(change: dict) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        NoiseSchedule.from_dict(NoiseSchedule().to_dict() | change)


# Checkpoints.


def official_config(v1: bool) -> dict[str, Any]:
    kwargs = UNET["motion_module_kwargs"] | {
        "num_attention_heads": 8,
        "temporal_position_encoding_max_len": 24 if v1 else 32,
    }
    return SD15 | {
        "use_inflated_groupnorm": not v1,
        "use_motion_module": True,
        "motion_module_resolutions": [1, 2, 4, 8],
        "motion_module_mid_block": not v1,
        "motion_module_kwargs": kwargs,
    }


@pytest.mark.parametrize(("v1", "count", "million"), [(True, 560, 417.9), (False, 588, 454.4)])
def test_the_full_size_layout(v1: bool, count: int, million: float) -> None:
    with torch.device("meta"):
        denoising = DenoisingUNet(UNetConfig.from_dict(official_config(v1))).state_dict()
        reference = ReferenceNet(UNetConfig.from_dict(SD15)).state_dict()
        guider = PoseGuider(PoseGuiderConfig(320, block_out_channels=(16, 32, 96, 256))).state_dict()
    motion = {key: value for key, value in denoising.items() if ".motion_modules." in key}
    codes = [value for key, value in motion.items() if key.endswith(".pe")]
    assert len(motion) == count and {len(code[0]) for code in codes} == {24 if v1 else 32}
    assert len(codes) == (40 if v1 else 42)
    assert sum(key.startswith("mid_block") for key in motion) == (0 if v1 else 28)
    assert sum(v.numel() for v in motion.values()) / 1e6 == pytest.approx(million, abs=0.2)
    base = [value.numel() for key, value in denoising.items() if key not in motion]
    assert (len(base), len(reference), len(guider)) == (686, 682, 16)
    assert sum(base) / 1e6 == pytest.approx(859.5, abs=0.1)
    assert sum(v.numel() for v in guider.values()) / 1e6 == pytest.approx(1.09, abs=0.01)
    assert not {key for key in reference if key.startswith("conv_norm_out") or key.startswith("conv_out")}


def test_the_variant_is_read_from_the_weights(published: Path, tiny_model: Path) -> None:
    made = Pipeline.from_pretrained(published)
    cfg = made.backend.networks.denoising_unet.cfg
    assert made.system is ANIMATE_ANYONE and cfg.in_channels == 4
    v1 = cfg.joint_norm
    assert made.backend.schedule == (V1 if v1 else NoiseSchedule())
    assert (cfg.motion.mid_block, cfg.motion.max_len) == ((False, 24) if v1 else (True, 32))
    assert Pipeline.from_pretrained(tiny_model).system is ANYCHARV


def test_layout_to_single_file_and_back(published: Path, tmp_path: Path) -> None:
    assert main(["convert", str(published), str(tmp_path / "one.safetensors")]) == 0
    assert main(["convert", str(tmp_path / "one.safetensors"), str(tmp_path / "back")]) == 0
    names = sorted(path.relative_to(published) for path in published.rglob("*") if path.is_file())
    back = tmp_path / "back"
    written = sorted(p.relative_to(back) for p in back.rglob("*") if p.is_file() and p.name != MANIFEST)
    assert names == written
    for name in names:
        first, second = published / name, tmp_path / "back" / name
        if name.suffix == ".json":
            # The VAE's library writes its defaults out.
            before, after = (json.loads(path.read_text()) for path in (first, second))
            assert after == before if "vae" not in name.parts else after == after | before
            continue
        read = load_file if name.suffix == ".safetensors" else torch.load
        before, after = read(first), read(second)
        assert before.keys() == after.keys()
        assert all(torch.equal(v, after[k]) and v.dtype == after[k].dtype for k, v in before.items())
        assert second.stat().st_size == pytest.approx(first.stat().st_size, rel=0.01)


def test_settings_follow_from_the_motion_file(published: Path, tmp_path: Path) -> None:
    """As with the published weights, beside which there are no settings."""
    copy = Path(shutil.copytree(published, tmp_path / "copy"))
    (copy / "inference.json").unlink()
    read, original = read_checkpoint(copy), read_checkpoint(published)
    assert read.settings == original.settings
    wanted, found = (UNetConfig.from_dict(c.configs["denoising_unet"]) for c in (original, read))
    assert (found.joint_norm, found.motion.max_len) == (wanted.joint_norm, wanted.motion.max_len)


def motion_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / MOTION, weights_only=True)


def v1_motion(folder: Path) -> dict[str, torch.Tensor]:
    kept = {key: value for key, value in motion_of(folder).items() if not key.startswith("mid_block.")}
    return {key: value[:, :24].clone() if key.endswith(".pe") else value for key, value in kept.items()}


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_animatediff_files_take_the_motion_files_place(folder: Path, version: str) -> None:
    motion, name = motion_of(folder), {"v1": "mm_sd_v15.ckpt", "v2": "mm_sd_v15_v2.ckpt", "v3": "v3_sd15_mm.ckpt"}
    (folder / MOTION).unlink()
    if version == "v1":
        motion = v1_motion_settings(folder, motion)
    elif version == "v3":
        motion = {key: value for key, value in motion.items() if not key.startswith("mid_block.")}
    content: dict[str, Any] = {f"module.{key}": value for key, value in motion.items()}
    if version != "v2":
        content = {"epoch": 1, "global_step": 2, "state_dict": content}
    torch.save(content, folder / name[version])
    checkpoint = read_checkpoint(folder)
    build_networks(checkpoint)
    read = {k: v for k, v in checkpoint.weights["denoising_unet"].items() if ".motion_modules." in k}
    assert read.keys() == motion.keys() and all(torch.equal(read[key], motion[key]) for key in motion)


def v1_motion_settings(folder: Path, motion: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    settings = json.loads((folder / "inference.json").read_text())
    settings["unet_additional_kwargs"]["motion_module_mid_block"] = False
    settings["unet_additional_kwargs"]["motion_module_kwargs"]["temporal_position_encoding_max_len"] = 24
    (folder / "inference.json").write_text(json.dumps(settings))
    kept = {key: value for key, value in motion.items() if not key.startswith("mid_block.")}
    return {key: value[:, :24].clone() if key.endswith(".pe") else value for key, value in kept.items()}


def test_a_motion_file_without_a_mid_block_computes_what_an_untrained_one_does(folder: Path) -> None:
    """AnimateDiff v3 in v2 settings: the release leaves those modules' projections at zero."""
    motion = motion_of(folder)
    zero = {k: torch.zeros_like(v) for k, v in motion.items() if k.startswith("mid_block.") and "proj_out" in k}
    assert zero
    torch.save(motion | zero, folder / MOTION)
    first = build_networks(read_checkpoint(folder)).denoising_unet
    torch.save({k: v for k, v in motion.items() if not k.startswith("mid_block.")}, folder / MOTION)
    second = build_networks(read_checkpoint(folder)).denoising_unet
    x, image, pose = torch.randn(3, 4, 8, 8), torch.randn(1, 16), torch.randn(3, 32, 8, 8)
    outputs = (net(x, torch.zeros(1), image, pose, None, frames=3) for net in (first, second))
    torch.testing.assert_close(*outputs)


def spoil_missing(folder: Path) -> None:
    (folder / MOTION).unlink()


def spoil_v1(folder: Path) -> None:
    torch.save(v1_motion(folder), folder / MOTION)


def spoil_width(folder: Path) -> None:
    motion = motion_of(folder)
    key = next(key for key in motion if key.endswith("proj_in.weight"))
    torch.save(motion | {key: torch.zeros(7, 7)}, folder / MOTION)


def spoil_fewer(folder: Path) -> None:
    torch.save({k: v for k, v in motion_of(folder).items() if not k.startswith("up_blocks.1.")}, folder / MOTION)


def spoil_other_model(folder: Path) -> None:
    torch.save({"double_blocks.0.weight": torch.zeros(1)}, folder / MOTION)


def spoil_guider(folder: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, folder / "pose_guider.pth")


def spoil_reference(folder: Path) -> None:
    (folder / "reference_unet.pth").unlink()


def spoil_config(folder: Path) -> None:
    shutil.rmtree(folder / "stable-diffusion-v1-5")


def spoil_settings(folder: Path) -> None:
    (folder / "inference.json").write_text("[]")


SPOILT = {
    spoil_missing: r"has no motion_module\.pth",
    spoil_v1: "motion modules for 24 frames, without the mid block, but inference.json is set for 32",
    spoil_width: "another architecture .*another size of",
    spoil_fewer: "another architecture .*it has no 'up_blocks.1.",
    spoil_other_model: "no AnimateDiff motion file",
    spoil_guider: "not a pose guider",
    spoil_reference: r"has no reference_unet\.pth",
    spoil_config: r"has no stable-diffusion-v1-5/unet/config\.json",
    spoil_settings: "does not hold unet_additional_kwargs",
}


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_a_spoilt_folder_is_named_in_one_sentence(folder: Path, spoil: Any) -> None:
    spoil(folder)
    with pytest.raises(UserError, match=SPOILT[spoil]) as error:
        Pipeline.from_pretrained(folder)
    assert "\n" not in str(error.value)


# Networks and pipeline.


def test_the_first_configuration_normalises_frames_jointly() -> None:
    torch.manual_seed(0)
    net = DenoisingUNet(UNetConfig.from_dict(configs(v1=True)["denoising_unet"])).requires_grad_(False)
    x, image, pose = torch.randn(4, 4, 8, 8), torch.randn(1, 16), torch.randn(4, 32, 8, 8)
    joint = torch.nn.GroupNorm(16, 32)
    h = net.conv_in(x) + pose
    expected = joint(h.unflatten(0, (2, 2)).transpose(1, 2)).transpose(1, 2).flatten(0, 1)
    norm = net.down_blocks[0].resnets[0].norm1
    seen = []
    handle = norm.register_forward_hook(lambda module, given, out: seen.append(out))
    clips = net(x, torch.zeros(1), image, pose, None, frames=2)
    handle.remove()
    torch.testing.assert_close(seen[0].transpose(1, 2).flatten(0, 1), expected)
    # One clip's frames never touch another's.
    alone = net(x[2:], torch.zeros(1), image, pose[2:], None, frames=2)
    torch.testing.assert_close(clips[2:], alone, atol=1e-5, rtol=1e-5)


def test_default_frames_have_the_poses_size(pipe: Pipeline, inputs: dict) -> None:
    out = pipe(**inputs, steps=1)
    assert out.frames.shape == (FRAMES, SIZE, 28, 3) and out.latents.shape == (FRAMES, 4, SIZE // 2, 14)
    streamed = pipe(inputs["reference"], pose=iter(inputs["pose"]), steps=1)
    assert np.array_equal(np.stack(list(streamed.frames)), out.frames)
    smaller = pipe(**inputs, steps=1, size=(16, 16))
    assert smaller.frames.shape == (FRAMES, 16, 14, 3)


def test_the_reference_keeps_its_proportions_and_fills_up_with_its_edges() -> None:
    picture = np.zeros((40, 20, 3), np.uint8)
    picture[10:30, 5:15] = 255
    canvas = ANIMATE_RECIPES["default"].canvas(None, (64, 32), None, 8)
    placed = ANIMATE_RECIPES["default"].reference(np.maximum(picture, 9), canvas)
    rows, columns = np.nonzero(placed[..., 0] > 132)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (16, 8)
    assert (placed[:, :20] == 9).all()


def test_default_averages_where_official_sums(pipe: Pipeline) -> None:
    for guidance in (1.0, 3.0):
        windows = ANIMATE_RECIPES["default"].windows(40, guidance)
        assert windows.average and all(list(w) == sorted(w) for w in windows.indices)
    assert not ANIMATE_RECIPES["official"].windows(40, 1.0).average
    assert ANIMATE_RECIPES["official"].windows(40, 3.0).indices[1][0] == 20


def test_a_scene_behind_the_keyed_character(pipe: Pipeline, inputs: dict) -> None:
    scene = np.random.default_rng(1).integers(256, size=(FRAMES, SIZE, 28, 3), dtype=np.uint8)
    alpha = np.zeros((40, 24), np.uint8)
    alpha[5:35, 5:20] = 255
    key = key_colour(inputs["reference"], alpha)
    plain = pipe(on_colour(inputs["reference"], alpha, key), pose=inputs["pose"], steps=1).frames
    out = pipe(**inputs, scene=scene, reference_mask=alpha, steps=1).frames
    expected = np.stack([key_onto(*pair, key) for pair in zip(plain, scene, strict=True)])
    assert np.array_equal(out, expected)


def test_a_scene_outside_the_masks_is_untouched(pipe: Pipeline, inputs: dict) -> None:
    scene = np.random.default_rng(1).integers(256, size=(FRAMES, SIZE, 28, 3), dtype=np.uint8)
    mask = np.zeros((FRAMES, SIZE, 28), np.uint8)
    mask[:, 10:20, 10:20] = 255
    out = pipe(**inputs, scene=scene, mask=mask, steps=1).frames
    made = pipe(**inputs, steps=1).frames
    assert np.array_equal(out[:, :8], scene[:, :8]) and np.array_equal(out[:, 13:17, 13:17], made[:, 13:17, 13:17])


def test_keying_keeps_the_character_and_the_scene() -> None:
    picture, alpha = np.full((8, 8, 3), (10, 200, 30), np.uint8), np.full((8, 8), 255, np.uint8)
    key = key_colour(picture, alpha)
    assert max(abs(a - b) for a, b in zip(key, (10, 200, 30), strict=True)) > 120
    made = np.full((8, 8, 3), key, np.uint8)
    made[2:5, 2:5] = picture[0, 0]
    made[6, 6] = np.clip(np.array(key, int) + np.array([-20, 20, -9]), 0, 255)
    scene = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)
    out = key_onto(made, scene, key)
    assert (out[2:5, 2:5] == picture[0, 0]).all()
    outside = np.ones((8, 8), bool)
    outside[2:5, 2:5] = False
    assert np.array_equal(out[outside], scene[outside])


def test_bad_input_is_named_in_one_sentence(pipe: Pipeline, tiny_model: Path, inputs: dict) -> None:
    scene = np.zeros((FRAMES, SIZE, 28, 3), np.uint8)
    mask = np.zeros((FRAMES, SIZE, 28), np.uint8)
    swap = Pipeline.from_pretrained(tiny_model)
    cases = [
        (pipe, {"size": (17, 16)}, "17x16 is not divisible by 2; use 16x16"),
        (pipe, {"size": (17, 16), "recipe": "official"}, "17x16 is not divisible by 2"),
        (pipe, {"pose": None}, "no pose"),
        (pipe, {"pose": inputs["pose"][:0]}, "pose has no frames"),
        (pipe, {"mask": mask}, "a mask but no scene"),
        (pipe, {"scene": scene}, "needs a matte"),
        (pipe, {"scene": scene, "recipe": "official"}, "knows no scene"),
        (pipe, {"scene": scene[:3], "mask": mask}, "scene has 3 frames but the pose has more"),
        (pipe, {"scene": scene, "mask": mask[:, :9]}, "masks of the scene's size"),
        (pipe, {"noise": torch.zeros(1, 4, 2, 2)}, "noise has shape"),
        (swap, {}, "replaces a person in a scene"),
    ]
    for model, change, sentence in cases:
        with pytest.raises(UserError, match=sentence) as error:
            model(**{"steps": 1} | inputs | change)
        assert "\n" not in str(error.value)


# Skeletons.

UPRIGHT = {0: (50, 20), 1: (50, 30), 8: (45, 60), 9: (45, 75), 10: (45, 90)}
UPRIGHT |= {11: (55, 60), 12: (55, 75), 13: (55, 90)}


def figure(size: tuple[int, int], scale: float, shift: tuple[float, float]) -> dict[str, Any]:
    points = np.zeros((18, 3))
    for joint, place in UPRIGHT.items():
        points[joint] = (*(scale * np.array(place) + shift), 1.0)
    people = [{BODY: points.ravel().tolist()}]
    return {"canvas_width": size[0], "canvas_height": size[1], "people": people}


def test_rescaling_takes_the_characters_length_and_place() -> None:
    clip = parse_poses([figure((200, 100), 0.5, (100 + step, 20)) for step in range(5)])
    reference = parse_poses(figure((100, 100), 0.8, (5, 5)))
    frames = rescale(clip, reference).people
    # The picture lies in the middle of the clip's canvas, 50 pixels from its left.
    wanted = body_points(people_of(figure((200, 100), 0.8, (55, 5)))[0])
    np.testing.assert_allclose(body_points(frames[2][0])[:, :2], wanted[:, :2], atol=1e-3)
    np.testing.assert_allclose(body_points(frames[3][0])[1] - body_points(frames[2][0])[1], (1.6, 0, 0), atol=1e-3)
    stretched = rescale(clip, reference, keep_aspect=False).people
    assert body_points(stretched[2][0])[1, 0] == pytest.approx(2 * (0.8 * 50 + 5), abs=1e-3)


# The command line.


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(256, size=(40, 24, 3), dtype=np.uint8)).save(tmp_path / "ref.png")
    write_poses(tmp_path / "pose.json", [figure((64, 96), 0.6, (i, 0)) for i in range(FRAMES)])
    write_poses(tmp_path / "character.json", [figure((24, 40), 0.3, (0, 0))])
    with VideoWriter(tmp_path / "scene.mp4", 32, 48, [0, 1, 3, 4, 9], Fraction(1, 10)) as writer:
        for _ in range(FRAMES):
            writer.write(rng.integers(256, size=(48, 32, 3), dtype=np.uint8))
    return {path.stem: path for path in tmp_path.iterdir()}


def animate(files: dict[str, Path], model: Path, *more: str) -> int:
    given = ["--reference", str(files["ref"]), "--pose", str(files["pose"]), "--model", str(model)]
    out = files["ref"].with_name("out.mp4")
    return main(["animate", *given, "--out", str(out), "--size", "32x32", "--steps", "1", *more])


def test_animate_writes_video_sheet_and_report(model: Path, files: dict, tmp_path: Path) -> None:
    character = ["--reference-pose", str(files["character"])]
    assert animate(files, model, *character, "--sheet", str(tmp_path / "sheet.png")) == 0
    info = probe(tmp_path / "out.mp4")
    assert (info.frames, info.rate, info.width, info.height) == (FRAMES, 24, 21, 32)
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert report["settings"]["rescale"] and report["settings"]["guidance_scale"] == 3.5
    assert (tmp_path / "sheet.png").is_file()


def test_animate_in_front_of_a_clip_keeps_its_times(model: Path, files: dict, tmp_path: Path) -> None:
    mask = np.zeros((40, 24), np.uint8)
    mask[5:35, 4:20] = 255
    Image.fromarray(mask).save(tmp_path / "matte.png")
    matte = ["--reference-mask", str(tmp_path / "matte.png"), "--scene", str(files["scene"])]
    assert animate(files, model, *matte) == 0
    source, made = probe(files["scene"]), probe(tmp_path / "out.mp4")
    assert [t * made.time_base for t in made.timestamps] == [t * source.time_base for t in source.timestamps]
    assert (made.width, made.height) == (32, 48)
    assert animate(files, model, *matte, "--frames", "3", "--fps", "12") == 0
    assert (probe(tmp_path / "out.mp4").frames, probe(tmp_path / "out.mp4").rate) == (3, 12)


def test_a_skeleton_video_gives_its_times(model: Path, files: dict, tmp_path: Path) -> None:
    assert animate(files | {"pose": files["scene"]}, model, "--recipe", "official") == 0
    assert probe(tmp_path / "out.mp4").timestamps == probe(files["scene"]).timestamps
    assert len(list(read_frames(tmp_path / "out.mp4"))) == FRAMES


DWPOSE = needs.PARITY / "pose_drawing" / "real_dwpose.mp4"


@pytest.fixture(params=["drawn", pytest.param("of a real clip", marks=needs.recorded(DWPOSE))])
def skeletons(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A video of skeletons: ours, or what DWPose found in a filmed clip."""
    if request.param != "drawn":
        return DWPOSE
    with VideoWriter(tmp_path / "drawn.mp4", 94, 142, rate=Fraction(25)) as writer:
        for step in range(FRAMES):
            writer.write(draw_pose(figure((94, 142), 1.2, (2 * step - 20, 10))))
    return tmp_path / "drawn.mp4"


@pytest.mark.parametrize("which", ["embedded-animate", "v1", "v2"])
def test_a_video_of_skeletons_drives_every_model(skeletons: Path, which: str, files: dict, tmp_path: Path) -> None:
    chosen = Path(which) if which.startswith("embedded") else make(tmp_path / which, which == "v1")
    source = probe(skeletons)
    made = tmp_path / "out.mp4"
    for asked in ((36, 52), (100, 36)):
        size = ["--size", "x".join(map(str, asked)), "--frames", "3"]
        assert animate(files | {"pose": skeletons}, chosen, *size) == 0
        info = probe(made)
        scale = min(asked[0] / source.width, asked[1] / source.height)
        assert (info.width, info.height) == (round(scale * source.width), round(scale * source.height))
        assert (info.frames, info.rate) == (3, source.rate)
        assert all(frame.std() > 1 for frame in read_frames(made))


def test_without_a_model_the_embedded_one_animates_at_its_own_size(files: dict, tmp_path: Path) -> None:
    given = ["--reference", str(files["ref"]), "--pose", str(files["pose"]), "--frames", "2"]
    assert main(["animate", *given, "--out", str(tmp_path / "out.mp4")]) == 0
    report = json.loads((tmp_path / "out.report.json").read_text())
    settings = Pipeline.from_pretrained("embedded-animate").settings
    assert report["model"] == "embedded-animate" and report["frames"] == 2
    assert report["settings"]["steps"] == settings["steps"]
    width, height = report["output_size"]
    area = settings["size"][0] * settings["size"][1]
    assert width * height == pytest.approx(area, rel=0.15) and width / height == pytest.approx(64 / 96, rel=0.05)


def test_what_animate_refuses(
    model: Path, tiny_model: Path, files: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cases = [
        (model, ["--frames", "9"], "holds 5 poses but 9 frames are asked for"),
        (model, ["--size", "33x32"], "33x32 is not divisible by 2"),
        (model, ["--mask", str(files["scene"])], "a mask but no scene"),
        (model, ["--scene", str(files["scene"])], "needs a matte"),
        (model, ["--scene", str(files["scene"]), "--frames", "3", "--recipe", "official"], "knows no scene"),
        (tiny_model, [], "use 'anycharv generate'"),
        (model, ["--pose", str(tmp_path / "none.json")], "none.json is not there; check the path"),
        (model, ["--pose", str(tmp_path / "none.mp4")], "none.mp4 is not there; check the path"),
        ("embedded-animate", ["--size", "50x50"], "50x50 is not divisible by 4; use 48x48, say"),
    ]
    for chosen, more, sentence in cases:
        assert animate(files, chosen, *more) == 2
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1
    assert not (tmp_path / "out.mp4").exists()


def test_generate_refuses_a_model_without_scene(model: Path, files: dict, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "boxes.json").write_text(json.dumps([[4, 4, 28, 40]] * FRAMES))
    write_poses(tmp_path / "pose.json", [figure((32, 48), 0.4, (i, 0)) for i in range(FRAMES)])
    given = ["--reference", files["ref"], "--video", files["scene"], "--mask", tmp_path / "boxes.json"]
    given += ["--pose", tmp_path / "pose.json", "--model", model, "--out", tmp_path / "swap.mp4"]
    assert main(["generate", *map(str, given)]) == 2
    assert "use 'anycharv animate'" in capsys.readouterr().err


def test_a_single_file_animates_as_the_folder(published: Path, inputs: dict, tmp_path: Path) -> None:
    write_single(read_checkpoint(published), tmp_path / "one.safetensors")
    pipes = (Pipeline.from_pretrained(path) for path in (published, tmp_path / "one.safetensors"))
    first, second = (pipe(**inputs, steps=2).latents for pipe in pipes)
    # Not to the bit: where a file places a weight in memory decides which kernel a CPU library picks.
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


def test_empty_settings_of_the_motion_modules_mean_a_model_of_pictures(folder: Path) -> None:
    """An empty unet_additional_kwargs raised KeyError."""
    (folder / "inference.json").write_text(json.dumps({"unet_additional_kwargs": {}}))
    (folder / MOTION).unlink()
    checkpoint = read_checkpoint(folder)
    assert checkpoint.configs["denoising_unet"]["use_inflated_groupnorm"] is False
    assert build_networks(checkpoint).denoising_unet.cfg.motion is None
