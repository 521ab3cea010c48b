"""The shipped workflows in a real ComfyUI: all are valid, and those that need no download run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import needs
import numpy as np
import pytest
from comfyui_server import (
    BYPASSED,
    COMFYUI,
    MUTED,
    PACK,
    PYTHON,
    ExecutionFailed,
    PromptRefused,
    Server,
    shared_server,
    small_prompt,
    to_prompt,
    unpacked,
)
from embedded_graphs import on_embedded_models
from PIL import Image

from anycharv_core.media.pose_drawing import draw_poses
from anycharv_core.media.video_read import probe, read_frames
from anycharv_core.media.video_write import VideoWriter
from anycharv_core.puppets.task import sample_swap

FOLDER = Path(__file__).parents[1] / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
NO_DOWNLOAD = {
    "quick_start": 24,
    "long_video": 72,
    "animate_anyone": 24,
    "animate_anyone_2": 24,
    "animate_anywhere": 24,
}
BARE_VIDEO = "preprocess_video"  # needs no download either, but a clip
APPS = ["animate_anyone", "folder_of_videos", "preprocess_video", "quick_start", "replace_character"]
# A quick start as it was saved before AnyCharV Conditioning handed its canvas to AnyCharV Composite.
EARLIER = Path(__file__).parent / "data" / "saved_earlier.json"
SIZE, FRAMES = 256, 8
# What is chosen in place of nothing, by the titles of the nodes that ask for it.
CHOSEN = {
    "Video: choose yours": "driving_clip.mp4",
    "Character: choose a picture": "character.png",
    "Mask: choose a video of it": "person_mask.mp4",
    "Skeletons: choose a video of them": "skeletons.mp4",
}

pytestmark = [pytest.mark.comfyui, needs.comfyui]


def load(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def chosen(name: str) -> dict[str, Any]:
    """The workflow with a file in every node that asks for one."""
    workflow = load(name)
    for node in workflow["nodes"]:
        if node["type"] in ("LoadVideo", "LoadImage"):
            assert node["widgets_values"][0] == "", "a file that is not there makes the node red"
            node["widgets_values"][0] = CHOSEN[node["title"]]
    return workflow


def write_inputs(folder: Path) -> None:
    """A clip with sound, its mask, skeletons and a character, under the names the workflows ask for."""
    swap = sample_swap(3, FRAMES, SIZE)
    with av.open(str(folder / "driving_clip.mp4"), "w") as container:
        video = container.add_stream("libx264", 12, width=SIZE, height=SIZE, pix_fmt="yuv420p")
        sound = container.add_stream("aac", 44100)
        for index, frame in enumerate(swap.driving.frames):
            picture = av.VideoFrame.from_ndarray(frame, "rgb24")
            picture.pts, picture.time_base = index, Fraction(1, 12)
            container.mux(video.encode(picture))
        container.mux(video.encode())
        samples = (np.sin(np.arange(44100 * FRAMES // 12) / 20) * 9000).astype(np.int16)
        tone = av.AudioFrame.from_ndarray(np.repeat(samples, 2)[None], "s16", "stereo")
        tone.sample_rate, tone.pts, tone.time_base = 44100, 0, Fraction(1, 44100)
        container.mux([*sound.encode(tone), *sound.encode()])
    masks = (np.repeat(mask[..., None], 3, axis=-1) for mask in swap.driving.mask)
    skeletons = draw_poses(swap.driving.poses())
    for name, frames in (("person_mask.mp4", masks), ("skeletons.mp4", skeletons)):
        with VideoWriter(folder / name, SIZE, SIZE, rate=Fraction(12)) as writer:
            for frame in frames:
                writer.write(frame)
    Image.fromarray(swap.reference).save(folder / "character.png")
    (folder / "videos").mkdir(exist_ok=True)
    for name in ("first.mp4", "second.mp4"):
        shutil.copy(folder / "driving_clip.mp4", folder / "videos" / name)


@pytest.fixture(scope="module")
def server() -> Server:
    server = shared_server()
    write_inputs(server.base / "input")
    return server


def one(prompt: dict[str, Any], kind: str) -> dict[str, Any]:
    """The inputs of the only node of its kind."""
    (node,) = (node for node in prompt.values() if node["class_type"] == kind)
    return node["inputs"]


def saved_videos(server: Server, prompt: dict[str, Any], outputs: dict[str, Any]) -> dict[str, Path]:
    """Files by the filename_prefix of their SaveVideo."""
    return {
        node["inputs"]["filename_prefix"]: server.files(outputs, key)[0]
        for key, node in prompt.items()
        if node["class_type"] == "SaveVideo"
    }


def test_fourteen_workflows_are_shipped() -> None:
    assert len(NAMES) == 14
    assert {*NO_DOWNLOAD, BARE_VIDEO} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_workflow_is_sound(name: str) -> None:
    workflow = load(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link for link in workflow["links"]}
    subgraphs = {one["id"] for one in workflow.get("definitions", {}).get("subgraphs", [])}
    assert len(nodes) == len(workflow["nodes"]) and len(links) == len(workflow["links"])
    assert workflow["last_node_id"] == max(nodes) and workflow["last_link_id"] == max(links)
    for link_id, origin, out, target, into, kind in links.values():
        output, entry = nodes[origin]["outputs"][out], nodes[target]["inputs"][into]
        assert output["type"] == kind and kind in entry["type"].split(",")
        assert link_id in output["links"] and entry["link"] == link_id
    for node in nodes.values():
        linked = [entry["link"] for entry in node["inputs"]] + [
            link for output in node["outputs"] for link in output["links"] or []
        ]
        assert set(linked) - {None} <= set(links)
        assert node["mode"] not in (MUTED, BYPASSED)
        if node["type"] != "MarkdownNote":
            assert node["properties"]["cnr_id"] == (
                "anycharv" if node["type"].startswith("AnyCharV") or node["type"] in subgraphs else "comfy-core"
            )
    assert any(node["type"] == "MarkdownNote" for node in nodes.values()) and workflow["groups"]


@pytest.mark.parametrize("name", NAMES)
def test_models_are_named_as_the_widgets_name_them(name: str) -> None:
    for node in load(name)["nodes"]:
        models = node["properties"].get("models", [])
        chosen = [value for value in node.get("widgets_values", []) if isinstance(value, str)]
        files = [value for value in chosen if value.endswith(".safetensors") or value == "AnyCharV"]
        # The parts of a model folder have no widget of their own.
        assert files == [model["name"] for model in models if not model["name"].startswith("AnyCharV/")]
        for model in models:
            assert set(model) == {"name", "url", "directory"}
            assert model["url"].startswith("https://huggingface.co/") and "/resolve/" in model["url"]
            assert model["url"].endswith((".safetensors", ".sft", ".ckpt", ".pth", ".pt"))


@pytest.mark.parametrize("name", NAMES)
def test_app_mode_shows_what_an_artist_touches(server: Server, name: str) -> None:
    extra = load(name)["extra"]
    assert ("linearData" in extra) == (name in APPS)
    if name in APPS:
        form = extra["linearData"]
        prompt = to_prompt(load(name), server.object_info)
        assert 3 <= len(form["inputs"]) <= 6 and form["outputs"]
        assert all(widget in prompt[key]["inputs"] for key, widget in form["inputs"])
        assert all(server.object_info[prompt[key]["class_type"]]["output_node"] for key in form["outputs"])


@pytest.mark.parametrize("name", NAMES)
def test_workflow_betrays_no_machine(name: str) -> None:
    text = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|Users|tmp|work)/|[A-Z]:\\", text)


@pytest.mark.parametrize("name", NAMES)
def test_thumbnail(name: str) -> None:
    path = FOLDER / f"{name}.jpg"
    assert path.stat().st_size < 60_000
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and picture.size == (640, 360)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*NO_DOWNLOAD, BARE_VIDEO)])
def test_only_models_are_missing(server: Server, name: str) -> None:
    workflow = unpacked(chosen(name))
    wanted = {
        str(node["id"]): {model["name"] for model in node["properties"]["models"]}
        for node in workflow["nodes"]
        if "models" in node["properties"]
    }
    # The page offers no download of these, but the nodes say how to get them.
    ours = ("AnyCharVDWPose", "AnyCharVLoader", "AnyCharVSegment")
    by_command = {str(node["id"]) for node in workflow["nodes"] if node["type"] in ours}
    with pytest.raises(PromptRefused) as refused:
        server.queue(to_prompt(workflow, server.object_info))
    assert refused.value.error["type"] == "prompt_outputs_failed_validation"
    assert refused.value.nodes.keys() == wanted.keys() | by_command
    for key, found in refused.value.nodes.items():
        for error in found["errors"]:
            if key in by_command:
                assert " -m anycharv_core download " in error["details"], error
            else:
                assert error["type"] == "value_not_in_list", error
                assert error["extra_info"]["received_value"] in wanted[key]


@pytest.mark.parametrize("name", [*NO_DOWNLOAD, EARLIER.stem])
def test_runs_without_download(server: Server, name: str) -> None:
    earlier = name == EARLIER.stem
    workflow = json.loads(EARLIER.read_text(encoding="utf-8")) if earlier else load(name)
    check_videos(server, to_prompt(workflow, server.object_info, earlier), NO_DOWNLOAD.get(name, 24))


def check_videos(server: Server, prompt: dict[str, Any], frames: int) -> None:
    """Runs the prompt: a video of so many frames is saved, and the same beside the truth."""
    videos = saved_videos(server, prompt, server.run(prompt))
    size = one(prompt, "AnyCharVPuppetClip")["size"]
    for prefix, path in videos.items():
        info = probe(path)
        beside = 2 if prefix.endswith("_beside_truth") else 1
        assert (info.frames, info.width, info.height) == (frames, size * beside, size)
        assert info.rate == 24
    assert len(videos) == 2


def test_bare_video_runs_without_download(server: Server) -> None:
    swap = sample_swap(3, FRAMES, 256)
    with VideoWriter(server.base / "input" / "puppet_clip.mp4", 256, 256, rate=Fraction(12)) as writer:
        for frame in swap.driving.frames:
            writer.write(frame)
    prompt = to_prompt(chosen(BARE_VIDEO), server.object_info)
    one(prompt, "LoadVideo")["file"] = "puppet_clip.mp4"
    outputs = server.run(prompt)
    (path,) = saved_videos(server, prompt, outputs).values()
    info = probe(path)
    assert (info.frames, info.width, info.height, info.rate) == (FRAMES, 256, 256, 12)
    (sheet,) = (key for key, node in prompt.items() if node["class_type"] == "AnyCharVFindPeople")
    assert len(server.files(outputs, sheet)) == 1
    # The person is where the pixels change, and the rest of the clip stays.
    mask = swap.driving.mask > 127
    changed = np.abs(np.stack(list(read_frames(path))).astype(int) - swap.driving.frames).mean(axis=-1)
    assert changed[mask].mean() > 4 * changed[:, :32].mean()


def small(server: Server, name: str) -> dict[str, Any]:
    """The workflow's prompt on the embedded models, with two steps."""
    prompt = to_prompt(on_embedded_models(unpacked(chosen(name))), server.object_info)
    for node in prompt.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 2
    return prompt


