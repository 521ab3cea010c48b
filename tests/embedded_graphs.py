"""Shipped workflows with this pack's small models in place of those to download."""

from __future__ import annotations

from typing import Any

SMALL = {"AnyCharV": "embedded", "dwpose": "embedded", "sam2-hiera-large": "embedded"}
OF_LOADER = {"VAELoader": 2, "CLIPVisionLoader": 3}  # what AnyCharV Loader gives of its own, by output
CUTTING_OUT = ("LoadBackgroundRemovalModel", "RemoveBackground")


def on_embedded_models(workflow: dict[str, Any]) -> dict[str, Any]:
    """The workflow, without or unpacked from its subgraphs, on the embedded models, and without cutting out the
    character: it needs no download then, and all else is as it was shipped."""
    (loader,) = (node for node in workflow["nodes"] if node["type"] == "AnyCharVLoader")
    kinds = {node["id"]: node["type"] for node in workflow["nodes"]}
    links = {}
    for key, origin, slot, *rest in workflow["links"]:
        if kinds[origin] in OF_LOADER:
            links[key] = [key, loader["id"], OF_LOADER[kinds[origin]], *rest]
        elif kinds[origin] not in CUTTING_OUT and kinds.get(rest[0]) not in CUTTING_OUT:
            links[key] = [key, origin, slot, *rest]
    nodes = []
    for node in workflow["nodes"]:
        if node["type"] in OF_LOADER or node["type"] in CUTTING_OUT:
            continue
        values = node.get("widgets_values") or []
        inputs = [entry | {"link": entry["link"] if entry["link"] in links else None} for entry in node["inputs"]]
        outputs = [
            output | {"links": [key for key, link in links.items() if link[1:3] == [node["id"], slot]]}
            for slot, output in enumerate(node["outputs"])
        ]
        small = [SMALL.get(value, value) if isinstance(value, str) else value for value in values]
        properties = {key: value for key, value in node["properties"].items() if key != "models"}
        nodes.append(
            node | {"inputs": inputs, "outputs": outputs, "widgets_values": small, "properties": properties}
        )
    return workflow | {"nodes": nodes, "links": list(links.values())}
