"""Makes the README's picture of ComfyUI and those of the nodes' help pages, from runs of the embedded models:

COMFYUI_PATH=... COMFYUI_PYTHON=... python tests/help_pictures.py

`make test-comfyui` says what these two are, and comfyui_page.py what the page needs. The pictures go to
docs/comfyui.png and web/docs/pictures.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import two_wires
from comfyui_page import lacking, visit
from comfyui_server import REPO, Server, small_prompt
from PIL import Image

from anycharv_core.systems import read_checkpoint

FOLDER = REPO / "web" / "docs" / "pictures"
SEED, FRAMES, SIZE, SHOWN = 7, 24, 256, 12
PANEL, SHEET = 200, 480  # pixels of a panel's height, and of a contact sheet's
FRAME, ALL = range(SHOWN, SHOWN + 1), range(0, FRAMES, 6)
# Of every node's page: outputs of nodes, side by side, and their frames.
PAGES: dict[str, tuple[list[str], range]] = {
    "Loader": (["clip.frames", "result", "clip.truth"], FRAME),
    "PuppetClip": (["clip.frames", "clip.mask", "drawn", "clip.reference", "clip.truth"], FRAME),
    "ReferenceEncode": (["clip.reference", "clip.reference_mask"], FRAME),
    "BoxMask": (["clip.frames", "clip.mask", "box"], FRAME),
    "MaskAugment": (["clip.mask", "border", "blocks"], FRAME),
    "PoseDraw": (["clip.frames", "drawn"], FRAME),
    "Conditioning": (["clip.frames", "box", "drawn", "clip.reference"], FRAME),
    "Sampler": (["decoded"], ALL),
    "LongVideo": (["pasted"], ALL),
    "Composite": (["decoded", "clip.frames", "box", "pasted"], FRAME),
    "ReplaceCharacter": (["clip.frames", "clip.reference", "result"], FRAME),
    "DWPose": (["clip.frames", "found"], FRAME),
    "FindPeople": (["sheet"], FRAME),
    "Segment": (["clip.frames", "cut"], FRAME),
    "PrepareVideo": (["clip.frames", "overlaid"], FRAME),
    "AnimateCharacter": (["still.reference", "clip.frames", "animated"], FRAME),
    "PoseRetarget": (["drawn", "clip.reference", "retargeted"], FRAME),
    "StructuredDepth": (["act.frames", "act.depth", "act.drawn", "structured"], FRAME),
}
SOURCES = {
    "clip.frames": ["2", 1],
    "clip.mask": ["2", 2],
    "clip.reference": ["2", 4],
    "clip.reference_mask": ["2", 5],
    "clip.truth": ["2", 6],
    "drawn": ["4", 0],
    "decoded": ["7", 0],
    "box": ["box", 0],
    "border": ["border", 0],
    "blocks": ["blocks", 0],
    "pasted": ["pasted", 0],
    "result": ["frames", 0],
    "found": ["poser", 1],
    "sheet": ["people", 2],
    "cut": ["cut", 0],
    "retargeted": ["redrawn", 0],
    "still.reference": ["still clip", 4],
    "animated": ["animated frames", 0],
    "overlaid": ["preview", 0],
    "act.frames": ["act", 1],
    "act.depth": ["act", 8],
    "act.drawn": ["act drawn", 0],
    "structured": ["structured", 0],
}
MASKS = ("clip.mask", "clip.reference_mask", "box", "border", "blocks", "cut")


def prompt() -> dict[str, Any]:
    """The small prompt with a node of every kind beside it, whose outputs are saved under their names."""
    nodes = small_prompt(FRAMES, 1, SIZE)
    nodes["2"]["inputs"] |= {"seed": SEED, "task": "bold swap"}
    nodes["5"]["inputs"] |= {"mask": ["box", 0], "canvas": "person"}
    nodes["6"]["inputs"] |= recommended("embedded")
    del nodes["8"]
    augmented = {"mask": ["2", 2], "strength": 1.0, "seed": 0, "blocks": 10}
    loaded = {"model": ["1", 0], "reference_net": ["1", 1], "vae": ["1", 2], "clip_vision": ["1", 3]}
    given = {"video": ["2", 0], "reference": ["2", 4], "reference_mask": ["2", 5]}
    chosen = {"seed": 42, "width": 0, "height": 0, "recipe": "default", "who": "biggest"}
    small = {"pose_model": "embedded", "segmenter": "embedded"}
    seen = {"model": "embedded", "smoothing": 0.0, "fps": 24.0}
    box = {"region": ["2", 2], "padding": 0.1, "smooth": 2, "min_size": 0, "if_absent": "keep the frame"}
    other = {"model": ["9", 0], "reference_net": ["9", 1], "vae": ["9", 2], "clip_vision": ["9", 3]}
    moving = {"video": ["2", 0], "reference": ["still clip", 4], "pose_model": "embedded"}
    more = {
        "9": ("AnyCharVLoader", {"checkpoint": "embedded-animate", "dtype": "auto"}),
        "still clip": ("AnyCharVPuppetClip", {"seed": SEED, "frames": 1, "size": SIZE, "task": "bold animation"}),
        "moving": ("AnyCharVAnimateCharacter", other | moving | chosen | recommended("embedded-animate")),
        "animated frames": ("GetVideoComponents", {"video": ["moving", 0]}),
        "box": ("AnyCharVBoxMask", box),
        "border": ("AnyCharVMaskAugment", augmented | {"kind": "irregular border"}),
        "blocks": ("AnyCharVMaskAugment", augmented | {"kind": "blocks"}),
        "pasted": (
            "AnyCharVComposite",
            {"generated": ["7", 0], "original": ["2", 1], "mask": ["box", 0], "feather": 4, "canvas": ["5", 3]},
        ),
        "replaced": ("AnyCharVReplaceCharacter", loaded | given | chosen | small | recommended("embedded")),
        "frames": ("GetVideoComponents", {"video": ["replaced", 0]}),
        "poser": ("AnyCharVDWPose", {"images": ["2", 1]} | seen),
        "people": (
            "AnyCharVFindPeople",
            {"images": ["2", 1], "keypoints": ["poser", 0], "choose": "number", "choose.people": "1"},
        ),
        "cut": ("AnyCharVSegment", {"images": ["2", 1], "boxes": ["people", 1], "model": "embedded"}),
        "prepared": (
            "AnyCharVPrepareVideo",
            {"video": ["2", 0], "who": "biggest", "people": 1, "frames": 0} | small,
        ),
        "preview": ("GetVideoComponents", {"video": ["prepared", 1]}),
        "still": ("AnyCharVDWPose", {"images": ["2", 4]} | seen),
        "moved": ("AnyCharVPoseRetarget", {"keypoints": ["people", 0], "reference": ["still", 0]}),
        "redrawn": ("AnyCharVPoseDraw", {"keypoints": ["moved", 0], "width": 0, "height": 0}),
        "act": ("AnyCharVPuppetClip", {"seed": SEED, "frames": FRAMES, "size": SIZE, "task": "interaction"}),
        "act drawn": ("AnyCharVPoseDraw", {"keypoints": ["act", 3], "width": 0, "height": 0}),
        "structured": (
            "AnyCharVStructuredDepth",
            {"depth": ["act", 8], "pose": ["act drawn", 0], "near": "white"},
        ),
    }
    nodes |= {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in more.items()}
    for name, source in SOURCES.items():
        if name in MASKS:
            nodes[f"white {name}"] = {"class_type": "MaskToImage", "inputs": {"mask": source}}
            source = [f"white {name}", 0]
        nodes[f"save {name}"] = {"class_type": "SaveImage", "inputs": {"images": source, "filename_prefix": name}}
    return nodes


def recommended(model: str) -> dict[str, Any]:
    """What a model is made to be sampled with."""
    settings = read_checkpoint(model).settings
    return {"steps": settings["steps"], "cfg": settings["guidance_scale"]}


def panel(file: Path, name: str) -> np.ndarray:
    picture, height = Image.open(file).convert("RGB"), SHEET if name == "sheet" else PANEL
    return np.asarray(
        picture.resize((round(picture.width * height / picture.height), height), Image.Resampling.LANCZOS)
    )


def main() -> None:
    if missing := lacking():
        raise SystemExit(missing)
    server = Server("--cpu")
    try:
        with tempfile.TemporaryDirectory() as workflows, tempfile.TemporaryDirectory() as screenshots:
            visit(server, Path(workflows), Path(screenshots))
            shutil.copy(Path(screenshots) / f"{two_wires.BLUEPRINTS[0]}.png", REPO / "docs" / "comfyui.png")
        outputs = server.run(prompt(), seconds=1200)
        saved = {name: server.files(outputs, f"save {name}") for name in SOURCES}
        FOLDER.mkdir(exist_ok=True)
        for page, (names, shown) in PAGES.items():
            panels = [
                panel(saved[name][min(index, len(saved[name]) - 1)], name) for name in names for index in shown
            ]
            gap = np.full((len(panels[0]), 6, 3), 255, np.uint8)
            row = np.concatenate([part for one in panels for part in (one, gap)][:-1], axis=1)
            Image.fromarray(row).save(FOLDER / f"{page}.jpg", quality=85, optimize=True)
    finally:
        server.stop()


if __name__ == "__main__":
    main()