@pytest.mark.parametrize("name", ["replace_character", "replace_character_ksampler"])
def test_graph_for_official_weights_runs_on_the_embedded_ones(server: Server, name: str) -> None:
    prompt = small(server, name)
    (path,) = saved_videos(server, prompt, server.run(prompt)).values()
    info = probe(path)
    assert (info.frames, info.width, info.height, info.rate) == (FRAMES, SIZE, SIZE, 12)
    assert info.has_audio


def test_folder_of_videos_gives_a_video_for_each(server: Server) -> None:
    prompt = small(server, "folder_of_videos")
    one(prompt, "AnyCharVReplaceCharacter")["frames"] = 2
    outputs = server.run(prompt)
    (key,) = (key for key, node in prompt.items() if node["class_type"] == "SaveVideo")
    assert [probe(path).frames for path in server.files(outputs, key)] == [2, 2]


# A small interpolation network in RIFE's layout, whose random weights make frames of some kind.
INTERPOLATOR = """
import sys
sys.path.insert(0, ".")
file, sys.argv[1:] = sys.argv[1], ["--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import torch
from comfy_extras.frame_interpolation_models.ifnet import IFNet
from safetensors.torch import save_file
torch.manual_seed(0)
save_file(IFNet(4, (16, 16, 16, 16, 16), dtype=torch.float32).state_dict(), file)
"""


