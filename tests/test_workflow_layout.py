"""How the workflows and blueprints look on ComfyUI's canvas, by their positions and sizes."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).parents[1]
FILES = sorted((REPO / "workflows").glob("*.json"))
BLUEPRINTS = sorted((REPO / "subgraphs").glob("*.json"))
TITLE, SLOT = 30, 20  # pixels of a node's title, which lies above its position, and of one of its sockets
HANDLE = 80  # the longest that a spline's handle at a reroute is

Rectangle = tuple[float, float, float, float]
Point = tuple[float, ...]


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


@pytest.mark.parametrize("path", [*FILES, *BLUEPRINTS], ids=lambda path: path.stem)
def test_no_wire_crosses_a_node(path: Path) -> None:
    for graph in graphs(path):
        assert crossings(graph) == []


def crossings(graph: dict[str, Any]) -> list[tuple[int, str]]:
    """Links, and the kinds of the nodes that they cross without being theirs."""
    found = []
    for link in graph["links"]:
        number, origin, _, target, *_ = link
        others = [node for node in graph["nodes"] if node["id"] not in (origin, target)]
        points = wire(graph, link)
        for node in others:
            a, b, c, d = rectangle(node)
            if any(a < x < c and b < y < d for x, y in points):
                found.append((number, node["type"]))
    return found


def wire(graph: dict[str, Any], link: list[Any]) -> list[Point]:
    """Points of a link as the page draws it: a spline from each of its reroutes to the next, smooth in all.

    Wires to and from the ends of a subgraph, which the page places by itself, have none.
    """
    number, origin, out, target, into, _ = link
    nodes = {node["id"]: node for node in graph["nodes"]}
    if not {origin, target} <= nodes.keys():
        return []
    first, last = nodes[origin], nodes[target]
    start = first["pos"][0] + first["size"][0], first["pos"][1] + (out + 0.7) * SLOT
    end = last["pos"][0], last["pos"][1] + (into + 0.7) * SLOT
    chains = {each: chain(graph, each) for each, *_ in graph["links"]}
    stops = [tuple(each["pos"]) for each in chains[number]]
    points: list[Point] = []
    handle = math.dist(start, (*stops, end)[0]) / 4, 0.0
    for place, reroute in enumerate(chains[number]):
        before, at = (start, *stops)[place], stops[place]
        # The tangent at a reroute is midway between where its links come from and where they go, on the average.
        ahead = [direction(at, after(graph, chains[each], each, reroute["id"])) for each in reroute["linkIds"]]
        came, goes = direction(before, at), sum(ahead) / len(ahead)
        turn = (came - goes) / 2
        angle = came - (turn + math.pi if abs(turn) > math.pi / 2 else turn)
        reach = min(HANDLE, math.dist(before, at) / 4)
        points += spline(before, handle, (-reach * math.cos(angle), -reach * math.sin(angle)), at)
        reach = min(HANDLE, math.dist(at, (*stops, end)[place + 1]) / 4)
        handle = reach * math.cos(angle), reach * math.sin(angle)
    before = (start, *stops)[-1]
    return points + spline(before, handle, (-math.dist(before, end) / 4, 0.0), end)


def chain(graph: dict[str, Any], link: int) -> list[dict[str, Any]]:
    """The reroutes of a link, from its origin on."""
    extra = graph.get("extra", {})
    reroutes = {each["id"]: each for each in extra.get("reroutes", [])}
    parent = {each["id"]: each["parentId"] for each in extra.get("linkExtensions", [])}.get(link)
    found = []
    while parent is not None:
        found.insert(0, reroutes[parent])
        parent = found[0].get("parentId")
    return found


def after(graph: dict[str, Any], stops: list[dict[str, Any]], link: int, reroute: int) -> Point:
    """Where a link goes from one of its reroutes."""
    place = [each["id"] for each in stops].index(reroute) + 1
    if place < len(stops):
        return tuple(stops[place]["pos"])
    _, _, _, target, into, _ = next(each for each in graph["links"] if each[0] == link)
    node = next(each for each in graph["nodes"] if each["id"] == target)
    return node["pos"][0], node["pos"][1] + (into + 0.7) * SLOT


def direction(one: Point, other: Point) -> float:
    return math.atan2(other[1] - one[1], other[0] - one[0])


def spline(start: Point, out: Point, back: Point, end: Point) -> list[Point]:
    """Points of a cubic spline; out, back: its handles, from either end."""
    ends = zip(start, out, back, end, strict=True)
    axes = [(a, a + before, b + behind, b) for a, before, behind, b in ends]
    shares = [((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3) for t in (n / 60 for n in range(61))]
    return [tuple(sum(w * v for w, v in zip(share, axis, strict=True)) for axis in axes) for share in shares]
