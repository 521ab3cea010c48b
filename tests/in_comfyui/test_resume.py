"""What interrupted runs leave behind: by which inputs it is known, and when it goes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import folder_paths
import pytest
import torch
from comfy_pack import core, models_folder
from safetensors.torch import save_file

import nodes


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    yield tmp_path / "anycharv_unfinished"
    folder_paths.set_output_directory(before)


def unfinished(graph: dict[str, Any], content: Any, folder: Path) -> Any:
    hidden = SimpleNamespace(dynprompt=SimpleNamespace(get_node=graph.__getitem__), unique_id="1")
    return core("nodes.resume").unfinished(hidden, ("model",), content, True, folder)


GRAPH = {"1": {"class_type": "Node", "inputs": {"model": "a"}}}


def test_an_error_before_the_run_leaves_no_folder(output: Path, tmp_path: Path) -> None:
    def unreadable() -> Any:
        raise ValueError("torn")

    with pytest.raises(ValueError, match="torn"), unfinished(GRAPH, unreadable, tmp_path):
        pass
    assert not output.exists()


def test_a_run_removes_what_was_left_a_week_ago_but_goes_on_with_its_own(output: Path, tmp_path: Path) -> None:
    def interrupted(content: str) -> int:
        """How many rounds had been finished before."""
        with pytest.raises(KeyboardInterrupt), unfinished(GRAPH, lambda: [content], tmp_path) as begin:
            latents = begin(0, (1, 1, 2, 2), [torch.zeros(1, 1, 2, 2)], 2)
            done = latents.rounds
            latents.put([0], torch.ones(1, 1, 2, 2))
            latents.advance()
            raise KeyboardInterrupt
        return done

    assert interrupted("own") == interrupted("other") == 0
    for place in output.iterdir():
        for path in (*place.iterdir(), place):
            os.utime(path, (0, 0))
    assert interrupted("own") == 1
    assert len(list(output.iterdir())) == 1


def test_models_are_known_by_their_files_not_by_their_names_alone(tmp_path: Path) -> None:
    loras, folder = tmp_path / "loras", models_folder() / "trained" / "denoising_unet"
    folder_paths.add_model_folder_path("loras", str(loras))
    weights = loras / "style.safetensors", folder / "model.safetensors"
    for path in weights:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"before")

    def lineage(text: str = "a man") -> str:
        graph = {
            "1": {"class_type": "Node", "inputs": {"model": ["2", 0]}},
            "2": {"class_type": "LoraLoader", "inputs": {"lora_name": "style.safetensors", "model": ["3", 0]}},
            "3": {"class_type": "AnyCharVLoader", "inputs": {"checkpoint": "trained", "text": text}},
        }
        known: str = core("nodes.resume").lineage(SimpleNamespace(get_node=graph.__getitem__), "1", "model")
        return known

    known = [lineage()]
    assert known == [lineage()]
    for path in weights:
        path.write_bytes(b"afterwards")
        known.append(lineage())
    assert len({*known}) == 3 and lineage() == known[-1]
    # Text that is no name of a file, or names a folder of all models.
    assert len({lineage(text) for text in ("", ".", "..", "trained/..", "\0", "long" * 10_000)}) == 6


def test_models_are_known_by_the_files_that_no_input_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that stand in for a VAE and an encoder, and the origin of a file of Save Model."""
    loader, folder = core("nodes.loader"), models_folder()
    save_file(core("nodes.saved").named("origin.safetensors"), folder / "of_save_model.safetensors")
    for kind in ("vae", "clip_vision"):
        _, endings = folder_paths.folder_names_and_paths[kind]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(tmp_path)], endings))
    others = [folder / "origin.safetensors", tmp_path / loader.VAE_FILE, tmp_path / loader.ENCODER_FILE]
    inputs = {"checkpoint": "of_save_model.safetensors", "dtype": "auto"}
    graph = {
        "1": {"class_type": "Node", "inputs": {"model": ["2", 0]}},
        "2": {"class_type": "AnyCharVLoader", "inputs": inputs},
    }

    def known() -> tuple[str, str]:
        """The run's key, and what ComfyUI asks before it loads."""
        key = core("nodes.resume").lineage(SimpleNamespace(get_node=graph.__getitem__), "1", "model")
        return key, nodes.NODE_CLASS_MAPPINGS["AnyCharVLoader"].fingerprint_inputs(**inputs)

    seen = [known()]
    for content in (b"before", b"afterwards"):
        for path in others:
            path.write_bytes(content)
            seen.append(known())
            assert seen[-1] == known()
    keys, fingerprints = zip(*seen, strict=True)
    assert len({*keys}) == len({*fingerprints}) == len(seen) == 7


def test_what_cannot_be_known_is_no_error_before_loading() -> None:
    ask = nodes.NODE_CLASS_MAPPINGS["AnyCharVLoader"].fingerprint_inputs
    assert ask(checkpoint=None, dtype="auto", base=None) == ""
    torn = models_folder() / "torn.safetensors"
    for content in (b"", b"torn"):
        torn.write_bytes(content)
        assert ask(checkpoint=torn.name, dtype="auto")
    for name in ("missing.safetensors", "..", "\0"):
        assert isinstance(ask(checkpoint=name, dtype="auto", base="missing"), str)
