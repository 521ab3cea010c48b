"""A run that the user interrupts: whatever it does at that moment is the last of its kind."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_management
import folder_paths
import pytest
from comfy_pack import conditioned, core, execute, load, sampled
from test_replace import replaced

EMBEDDED = {"pose_model": "embedded", "segmenter": "embedded"}


@pytest.fixture(autouse=True)
def folders(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ANYCHARV_CACHE", tempfile.mkdtemp())
    monkeypatch.setattr(folder_paths, "output_directory", tempfile.mkdtemp())
    yield
    comfy.model_management.interrupt_current_processing(False)


def works() -> dict[str, tuple[Any, str]]:
    """All that takes long in a run, and the function that does a piece of it."""
    return {
        "look for people": (core("anycharv_core.preprocess.dwpose.estimator").DWPose, "poses"),
        "cut out": (core("anycharv_core.preprocess.segment").Segmenter, "_followed"),
        "read a mask": (core("nodes.replace"), "mask_box"),
        "read a picture": (core("nodes.pictures"), "image_uint8"),
        "encode": (core("nodes.vae")._FirstStage, "encode"),
        "guide": (core("anycharv_core.models").PoseGuider, "forward"),
        "resnet": (core("anycharv_core.models.layers").ResnetBlock, "forward"),
        "attend": (core("anycharv_core.models.layers").SpatialTransformer, "forward"),
        "move": (core("anycharv_core.models.layers").MotionModule, "forward"),
        "decode": (core("nodes.vae")._FirstStage, "decode"),
        "write": (core("anycharv_core.media.video_write").VideoWriter, "write"),
        "border": (core("nodes.masks"), "augment_mask"),
        "paste": (core("nodes.composite"), "feather"),
    }


def check_interrupted(work: str, run: Callable[[], Any]) -> None:
    """Interrupts `run` as it begins to do `work` for the first time: it may only read one picture more, for what
    is in hand."""
    after: Counter[str] = Counter()
    stopped = False

    def counted(name: str, function: Any) -> Any:
        def count(*args: Any, **kwargs: Any) -> Any:
            nonlocal stopped
            if stopped:
                after[name] += 1
            elif name == work:
                stopped = True
                comfy.model_management.interrupt_current_processing()
            return function(*args, **kwargs)

        return count

    with pytest.MonkeyPatch.context() as watched:
        for name, (holder, attribute) in works().items():
            watched.setattr(holder, attribute, counted(name, getattr(holder, attribute)))
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run()
    assert stopped
    assert after <= Counter({"read a picture": 1}), after


def puppet() -> tuple[Any, ...]:
    return execute("AnyCharVPuppetClip", seed=3, frames=12, size=96)


@pytest.mark.parametrize("work", [name for name in works() if name not in ("border", "paste")])
def test_one_node_begins_nothing_more(work: str) -> None:
    clip = puppet()
    check_interrupted(work, lambda: replaced(clip[0], clip, None, pose=None, steps=2, **EMBEDDED))


def test_nodes_of_a_graph_begin_nothing_more() -> None:
    _, scene, mask, *_ = puppet()
    pasting = {"generated": 1 - scene, "original": scene, "mask": mask, "feather": 4}
    check_interrupted("paste", lambda: execute("AnyCharVComposite", **pasting))
    roughened = {"mask": mask, "strength": 1.0, "seed": 0}
    check_interrupted("border", lambda: execute("AnyCharVMaskAugment", **roughened))
    seen = {"images": scene, "model": "embedded", "smoothing": 0.0, "fps": 24.0}
    check_interrupted("look for people", lambda: execute("AnyCharVDWPose", **seen))
    parts = load()
    check_interrupted("guide", lambda: sampled(parts[0], conditioned(*parts), steps=2))
