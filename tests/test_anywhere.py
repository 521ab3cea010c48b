"""AnimateAnywhere from pictures to frames: its base's own sampler (I2), guidance, layouts, and the command."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_anywhere
import torch
from dit_nets import TINY, tiny_dit
from PIL import Image
from tiny_anywhere import CONFIGS, SETTINGS, SIZE

from anycharv_core.checkpoints import cogvideox
from anycharv_core.checkpoints.cogvideox import without_base
from anycharv_core.checkpoints.dit_networks import build_dit_networks, untrained_dit
from anycharv_core.checkpoints.single_file import write_single
from anycharv_core.cli import main
from anycharv_core.errors import UserError
from anycharv_core.inference import anywhere
from anycharv_core.inference.anywhere import AnywhereBackend
from anycharv_core.inference.encode import EncodedVideo
from anycharv_core.inference.latents import Latents
from anycharv_core.inference.phases import Phases
from anycharv_core.inference.pipeline import Pipeline
from anycharv_core.inference.sampling import Sampling, to_the_end
from anycharv_core.inference.shortcuts import FAST, Shortcuts
from anycharv_core.jobs.animate import AnimateJob, animate
from anycharv_core.jobs.background import read_background
from anycharv_core.jobs.run import RenderJob
from anycharv_core.media.canvas import Canvas, CanvasPath
from anycharv_core.media.frames import FrameStore
from anycharv_core.media.pose import POINTS, Poses
from anycharv_core.models.windows import linear_windows
from anycharv_core.preprocess.models import DETECTOR, WHOLE_BODY, pose_files
from anycharv_core.puppets.character import sample_character
from anycharv_core.puppets.motion import sample_motion
from anycharv_core.puppets.render import render
from anycharv_core.puppets.scene import sample_scene
from anycharv_core.systems import read_checkpoint, write_folder


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline(AnywhereBackend(build_dit_networks(tiny_anywhere.checkpoint()), SETTINGS))


def poses_of(frames: int, ankles: bool = True) -> Poses:
    """A few points that move."""
    people = np.full((frames, 1, POINTS, 3), np.nan)
    points = [1, 8, 9, 10, 11, 12, 13] if ankles else [1, 8, 9, 11, 12]
    for frame in range(frames):
        for place in points:
            people[frame, 0, place] = (8 + place + frame / 2, 4 + 2 * place, 1.0)
    return Poses(SIZE, SIZE, list(people))


def inputs(frames: int = 8) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 256, (SIZE, SIZE, 4), np.uint8)
    background = rng.integers(0, 256, (24, 40, 3), np.uint8)
    return {"reference": reference, "background": background, "pose": poses_of(frames), "steps": 2}


@pytest.mark.parametrize("frames", [16, 17])
def test_it_samples_as_diffusers_does(frames: int) -> None:
    """I2: with an untrained ControlNet and no reference the clip is that of CogVideoXImageToVideoPipeline."""
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXImageToVideoPipeline,
        CogVideoXTransformer3DModel,
    )

    torch.manual_seed(0)
    vae = AutoencoderKLCogVideoX(
        down_block_types=["CogVideoXDownBlock3D"] * 4,
        up_block_types=["CogVideoXUpBlock3D"] * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=0.7,
        invert_scale_latents=True,
    ).eval()
    # The pipeline samples its picture's latents: with no variance, that is the mean.
    bias = vae.encoder.conv_out.conv.bias
    with torch.no_grad():
        bias[4:] = -30
        vae.encoder.conv_out.conv.weight[4:] = 0
    dit = tiny_dit()
    oracle = CogVideoXTransformer3DModel(**TINY)
    oracle.load_state_dict(dit.state_dict())
    scheduler = CogVideoXDDIMScheduler(**SETTINGS["noise_scheduler_kwargs"])
    theirs = CogVideoXImageToVideoPipeline(None, None, vae, oracle, scheduler)
    theirs.set_progress_bar_config(disable=True)
    nets = untrained_dit({part: config for part, config in CONFIGS.items() if part not in ("vae", "bml")})
    nets.transformer.load_state_dict(dit.state_dict())
    nets.prompt.embeds.normal_(generator=torch.Generator().manual_seed(1))
    nets.vae = vae
    backend = AnywhereBackend(nets, SETTINGS | {"image_scale": 1 / 0.7})
    sides = (64, 48)
    picture = np.random.default_rng(0).integers(0, 256, (*sides, 3), np.uint8)
    count, pad = backend.system.latents_of(frames)
    noise = torch.randn(count, 4, *(side // 8 for side in sides), generator=torch.Generator().manual_seed(2))
    wanted = theirs(
        image=Image.fromarray(picture),
        height=sides[0],
        width=sides[1],
        num_frames=frames,
        num_inference_steps=3,
        guidance_scale=1.0,
        latents=noise[None],
        prompt_embeds=nets.prompt(),
        output_type="np",
    ).frames[0]
    poses = FrameStore()
    for _ in range(frames):
        poses.append(np.zeros((*sides, 3), np.uint8))
    path = CanvasPath(Canvas(sides[::-1], sides[::-1], sides[::-1]))
    video = EncodedVideo(path, None, None, poses, (True,) * frames, background=picture)
    latents = Latents.begun([noise])
    how = Sampling(3, 1.0, linear_windows(count, size=count))
    to_the_end(backend.denoise(video, [], torch.zeros(1, 0), latents, how))
    made = backend.decode(latents.take(range(pad, count)), deep=True) / 65535
    assert made.shape == (frames, *sides, 3)
    assert np.abs(made - wanted).max() <= 1e-4


def test_every_input_decides(pipe: Pipeline) -> None:
    given = inputs()
    whole = pipe(**given).latents
    assert whole.shape == (2, 4, 8, 8)
    assert torch.equal(whole, pipe(**given).latents)
    swapped = given["reference"].copy()
    swapped[..., :3] = 255 - swapped[..., :3]
    moved = poses_of(8).changed(lambda frame, people: people + np.array([6.0, 0, 0]), (SIZE, SIZE))
    for change in (
        {"reference": swapped},
        {"background": 255 - given["background"]},
        {"pose": moved},
        {"seed": 1},
        {"guidance_scale": 1.0},
        {"shortcuts": Shortcuts(guidance_interval=(0, 0.6))},
    ):
        assert (pipe(**given | change).latents - whole).abs().max() > 1e-3, change


def test_guidance_leaves_out_reference_pose_and_background_together(pipe: Pipeline) -> None:
    """D15: v_u + s (v_c - v_u), where v_u is of the text and the learner alone."""
    given = inputs() | {"steps": 1}
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    given["noise"] = noise
    guided, plain = (pipe(**given, guidance_scale=scale).latents for scale in (2.5, 1.0))
    assert isinstance(pipe.backend, AnywhereBackend)
    nets = pipe.backend.networks
    x = torch.cat([noise, torch.zeros_like(noise)], 1)[None]
    alone = nets.transformer(x, torch.tensor([999]), nets.prompt(), learner=nets.bml)[0]
    # At t = 999 there is noise alone, and one step leads to -v.
    assert torch.allclose(guided, -(alone + 2.5 * (-plain - alone)), atol=1e-4)


@pytest.mark.parametrize("frames", [8, 9, 17])
def test_a_clip_has_as_many_frames_as_poses(pipe: Pipeline, frames: int) -> None:
    made = pipe(**inputs(frames), guidance_scale=1.0)
    assert made.frames.shape == (frames, SIZE, SIZE, 3)
    assert made.denoised.shape[0] == pipe.system.latents_of(frames)[0]


def test_portraits_and_landscapes_are_worked_on_in_their_proportions(pipe: Pipeline) -> None:
    given = inputs()
    for size in ((48, 24), (24, 48)):
        pose = given["pose"].scaled(*size)
        made = pipe(**given | {"pose": pose}, size=size, guidance_scale=1.0)
        assert made.frames.shape == (8, *size[::-1], 3)
    with pytest.raises(UserError, match="20x24 is not divisible by 8"):
        pipe(**given, size=(20, 24))
    # Copies of the config with sample sizes of one format have positions for either.
    nets = untrained_dit(CONFIGS | {"transformer": TINY | {"sample_height": 4, "sample_width": 8}})
    short = Pipeline(AnywhereBackend(nets, SETTINGS))
    assert short(**given | {"pose": given["pose"].scaled(16, 32)}, size=(16, 32)).frames.shape[1:3] == (32, 16)
    with pytest.raises(UserError, match="larger than the 64 pixels a side"):
        short(**given | {"pose": given["pose"].scaled(16, 72)}, size=(16, 72))


def test_the_middle_of_the_background_is_shown() -> None:
    picture = np.zeros((20, 60, 3), np.uint8)
    picture[:, 20:40] = 255
    assert (Canvas((32, 32), (32, 32), (32, 32)).cover(picture) > 200).all()
    assert (Canvas((48, 16), (48, 16), (48, 16)).cover(picture)[:, :14] < 30).all()


def test_what_cannot_be_used_is_said(pipe: Pipeline, tiny_model: Path) -> None:
    given = inputs()
    scene = np.zeros((8, SIZE, SIZE, 3), np.uint8)
    for change, match in (
        ({"pose": poses_of(12)}, "nearest numbers are 9 and 16"),
        ({"pose": poses_of(77)}, "nearest numbers are 73 and 80"),
        ({"pose": poses_of(8, ankles=False)}, "no ankles in any frame"),
        ({"background": None}, "There is no background"),
        ({"background": given["background"][..., 0]}, r"must be uint8 \[H, W, 3\]; it is uint8 \[24"),
        ({"background": given["background"] / 255}, "it is float64"),
        ({"scene": scene}, "puts nobody into a scene"),
        ({"shortcuts": FAST}, "leave --deep-cache and --fast out"),
    ):
        with pytest.raises(UserError, match=match):
            pipe(**given | change)
    with pytest.raises(UserError, match="takes no background picture"):
        Pipeline.from_pretrained(tiny_model)(
            given["reference"], scene, scene[..., 0], scene, background=given["background"]
        )


def test_a_folder_of_its_parts_is_a_model(tmp_path: Path) -> None:
    model = tiny_anywhere.checkpoint()
    write_folder(model, tmp_path / "model")
    read = read_checkpoint(tmp_path / "model")
    assert read.settings == model.settings
    assert all(
        torch.equal(read.weights[part][key], value)
        for part, own in model.weights.items()
        for key, value in own.items()
    )
    base = tiny_anywhere.write_base(model, tmp_path / "base")
    with pytest.raises(UserError, match="give it as --base"):
        read_checkpoint(base)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model, base and inputs of the command."""
    folder, given, model = tmp_path_factory.mktemp("files"), inputs(), tiny_anywhere.checkpoint()
    paths = {name: folder / f"{name}.png" for name in ("reference", "background")}
    for name, path in paths.items():
        Image.fromarray(given[name]).save(path)
    paths["pose"] = folder / "pose.json"
    people = [
        {"pose_keypoints_2d": np.nan_to_num(person[:18]).ravel().tolist()} for (person,) in given["pose"].people
    ]
    frames = [{"canvas_width": SIZE, "canvas_height": SIZE, "people": [person]} for person in people]
    paths["pose"].write_text(json.dumps(frames))
    paths["base"] = tiny_anywhere.write_base(model, folder / "base")
    paths["model"] = folder / "anywhere.safetensors"
    write_single(without_base(model), paths["model"])
    return paths