@pytest.fixture
def interpolator(server: Server) -> Iterator[str]:
    """The name of the network that half_rate asks for, which is there for one test: others look at what is
    missing."""
    name = one(to_prompt(chosen("half_rate"), server.object_info), "FrameInterpolationModelLoader")["model_name"]
    folder = server.base / "models" / "frame_interpolation"
    folder.mkdir(exist_ok=True)
    subprocess.run([str(PYTHON), "-c", INTERPOLATOR, str(folder / name)], cwd=COMFYUI, check=True)
    yield name
    (folder / name).unlink()


def test_half_rate_gives_every_frame(server: Server, interpolator: str) -> None:
    prompt = small(server, "half_rate")
    assert one(prompt, "FrameInterpolationModelLoader")["model_name"] == interpolator
    shorter = {49: 7, 25: 4}
    for node in prompt.values():
        if node["class_type"] == "VideoFrameSample":
            node["inputs"] |= {
                key: shorter[value]
                for key, value in node["inputs"].items()
                if isinstance(value, int) and value in shorter
            }
    (path,) = saved_videos(server, prompt, server.run(prompt)).values()
    info = probe(path)
    assert (info.frames, info.width, info.height, info.rate) == (7, SIZE, SIZE, 12)


def test_pack_is_loaded(server: Server) -> None:
    (line,) = re.findall(rf"[\d.]+ seconds(.*): .*{PACK}\s", server.log())
    assert "FAILED" not in line


