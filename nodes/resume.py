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

from ..anycharv_core.checkpoints.places import EMBEDDED
from ..anycharv_core.inference.latents import Latents
from ..anycharv_core.inference.people import Begin
from ..anycharv_core.jobs.run import versions
from ..anycharv_core.jobs.work import remove_abandoned, work
from ..anycharv_core.preprocess.cache import content_key, weights_key
from .loader import BASES, MODELS, AnyCharVLoader, files_key

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
    """A digest of all nodes and values that lead to an input of a node, whatever the nodes' ids, and of what tells
    the model files that they name from others."""
    known: dict[str, str] = {}

    def of_node(number: str) -> str:
        if number not in known:
            entry = graph.get_node(number)
            inputs = {each: of_value(value) for each, value in entry["inputs"].items()}
            files = ""
            if entry["class_type"] == AnyCharVLoader.__name__:  # it also takes files that no input names
                files = files_key(entry["inputs"].get("checkpoint"), entry["inputs"].get("base"))
            known[number] = _digest([entry["class_type"], inputs, files])
        return known[number]

    def of_value(value: Any) -> Any:
        if is_link(value):
            return [of_node(value[0]), value[1]]
        return [value, *map(weights_key, _models(value))] if isinstance(value, str) else value

    return _digest(of_value(graph.get_node(node)["inputs"].get(name)))


def _models(name: str) -> list[Path]:
    """The files and folders of models that loaders may mean by a name."""
    if name in EMBEDDED:
        return [EMBEDDED[name]] if EMBEDDED[name].is_file() else []
    if Path(name).name in ("", ".."):  # a whole folder of models
        return []
    found = []
    # Which kind of model it is only the loader knows, which may be of another pack.
    for kind in folder_paths.folder_names_and_paths:
        for place in (Path(root, name) for root in folder_paths.get_folder_paths(kind)):
            with suppress(OSError):  # a text that is too long for a name
                if place.is_file() or (kind in (MODELS, BASES) and place.is_dir()):
                    found.append(place)
    return found


def _digest(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()
