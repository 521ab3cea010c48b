"""How the workflows and blueprints look on ComfyUI's canvas, by their positions and sizes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).parents[1]
FILES = sorted((REPO / "workflows").glob("*.json"))
BLUEPRINTS = sorted((REPO / "subgraphs").glob("*.json"))
# Those that somebody who is new opens first.
PLAIN = [REPO / "workflows" / f"{name}.json" for name in ("quick_start", "replace_character", "folder_of_videos")]
TITLE, SLOT = 30, 20  # pixels of a node's title, which lies above its position, and of one of its sockets

Rectangle = tuple[float, float, float, float]


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def graphs(path: Path) -> list[dict[str, Any]]:
    """The graph itself, and those of its subgraphs, whose links are turned into lists as its own are."""
    whole = load(path)
    inner = whole.get("definitions", {}).get("subgraphs", [])
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return [whole, *(one | {"links": [[link[key] for key in keys] for link in one["links"]]} for one in inner)]


def rectangle(node: dict[str, Any]) -> Rectangle:
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


def apart(one: Rectangle, other: Rectangle) -> bool:
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def inside(inner: Rectangle, outer: Rectangle) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


def boxes(graph: dict[str, Any]) -> list[Rectangle]:
    return [
        (x, y, x + width, y + height)
        for x, y, width, height in (one["bounding"] for one in graph.get("groups", []))
    ]


@pytest.mark.parametrize("path", [*FILES, *BLUEPRINTS], ids=lambda path: path.stem)
def test_nothing_lies_on_anything(path: Path) -> None:
    for graph in graphs(path):
        for one, other in itertools.combinations(graph["nodes"], 2):
            assert apart(rectangle(one), rectangle(other)), (one["type"], other["type"])
        for one, other in itertools.combinations(boxes(graph), 2):
            assert apart(one, other)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_node_but_the_note_has_a_group(path: Path) -> None:
    graph = load(path)
    for node in graph["nodes"]:
        around = [box for box in boxes(graph) if inside(rectangle(node), box)]
        assert len(around) == (node["type"] != "MarkdownNote"), node["type"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_wires_run_from_left_to_right_or_down(path: Path) -> None:
    graph = load(path)
    nodes = {node["id"]: node for node in graph["nodes"]}
    for _, origin, _, target, _, kind in graph["links"]:
        (x, y), (left, top) = nodes[origin]["pos"], nodes[target]["pos"]
        assert left > x or (left == x and top > y), (nodes[origin]["type"], nodes[target]["type"], kind)


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.stem)
def test_no_wire_crosses_a_node(path: Path) -> None:
    graph = load(path)
    nodes = {node["id"]: node for node in graph["nodes"]}
    for _, origin, out, target, into, kind in graph["links"]:
        first, last = nodes[origin], nodes[target]
        start = first["pos"][0] + first["size"][0], first["pos"][1] + (out + 0.7) * SLOT
        end = last["pos"][0], last["pos"][1] + (into + 0.7) * SLOT
        others = [rectangle(node) for key, node in nodes.items() if key not in (origin, target)]
        for x, y in curve(start, end):
            assert not any(a < x < c and b < y < d for a, b, c, d in others), (first["type"], last["type"], kind)


def curve(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[float, float]]:
    """Points of the spline that the page draws: its handles are a quarter of the distance to either side."""
    reach = ((end[0] - start[0]) ** 2 + (end[1] - start[1]) ** 2) ** 0.5 / 4
    xs = start[0], start[0] + reach, end[0] - reach, end[0]
    ys = start[1], start[1], end[1], end[1]
    shares = [((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3) for t in (n / 60 for n in range(61))]
    return [tuple(sum(w * v for w, v in zip(share, axis, strict=True)) for axis in (xs, ys)) for share in shares]
