"""Mistakes in a real ComfyUI: each is one readable sentence on the node where it was made."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import needs
import numpy as np
import pytest
import torch
from comfyui_server import (
    PYTHON,
    ExecutionFailed,
    PromptRefused,
    Server,
    shared_server,
    small_prompt,
)
from PIL import Image
from safetensors.torch import save_file

from anycharv_core.checkpoints.places import EMBEDDED
from anycharv_core.media.video_write import VideoWriter
from anycharv_core.systems import read_checkpoint, write_folder

FRAMES, OTHER = 8, 5
Prompt = dict[str, Any]

pytestmark = [pytest.mark.comfyui, needs.comfyui]


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Server:
    """The server with broken and foreign files among its models."""
    server = shared_server()
    models = server.base / "models" / "anycharv"
    foreign = {
        "sd15": "model.diffusion_model.input_blocks.0.0.weight",
        "lora": "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
    }
    for name, key in foreign.items():
        save_file({key: torch.zeros(4, 4)}, models / f"{name}.safetensors")
    (models / "torn.safetensors").write_bytes(EMBEDDED["embedded"].read_bytes()[:100_000])
    shutil.copytree(tiny_model, models / "half")
    shutil.rmtree(models / "half" / "pose_guider")
    shutil.copytree(tiny_model, models / "bare")
    for part in ("vae", "image_encoder"):
        shutil.rmtree(models / "bare" / part)
    write_folder(read_checkpoint("embedded-animate"), models / "still")
    (models / "still" / "motion_module.pth").unlink()
    # Found by ComfyUI to be a TAESD of 16 channels, as Flux and SD3 have.
    save_file({"taesd_decoder.1.weight": torch.zeros(64, 16, 3, 3)}, server.base / "models/vae/flux.safetensors")
    with VideoWriter(server.base / "input" / "one_a_second.mp4", 64, 64, rate=Fraction(1)) as writer:
        for _ in range(3):
            writer.write(np.zeros((64, 64, 3), np.uint8))
    return server


def small(**inputs: dict[str, Any]) -> Prompt:
    """The small prompt with `inputs` of a node changed; n5=... stands for node "5"."""
    prompt = small_prompt(FRAMES)
    for node, changed in inputs.items():
        prompt[node[1:]]["inputs"] |= changed
    return prompt


def plus(prompt: Prompt, **nodes: tuple[str, dict[str, Any]]) -> Prompt:
    return prompt | {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def other_clip(**inputs: dict[str, Any]) -> Prompt:
    """The small prompt beside a clip "other" that is shorter."""
    return plus(small(**inputs), other=("AnyCharVPuppetClip", {"seed": 3, "frames": OTHER, "size": 64}))


def no_frames(**inputs: dict[str, Any]) -> Prompt:
    """The small prompt beside "parts", whose pictures are none: it is cut between two frames."""
    return plus(
        small(**inputs),
        clip=("LoadVideo", {"file": "one_a_second.mp4"}),
        cut=(
            "Video Slice",
            {
                "video": ["clip", 0],
                "start_time": 0.3,
                "duration": 0.2,
                "strict_duration": False,
            },
        ),
        parts=("GetVideoComponents", {"video": ["cut", 0]}),
        none=("ImageToMask", {"image": ["parts", 0], "channel": "red"}),
    )


def without(*inputs: str, **changed: dict[str, Any]) -> Prompt:
    """The small prompt whose AnyCharV Conditioning lacks `inputs`."""
    prompt = small(**changed)
    for name in inputs:
        del prompt["5"]["inputs"][name]
    return prompt


def animation(*inputs: str, **changed: Any) -> Prompt:
    """The small prompt with a model of Animate Anyone, and of scene and mask only `inputs`."""
    prompt = without(*({"scene", "mask"} - {*inputs}), n1={"checkpoint": "embedded-animate"})
    prompt["5"]["inputs"] |= changed
    del prompt["3"]["inputs"]["mask"]
    return prompt


def long_video(length: int, overlap: int) -> Prompt:
    settings = {"model": ["1", 0], "length": length, "overlap": overlap, "fuse": "ramp", "layout": "linear"}
    return plus(small(n6={"model": ["long", 0]}), long=("AnyCharVLongVideo", settings))


def box_mask(region: str) -> Prompt:
    settings = {"region": [region, 0], "padding": 0.1, "smooth": 2, "min_size": 0, "if_absent": "keep the frame"}
    return plus(
        no_frames(n5={"mask": ["boxes", 0]}),
        boxes=("AnyCharVBoxMask", settings),
        box=("PrimitiveBoundingBox", {"x": 1, "y": 1, "width": 9, "height": 9}),
    )


def composite(**inputs: list[Any]) -> Prompt:
    given = {"generated": ["7", 0], "original": ["2", 1], "mask": ["2", 2], "feather": 2} | inputs
    return plus(
        other_clip(n8={"images": ["paste", 0]}),
        paste=("AnyCharVComposite", given),
        solid=("SolidMask", {"value": 1.0, "width": 48, "height": 40}),
    )


def uncovered(**inputs: list[Any]) -> Prompt:
    prompt = composite(**inputs)
    del prompt["paste"]["inputs"]["mask"], prompt["3"]["inputs"]["mask"]
    return prompt


def foreign_vae(name: str) -> Prompt:
    return plus(small(n5={"vae": ["vae", 0]}), vae=("VAELoader", {"vae_name": name}))


def replace(*absent: str, **inputs: Any) -> Prompt:
    """The whole job in one node, without the inputs that are `absent`."""
    given = {
        "model": ["1", 0],
        "reference_net": ["1", 1],
        "vae": ["1", 2],
        "clip_vision": ["1", 3],
        "video": ["2", 0],
        "reference": ["2", 4],
        "mask": ["2", 2],
        "pose": ["2", 3],
        "steps": 1,
        "cfg": 1.0,
        "seed": 42,
        "width": 0,
        "height": 0,
        "recipe": "default",
    }
    given = {name: value for name, value in given.items() if name not in absent}
    prompt = no_frames()
    del prompt["8"]
    return plus(
        prompt,
        other=("AnyCharVPuppetClip", {"seed": 3, "frames": OTHER, "size": 64}),
        whole=("AnyCharVReplaceCharacter", given | inputs),
        save=(
            "SaveVideo",
            {"video": ["whole", 0], "filename_prefix": "whole", "format": "auto", "format.codec": "auto"},
        ),
    )


CASES: dict[str, tuple[Callable[[], Prompt], str, str]] = {
    "scene without frames": (lambda: no_frames(n5={"scene": ["parts", 0]}), "5", "scene has no frames"),
    "pose without frames": (lambda: no_frames(n5={"pose": ["parts", 0]}), "5", "pose has no frames"),
    "mask without frames": (lambda: no_frames(n5={"mask": ["none", 0]}), "5", "mask has no frames"),
    "reference without frames": (lambda: no_frames(n3={"image": ["parts", 0]}), "3", "image has no frames"),
    "region without frames": (lambda: box_mask("none"), "boxes", "region has no frames"),
    "box without image": (lambda: box_mask("box"), "boxes", "wire the frames they belong to into image"),
    "mask of another length": (
        lambda: other_clip(n5={"mask": ["other", 2]}),
        "5",
        f"scene has {FRAMES} frames but mask has {OTHER}",
    ),
    "pose of another length": (
        lambda: other_clip(n5={"pose": ["other", 1]}),
        "5",
        f"scene has {FRAMES} frames but pose has {OTHER}",
    ),
    "person of another length": (
        lambda: other_clip(n4={"person": ["other", 2]}),
        "4",
        f"{FRAMES} frames but person has {OTHER}",
    ),
    "no scene for AnyCharV": (lambda: without("scene", "mask"), "5", "give scene and mask, or load a model"),
    "no mask for AnyCharV": (lambda: without("mask"), "5", "give scene and mask, or load a model"),
    "animation with a mask alone": (lambda: animation("mask"), "5", "There is a mask but no scene"),
    "animation before a scene, officially": (
        lambda: animation("scene", recipe="official"),
        "5",
        "Animate Anyone's release knows no scene",
    ),
    "animation before a scene without a matte": (lambda: animation("scene"), "5", "its reference needs a matte"),
    "animation only with a width": (lambda: animation(width=64), "5", "give both, or 0 for both"),
    "another kind's conditioning": (
        lambda: plus(
            small(n6={"model": ["animate", 0]}),
            animate=("AnyCharVLoader", {"checkpoint": "embedded-animate", "dtype": "auto"}),
        ),
        "6",
        "The conditioning was made for a model of another kind",
    ),
    "animation without motion": (lambda: small(n1={"checkpoint": "still"}), "1", "has no motion_module.pth"),
    "whole job by Animate Anyone": (
        lambda: replace() | {"1": small(n1={"checkpoint": "embedded-animate"})["1"]},
        "whole",
        "the model is one of Animate Anyone",
    ),
    "composite of everything": (uncovered, "paste", "Nothing says where the generated frames"),
    "composite by an opaque reference": (
        lambda: uncovered(reference=["3", 0]),
        "paste",
        "its reference needs a matte",
    ),
    "only a width": (lambda: small(n5={"width": 64}), "5", "give both, or 0 for both"),
    "another model's VAE": (lambda: foreign_vae("flux.safetensors"), "5", "The VAE makes 16 channels at 1/8"),
    "no VAE at all": (lambda: foreign_vae("pixel_space"), "5", "The VAE makes 3 channels at 1/1"),
    "another clip's latent": (
        lambda: plus(
            small(n6={"latent": ["empty", 0]}),
            empty=("EmptyLatentImage", {"width": 512, "height": 512, "batch_size": 3}),
        ),
        "6",
        "wire the LATENT of the same AnyCharV Conditioning",
    ),
    "overlap of a whole window": (lambda: long_video(8, 8), "long", "overlap is 8 but must be less"),
    "window too long": (lambda: long_video(500, 6), "long", "motion modules know"),
    "composite of another clip": (
        lambda: composite(original=["other", 1]),
        "paste",
        f"generated has {FRAMES} frames but original",
    ),
    "composite mask of another size": (lambda: composite(mask=["solid", 0]), "paste", "The mask is 48x40 but"),
    "SD1.5 checkpoint": (lambda: small(n1={"checkpoint": "sd15.safetensors"}), "1", "not an AnyCharV model"),
    "LoRA": (lambda: small(n1={"checkpoint": "lora.safetensors"}), "1", "not an AnyCharV model"),
    "torn checkpoint": (lambda: small(n1={"checkpoint": "torn.safetensors"}), "1", "torn"),
    "half a folder": (lambda: small(n1={"checkpoint": "half"}), "1", "not a complete AnyCharV folder"),
    "whole job, mask of another length": (
        lambda: replace(mask=["other", 2]),
        "whole",
        f"video has {FRAMES} frames but mask has {OTHER}",
    ),
    "whole job, pose of another length": (
        lambda: replace(pose=["other", 3]),
        "whole",
        f"video has {FRAMES} frames but pose has {OTHER}",
    ),
    "whole job, mask without frames": (lambda: replace(mask=["none", 0]), "whole", "mask has no frames"),
    "whole job, pose without frames": (lambda: replace(pose=["parts", 0]), "whole", "pose has no frames"),
    "whole job, reference without frames": (
        lambda: replace(reference=["parts", 0]),
        "whole",
        "reference has no frames",
    ),
    "whole job, mask of other proportions": (
        lambda: plus(replace(mask=["solid", 0]), solid=("SolidMask", {"value": 1.0, "width": 48, "height": 40})),
        "whole",
        "The mask is 48x40 but the video is 64x64",
    ),
    "whole job, empty mask": (
        lambda: plus(replace(mask=["solid", 0]), solid=("SolidMask", {"value": 0.0, "width": 64, "height": 64})),
        "whole",
        "The mask is empty in every frame",
    ),
    "whole job, no pose model": (
        lambda: replace("pose", pose_model="dwpose-of-another"),
        "whole",
        f"no DWPose files for 'dwpose-of-another': run '{PYTHON} -m anycharv_core download pose' in ",
    ),
    "whole job, no segmenter": (
        lambda: replace("mask", segmenter="absent"),
        "whole",
        f"no SAM 2 video model 'absent': run '{PYTHON} -m anycharv_core download sam2' in ",
    ),
    "whole job, nobody to be seen": (
        lambda: plus(
            replace("mask", "pose", video=["black", 0], pose_model="embedded", segmenter="embedded"),
            dark=("EmptyImage", {"width": 64, "height": 64, "batch_size": 3, "color": 0}),
            black=("CreateVideo", {"images": ["dark", 0], "fps": 24.0}),
        ),
        "whole",
        "Nobody was found in the video",
    ),
    "whole job, beside everybody": (
        lambda: replace("mask", segmenter="embedded", **{"who": "click", "who.frame": 0, "who.x": 0, "who.y": 0}),
        "whole",
        "Nobody is at 0, 0 in frame 0",
    ),
    "whole job, no such number": (
        lambda: replace("mask", segmenter="embedded", **{"who": "number", "who.people": "2"}),
        "whole",
        "There is 1 person in the video, not 2",
    ),
    "whole job, more characters than people": (
        lambda: replace(
            "mask", "pose", segmenter="embedded", pose_model="embedded", **{"characters.character0": ["2", 4]}
        ),
        "whole",
        "There is 1 person in the video, not 1, 2",
    ),
    "whole job, more characters than are chosen": (
        lambda: replace(
            "mask",
            "pose",
            segmenter="embedded",
            pose_model="embedded",
            **{"who": "number", "who.people": "1", "characters.character0": ["2", 4]},
        ),
        "whole",
        "who chooses 1 of the people but there are pictures of 2 characters",
    ),
    "whole job, more characters than masks": (
        lambda: replace(**{"characters.character0": ["2", 4]}),
        "whole",
        "mask and pose are those of one person",
    ),
    "whole job, more characters than the recipe replaces": (
        lambda: replace("mask", "pose", recipe="official", **{"characters.character0": ["2", 4]}),
        "whole",
        "The recipe official replaces one person only",
    ),
    "whole job, trial that is longer than the mask": (
        lambda: replace(mask=["other", 2], frames=OTHER + 1),
        "whole",
        f"video has {OTHER + 1} frames but mask has {OTHER}",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_mistake_is_one_sentence_on_its_node(server: Server, name: str) -> None:
    make, node, words = CASES[name]
    with pytest.raises(ExecutionFailed) as failed:
        server.run(make())
    data, message = failed.value.data, failed.value.data["exception_message"].strip()
    assert failed.value.kind == "execution_error" and data["node_id"] == node, message
    assert words in message and message.endswith(".")
    assert data["exception_type"] == "AnyCharV"  # which the page shows in front of the sentence
    assert "\n" not in message and "Traceback" not in message and 'File "' not in message
    assert len(message) < 400
    server.check_alive()


def test_checkpoint_without_vae_says_what_to_add(server: Server) -> None:
    events = server.events()
    next(events)
    server.queue(small(n1={"checkpoint": "bare"}))
    # A blocked node is reported to the page alone; the prompt's history calls it a success.
    data = next(event["data"] for event in events if event["type"] == "execution_error")
    assert data["node_id"] == "3"
    assert "'bare' has no VAE: add Load VAE with sd-vae-ft-mse" in data["exception_message"]


def test_whole_job_without_an_image_encoder_says_that_it_takes_no_such_model(server: Server) -> None:
    events = server.events()
    next(events)
    server.queue(replace() | {"1": small(n1={"checkpoint": "embedded-anywhere"})["1"]})
    data = next(event["data"] for event in events if event["type"] == "execution_error")
    assert data["node_id"] == "whole"
    assert (
        "AnyCharV Replace Character and AnyCharV Animate Character take no such MODEL" in data["exception_message"]
    )


def test_missing_pose_is_refused(server: Server) -> None:
    prompt = small()
    del prompt["5"]["inputs"]["pose"]
    with pytest.raises(PromptRefused) as refused:
        server.queue(prompt)
    ((node, found),) = refused.value.nodes.items()
    (error,) = found["errors"]
    assert (node, error["type"], error["extra_info"]["input_name"]) == ("5", "required_input_missing", "pose")


def test_checkpoint_that_is_not_there_is_refused_with_how_to_get_it(server: Server) -> None:
    with pytest.raises(PromptRefused) as refused:
        server.queue(small(n1={"checkpoint": "AnyCharV"}))
    (error,) = refused.value.nodes["1"]["errors"]
    command = f"'{PYTHON} -m anycharv_core download anycharv'"
    assert f"models/anycharv holds no checkpoint 'AnyCharV': run {command} in " in error["details"]


def test_image_for_mask_is_refused(server: Server) -> None:
    with pytest.raises(PromptRefused) as refused:
        server.queue(small(n5={"mask": ["2", 1]}))
    (error,) = refused.value.nodes["5"]["errors"]
    assert error["type"] == "return_type_mismatch"


def test_reference_may_have_alpha(server: Server) -> None:
    prompt = plus(
        small(n3={"image": ["join", 0]}),
        # ComfyUI's alpha socket takes what is transparent.
        hole=("InvertMask", {"mask": ["2", 5]}),
        join=("JoinImageWithAlpha", {"image": ["2", 4], "alpha": ["hole", 0]}),
    )
    del prompt["3"]["inputs"]["mask"]
    saved = [server.files(server.run(made), "8") for made in (small(), prompt)]
    masked, transparent = ([np.asarray(Image.open(path)) for path in paths] for paths in saved)
    assert np.array_equal(masked, transparent)


def test_server_still_works(server: Server) -> None:
    prompt = small(n2={"seed": 4})
    assert len(server.files(server.run(prompt), "8")) == FRAMES