def _command(files: dict[str, Path], out: Path, *more: str, leave: str = "") -> list[str]:
    options = [f"--{name}={path}" for name, path in files.items() if name != leave]
    return ["animate", *options, "--out", str(out), "--dtype", "fp32", "--device", "cpu", *more]


def test_the_command_makes_what_the_pipeline_does(files: dict[str, Path], tmp_path: Path) -> None:
    assert main(_command(files, tmp_path / "out", "--format", "png")) == 0
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert report["frames"] == 8
    assert report["inputs"]["background"] == str(files["background"])
    assert report["inputs"]["base"] == str(files["base"])
    assert (report["settings"]["steps"], report["settings"]["guidance_scale"]) == (2, 2.5)
    made = np.stack([np.asarray(Image.open(path)) for path in sorted((tmp_path / "out").glob("*.png"))])
    given = inputs()
    wanted = Pipeline.from_pretrained(files["model"], base=files["base"])(
        given["reference"], pose=given["pose"], background=given["background"], steps=2, size=(SIZE, SIZE)
    ).frames
    assert np.array_equal(made, wanted)


def test_a_stopped_clip_goes_on_to_the_same_frames(files: dict[str, Path], tmp_path: Path) -> None:
    def frames(folder: Path) -> list[bytes]:
        return [path.read_bytes() for path in sorted(folder.glob("*.png"))]

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    given: dict[str, Any] = {name: path for name, path in files.items() if name != "model"}
    given |= {"model": str(files["model"]), "device": "cpu", "format": "png", "steps": 3, "solver": "dpm++2m"}
    animate(AnimateJob(**given, out=tmp_path / "at once"))
    job = AnimateJob(**given, out=tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        animate(job, stop)
    assert animate(job)["resumed_rounds"]
    assert frames(tmp_path / "stopped") == frames(tmp_path / "at once")


@pytest.mark.parametrize(
    ("leave", "more", "sentence"),
    [
        ("base", (), "give --base DIR"),
        ("background", (), "There is no background"),
        ("model", (), "takes no background picture"),
        ("", ("--frames", "7"), "nearest numbers are 1 and 8"),
        ("", ("--fast",), "leave --deep-cache and --fast out"),
        ("", ("--image-encoder", "x"), "has no image encoder"),
        ("", ("--compile",), "has no UNet to compile"),
    ],
)
def test_the_command_says_what_is_wrong(
    leave: str,
    more: tuple[str, ...],
    sentence: str,
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(_command(files, tmp_path / "out.mp4", *more, leave=leave)) == 2
    *notes, said = capsys.readouterr().err.strip().splitlines()
    assert sentence in said
    assert len(notes) == (leave == "model"), "what is taken in its place is noted"
    assert not (tmp_path / "out.mp4").exists()


def test_people_in_the_background_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    character = sample_character(5, "heldout")
    motion = sample_motion(5, 3, character.proportions, "heldout")
    drawn = render(character, motion, sample_scene(5, "heldout"), (160, 160))
    for name, picture, people in (
        ("somebody", drawn.frames[0], 1),
        ("nobody", np.full((160, 160, 3), 200, np.uint8), 0),
    ):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
        caplog.clear()
        read_background(tmp_path / f"{name}.png", "embedded", "cpu")
        assert len(caplog.records) == people
    with pytest.raises(UserError, match="is not there"):
        read_background(tmp_path / "nobody.png", str(tmp_path), "cpu")


@pytest.mark.parametrize("lacking", ["onnxruntime", "whole file"])
def test_nobody_looks_for_people_where_the_detector_is_not_named_and_cannot_run(
    lacking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "place.png")
    folder = tmp_path / "models" / "detection"
    folder.mkdir(parents=True)
    for name, own in zip((DETECTOR, WHOLE_BODY), pose_files("embedded"), strict=True):
        content = own.read_bytes()
        (folder / name).write_bytes(content[:500] if lacking == "whole file" else content)
    monkeypatch.delenv("ANYCHARV_MODELS", raising=False)
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    if lacking == "onnxruntime":
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert read_background(tmp_path / "place.png", None, "cpu").shape == (16, 16, 3)
    with pytest.raises(UserError, match="onnxruntime"):
        read_background(tmp_path / "place.png", str(folder), "cpu")


def test_another_command_sends_to_animate(files: dict[str, Path], tmp_path: Path) -> None:
    job = RenderJob(out=tmp_path / "out.mp4", model=str(files["model"]))
    with ExitStack() as stack, pytest.raises(UserError, match="use 'anycharv animate'"):
        job.load("generate", "cpu", Phases(), lambda system, recipe: None, stack)


def test_convert_joins_model_and_base(files: dict[str, Path], tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    assert main(["convert", str(files["model"]), str(whole), "--base", str(files["base"])]) == 0
    assert set(read_checkpoint(whole).weights) == set(CONFIGS)
    assert main(["convert", str(whole), str(tmp_path / "folder")]) == 0
    assert set(read_checkpoint(tmp_path / "folder").weights) == set(CONFIGS)


def test_memory_that_is_not_there_is_said_beforehand(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cogvideox, "free_memory", lambda device: 1000)
    with pytest.raises(UserError, match=r"GB of main memory, of which 0\.0 GB are free"):
        Pipeline.from_pretrained(files["model"], base=files["base"])
    monkeypatch.undo()
    monkeypatch.setattr(anywhere, "free_memory", lambda device: 1000)
    assert Pipeline.from_pretrained(files["model"], base=files["base"]).settings["frames"] == 8
    with pytest.raises(UserError, match="use --dtype bf16"):
        Pipeline.from_pretrained(files["model"], base=files["base"], dtype=torch.float64)
