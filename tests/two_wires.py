"""A video and a picture wired into a blueprint, and its result saved: the least that an artist has to do."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

from comfyui_server import REPO
from PIL import Image

from anycharv_core.media.video_write import VideoWriter
from anycharv_core.puppets.task import sample_bold_swap

BLUEPRINTS = ("Replace Character", "Animate Character", "Prepare Video")
VIDEO, PICTURE = "person.mp4", "character.png"


def write_inputs(folder: Path, seed: int = 1, frames: int = 24, size: int = 256) -> None:
    """The video and the picture: a puppet, and another on black, since Load Image takes no transparency along."""
    swap = sample_bold_swap(seed, frames, size)
    with VideoWriter(folder / VIDEO, size, size, rate=Fraction(24)) as writer:
        for frame in swap.driving.frames:
            writer.write(frame)
    colours, alpha = swap.reference[..., :3], swap.reference[..., 3:]
    Image.fromarray(colours * (alpha > 0)).save(folder / PICTURE)


def wired(blueprint: str) -> dict[str, Any]:
    """The workflow of a blueprint as the page saves it, with its video or picture saved."""
    path = REPO / "subgraphs" / f"{blueprint} (AnyCharV).json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    (host,) = whole["nodes"]
    host |= {"pos": [470, 0], "id": 3}
    nodes, links = [host], []
    loaders = {"VIDEO": (1, "LoadVideo", [0, 0], VIDEO), "IMAGE": (2, "LoadImage", [0, 540], PICTURE)}
    savers = {"VIDEO": ("SaveVideo", "video", ["auto", "auto"]), "IMAGE": ("SaveImage", "images", [])}
    for slot, entry in enumerate(host["inputs"]):
        if entry["type"] in loaders:
            key, kind, pos, file = loaders[entry["type"]]
            entry["link"] = len(links) + 1
            outputs = [(entry["type"], entry["type"], [entry["link"]])]
            nodes.append(node(key, kind, pos, [380, 460], [file, "image"], outputs=outputs))
            links.append([entry["link"], key, 0, 3, slot, entry["type"]])
    for slot, made in enumerate(host["outputs"]):
        if made["type"] in savers:
            kind, name, values = savers[made["type"]]
            made["links"] = [len(links) + 1]
            entry = {"name": name, "type": made["type"], "link": len(links) + 1}
            nodes.append(node(4, kind, [900, 0], [460, 560], ["AnyCharV/two_wires", *values], [entry]))
            links.append([len(links) + 1, 3, slot, 4, 0, made["type"]])
    return whole | {"nodes": nodes, "links": links, "last_node_id": 4, "last_link_id": len(links), "groups": []}


def node(
    key: int,
    kind: str,
    pos: list[int],
    size: list[int],
    values: list[Any],
    inputs: list[dict[str, Any]] | None = None,
    outputs: list[tuple[str, str, list[int]]] | None = None,
) -> dict[str, Any]:
    sockets = [{"name": name, "type": socket, "links": links} for name, socket, links in outputs or []]
    return {
        "id": key,
        "type": kind,
        "pos": pos,
        "size": size,
        "flags": {},
        "order": key,
        "mode": 0,
        "inputs": inputs or [],
        "outputs": sockets,
        "properties": {"Node name for S&R": kind},
        "widgets_values": values,
    }
