"""What a run that was interrupted leaves behind, so that the same inputs go on from there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import folder_paths
from comfy_execution.graph_utils import is_link

from ..anycharv_core.inference.latents import Latents
from ..anycharv_core.inference.people import Begin
from ..anycharv_core.jobs.run import versions
from ..anycharv_core.jobs.work import remove_abandoned, work
from ..anycharv_core.preprocess.cache import content_key

FOLDER = "anycharv_unfinished"
# A run that is queued again has another seed unless it is fixed, so nothing asks for what most runs leave.
ABANDONED = 7 * 24 * 3600  # seconds


@contextmanager
def unfinished(
    hidden: Any, networks: Iterable[str], content: Callable[[], Iterable[object]], resume: bool, temporary: Path
) -> Iterator[Begin]:
    """Gives the latents of a generation, after the last step that an earlier run of the same inputs finished. They
    lie in a folder of ComfyUI's output folder, which goes when the body succeeds, or when a later run finds it
    `ABANDONED`.

    hidden: the node's id and graph; networks: its inputs that are told by what leads to them, as they are too
    large to read; content: what else the result depends on, see `content_key`. Without `resume` or a graph nothing
    is asked for or kept, and latents lie in `temporary`.
    """
    if not resume or hidden is None or hidden.dynprompt is None:
        yield lambda number, shape, noise, parts: Latents.begun(noise, temporary, parts)
        return
    graph = [lineage(hidden.dynprompt, hidden.unique_id, name) for name in networks]
    key = content_key(versions(), graph, *content())
    root = Path(folder_paths.get_output_directory()) / FOLDER
    root.mkdir(parents=True, exist_ok=True)
    try:
        with work(root / key, {"inputs": key}, fresh=False) as state:
            remove_abandoned(root, ABANDONED)
            yield state.latents
    finally:
        with suppress(OSError):
            root.rmdir()


def lineage(graph: Any, node: str, name: str) -> str:
    """A digest of all nodes and values that lead to an input of a node, whatever the nodes' ids."""
    known: dict[str, str] = {}

    def of_node(number: str) -> str:
        if number not in known:
            entry = graph.get_node(number)
            inputs = {each: of_value(value) for each, value in entry["inputs"].items()}
            known[number] = _digest([entry["class_type"], inputs])
        return known[number]

    def of_value(value: Any) -> Any:
        return [of_node(value[0]), value[1]] if is_link(value) else value

    return _digest(of_value(graph.get_node(node)["inputs"].get(name)))


def _digest(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()