def test_interrupt_stops_sampling(server: Server) -> None:
    events = server.events()
    # The first message says that the connection stands, so that nothing is missed.
    next(events)
    prompt_id = server.queue(small_prompt(frames=48, steps=1000))

    def until(*kinds: str) -> dict[str, Any]:
        return next(event for event in events if event["type"] in kinds)

    while (step := until("progress")["data"])["node"] != "6":
        pass
    server.interrupt()
    while (event := until("progress", "execution_interrupted"))["type"] == "progress":
        step = event["data"]
    assert 0 < step["value"] < step["max"] == 1000
    with pytest.raises(ExecutionFailed) as failed:
        server.wait(prompt_id)
    assert failed.value.kind == "execution_interrupted"
    outputs = server.run(small_prompt())
    assert len(server.files(outputs, "8")) == 8


def has_cuda() -> bool:
    check = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([str(PYTHON), "-c", check]).returncode == 0


def pictures(*arguments: str) -> np.ndarray:
    """What the small prompt gives in a ComfyUI of its own."""
    server = Server(*arguments)
    try:
        paths = server.files(server.run(small_prompt()), "8")
        return np.stack([np.asarray(Image.open(path)) for path in paths]).astype(float)
    finally:
        server.stop()


def test_novram_gives_the_same_pictures() -> None:
    if not has_cuda():
        pytest.skip("needs a GPU: ComfyUI takes --novram only without --cpu")
    assert np.abs(pictures("--novram") - pictures()).max() <= 1
