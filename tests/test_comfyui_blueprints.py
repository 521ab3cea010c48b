"""The subgraph blueprints in a real ComfyUI: listed, made of our nodes, and run on the embedded models."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import needs
import numpy as np
import pytest
from comfyui_server import INTO_SUBGRAPH, OUT_OF_SUBGRAPH, PACK, Server, shared_server, to_prompt
from PIL import Image

from anycharv_core.media.video_read import probe, read_frames
from anycharv_core.media.video_write import VideoWriter
from anycharv_core.puppets.task import sample_animation, sample_swap

FOLDER = Path(__file__).parents[1] / "subgraphs"
NAMES = ["Animate Character (AnyCharV)", "Prepare Video (AnyCharV)", "Replace Character (AnyCharV)"]
ANIMATE, PREPARE, REPLACE = NAMES
SIZE, FRAMES = 256, 8

pytestmark = [pytest.mark.comfyui, needs.comfyui]


def load(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def server() -> Server:
    return shared_server()


def test_three_are_shipped() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_blueprint_is_sound(name: str) -> None:
    """One node whose subgraph it defines; every link in it is known to both its ends."""
    blueprint = load(name)
    (host,), (inner,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    assert host["type"] == inner["id"] and host["title"] == inner["name"] == name
    for side in ("inputs", "outputs"):
        assert [(e["name"], e["type"]) for e in host[side]] == [(e["name"], e["type"]) for e in inner[side]]
    nodes = {node["id"]: node for node in inner["nodes"]}
    links = {link["id"]: link for link in inner["links"]}
    assert len(nodes) == len(inner["nodes"]) and len(links) == len(inner["links"])
    for link in links.values():
        if link["origin_id"] == INTO_SUBGRAPH:
            assert link["id"] in inner["inputs"][link["origin_slot"]]["linkIds"]
        else:
            output = nodes[link["origin_id"]]["outputs"][link["origin_slot"]]
            assert link["id"] in output["links"] and output["type"] == link["type"]
        if link["target_id"] == OUT_OF_SUBGRAPH:
            assert link["id"] in inner["outputs"][link["target_slot"]]["linkIds"]
        else:
            entry = nodes[link["target_id"]]["inputs"][link["target_slot"]]
            assert entry["link"] == link["id"] and link["type"] in entry["type"].split(",")
    known = {link for end in (*inner["inputs"], *inner["outputs"]) for link in end["linkIds"]}
    known |= {entry["link"] for node in nodes.values() for entry in node["inputs"]} - {None}
    known |= {link for node in nodes.values() for output in node["outputs"] for link in output["links"] or []}
    assert known == set(links)
    assert blueprint["extra"]["BlueprintDescription"] == inner["description"]
    aliases = blueprint["extra"]["BlueprintSearchAliases"]
    assert any(alias.isascii() for alias in aliases) and any("\u4e00" <= alias[0] <= "\u9fff" for alias in aliases)


def test_the_page_is_offered_them(server: Server) -> None:
    offered = server.get("/global_subgraphs")
    ours = {key: one for key, one in offered.items() if one["info"]["node_pack"].endswith(PACK)}
    assert sorted(one["name"] for one in ours.values()) == NAMES
    for key, one in ours.items():
        assert json.loads(server.get(f"/global_subgraphs/{key}")["data"]) == load(one["name"])


def prompt_of(
    server: Server, name: str, given: dict[str, list[Any]]
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The nodes of a blueprint as a prompt in which `given`, outputs of nodes by the blueprint's inputs, are wired
    in, and by the blueprint's outputs those of its nodes."""
    blueprint = load(name)
    (host,), (inner,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    prompt = to_prompt(blueprint, server.object_info)
    nodes = {node["id"]: node for node in inner["nodes"]}
    results = {}
    for link in inner["links"]:
        if link["origin_id"] == INTO_SUBGRAPH and (
            source := given.get(inner["inputs"][link["origin_slot"]]["name"])
        ):
            entry = nodes[link["target_id"]]["inputs"][link["target_slot"]]["name"]
            prompt[f"{host['id']}:{link['target_id']}"]["inputs"][entry] = source
        if link["target_id"] == OUT_OF_SUBGRAPH:
            made = inner["outputs"][link["target_slot"]]["name"]
            results[made] = [f"{host['id']}:{link['origin_id']}", link["origin_slot"]]
    return prompt, results


def loaders(
    server: Server, frames: np.ndarray, picture: np.ndarray
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Core nodes that load the frames as a video of 12 a second and the picture, and their outputs by the names of
    the blueprints' inputs."""
    folder = server.base / "input"
    with VideoWriter(folder / "blueprint.mp4", SIZE, SIZE, rate=Fraction(12)) as writer:
        for frame in frames:
            writer.write(frame)
    Image.fromarray(picture).save(folder / "blueprint.png")
    nodes = {
        "video": {"class_type": "LoadVideo", "inputs": {"file": "blueprint.mp4"}},
        "picture": {"class_type": "LoadImage", "inputs": {"image": "blueprint.png"}},
    }
    return nodes, {"video": ["video", 0], "reference": ["picture", 0]}


def run(server: Server, name: str, frames: np.ndarray, picture: np.ndarray) -> Path:
    """The video that a blueprint makes of a video and a picture."""
    nodes, given = loaders(server, frames, picture)
    prompt, results = prompt_of(server, name, given)
    save = {"video": results["VIDEO"], "filename_prefix": "blueprint", "format": "auto", "format.codec": "auto"}
    prompt |= nodes | {"save": {"class_type": "SaveVideo", "inputs": save}}
    (path,) = server.files(server.run(prompt), "save")
    return path


def test_replace_character_needs_a_video_and_a_picture(server: Server) -> None:
    swap = sample_swap(3, FRAMES, SIZE)
    path = run(server, REPLACE, swap.driving.frames, swap.reference)
    info = probe(path)
    assert (info.frames, info.width, info.height, info.rate) == (FRAMES, SIZE, SIZE, 12)
    # The person is where the pixels change, and the rest of the video stays.
    changed = np.abs(np.stack(list(read_frames(path))).astype(int) - swap.driving.frames).mean(axis=-1)
    assert changed[swap.driving.mask > 127].mean() > 4 * changed[:, :32].mean()


def test_animate_character_needs_a_picture_and_a_video(server: Server) -> None:
    sample = sample_animation(3, FRAMES, SIZE)
    info = probe(run(server, ANIMATE, sample.truth.frames, sample.reference[..., :3]))
    assert (info.frames, info.rate) == (FRAMES, 12)


def test_prepare_video_finds_the_person(server: Server) -> None:
    swap = sample_swap(3, FRAMES, SIZE)
    nodes, given = loaders(server, swap.driving.frames, swap.reference)
    prompt, results = prompt_of(server, PREPARE, {"video": given["video"]})
    prompt["video"] = nodes["video"]
    prompt["white"] = {"class_type": "MaskToImage", "inputs": {"mask": results["mask"]}}
    drawing = {"keypoints": results["pose"], "width": 0, "height": 0}
    prompt["draw"] = {"class_type": "AnyCharVPoseDraw", "inputs": drawing}
    for key, images in (("mask", ["white", 0]), ("pose", ["draw", 0]), ("people", results["people"])):
        prompt[key] = {"class_type": "SaveImage", "inputs": {"images": images, "filename_prefix": key}}
    outputs = server.run(prompt)
    assert [len(server.files(outputs, key)) for key in ("mask", "pose", "people")] == [FRAMES, FRAMES, 1]
    found = np.stack([np.asarray(Image.open(path))[..., 0] > 127 for path in server.files(outputs, "mask")])
    truth = swap.driving.mask > 127
    assert (found & truth).sum() > 0.5 * (found | truth).sum()
