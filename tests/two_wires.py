"""A video and a picture wired into a blueprint, and its video saved: the least that an artist has to do."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

from comfyui_server import REPO
from PIL import Image

from anycharv_core.media.video_write import VideoWriter
from anycharv_core.puppets.task import sample_bold_swap

NAME = "two_wires"
VIDEO, PICTURE = "person.mp4", "character.png"


def write_inputs(folder: Path, seed: int = 1, frames: int = 24, size: int = 256) -> None:
    """The video and the picture: a puppet, and another on black, since Load Image takes no transparency along."""
    swap = sample_bold_swap(seed, frames, size)
    with VideoWriter(folder / VIDEO, size, size, rate=Fraction(24)) as writer:
        for frame in swap.driving.frames:
            writer.write(frame)
    colours, alpha = swap.reference[..., :3], swap.reference[..., 3:]
    Image.fromarray(colours * (alpha > 0)).save(folder / PICTURE)


def two_wires() -> dict[str, Any]:
    """The workflow of Replace Character's blueprint, as the page saves it."""
    path = REPO / "subgraphs" / "Replace Character (AnyCharV).json"
    blueprint = json.loads(path.read_text(encoding="utf-8"))
    (host,) = blueprint["nodes"]
    host |= {"pos": [470, 0], "id": 3}
    for link, entry in enumerate(host["inputs"][:2], 1):
        entry["link"] = link
    host["outputs"][0]["links"] = [3]
    saved = {"name": "video", "type": "VIDEO", "link": 3}
    nodes = [
        node(1, "LoadVideo", [0, 0], [380, 460], [VIDEO, "image"], outputs=[("VIDEO", "VIDEO", [1])]),
        node(2, "LoadImage", [0, 540], [380, 460], [PICTURE, "image"], outputs=[("IMAGE", "IMAGE", [2])]),
        host,
        node(4, "SaveVideo", [900, 0], [460, 560], ["AnyCharV/two_wires", "auto", "auto"], [saved]),
    ]
    links = [[1, 1, 0, 3, 0, "VIDEO"], [2, 2, 0, 3, 1, "IMAGE"], [3, 3, 0, 4, 0, "VIDEO"]]
    return blueprint | {"nodes": nodes, "links": links, "last_node_id": 4, "last_link_id": 3, "groups": []}


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
