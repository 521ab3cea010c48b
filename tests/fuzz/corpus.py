"""Whole inputs of every kind, small, and what reads each: made by code, so that nothing has to be kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tiny_onnx
import tiny_sam2
import torch
from clip_files import make_clip
from conftest import CONFIGS
from PIL import Image
from shard_files import write_folder as write_shards
from tiny_training import recipe
from tiny_training import write as write_recipe

from anycharv_core.bench.exchange import read_setup
from anycharv_core.checkpoints.checkpoint import Checkpoint
from anycharv_core.checkpoints.networks import build_networks, untrained
from anycharv_core.checkpoints.single_file import write_single
from anycharv_core.jobs.inputs import mask_frames, read_reference, read_reference_mask
from anycharv_core.jobs.prepared import read_prepared
from anycharv_core.media.pose import read_poses
from anycharv_core.media.pose_drawing import draw_poses
from anycharv_core.media.video_read import probe, read_frames
from anycharv_core.media.video_write import write_masks
from anycharv_core.preprocess.dwpose import DWPose
from anycharv_core.preprocess.sam2 import load_model
from anycharv_core.systems import ANIMATE_ANYONE, read_checkpoint, write_folder
from training.config import Data
from training.config_file import read_config
from training.data.pairs import PairClips, facts, png
from training.data.shard_clips import ShardClips
from training.data.shards import join_tars, write_tar

SIZE = (64, 48)


@dataclass(frozen=True)
class Kind:
    """cases: how many to try; make(folder) writes a whole input and returns its path; read(path): the public
    reader, which takes it or raises UserError."""

    name: str
    cases: int
    make: Callable[[Path], Path]
    read: Callable[[Path], object]


def frames(count: int = 4) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return list(random.integers(0, 256, (count, SIZE[1], SIZE[0], 3), np.uint8))


def masks(count: int = 4) -> list[np.ndarray]:
    mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    mask[10:40, 20:50] = 255
    return [mask] * count


def keypoints(count: int = 3) -> list[dict[str, Any]]:
    body = [float(value) for point in range(18) for value in (20 + point, 10 + point, 0.9)]
    hand = [float(value) for point in range(21) for value in (20 + point, 30, 0.5)]
    person = {"pose_keypoints_2d": body, "hand_left_keypoints_2d": hand, "face_keypoints_2d": None}
    return [{"canvas_width": SIZE[0], "canvas_height": SIZE[1], "people": [person] * 2}] * count


def written(name: str, content: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
        return folder / name

    return make


def picture(name: str, mode: str = "RGB", **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = 6, "maker"
        chosen = {"exif": exif.tobytes()} if name.endswith(("jpg", "png", "webp", "tiff")) else {}
        Image.fromarray(frames(1)[0]).convert(mode).save(folder / name, **chosen, **options)
        return folder / name

    return make


def openpose(folder: Path) -> Path:
    for number, frame in enumerate(keypoints()):
        text = json.dumps({"version": 1.3, "people": frame["people"]})
        (folder / f"a_{number:012d}_keypoints.json").write_text(text, encoding="utf-8")
    return folder


def mask_folder(folder: Path) -> Path:
    for number, mask in enumerate(masks()):
        Image.fromarray(mask).save(folder / f"{number}.png")
    return folder


def mask_video(folder: Path) -> Path:
    write_masks(folder / "mask.mkv", masks())
    return folder / "mask.mkv"


def clip(name: str, **options: Any) -> Callable[[Path], Path]:
    return lambda folder: make_clip(folder / name, frames(), **options)


def read_video(path: Path) -> None:
    probe(path)
    drain(read_frames(path))


def draw(path: Path) -> None:
    drain(draw_poses(read_poses(path, SIZE).scaled(*SIZE)), 3)


def drain(items: Iterable[object], count: int = 8) -> None:
    for _ in islice(items, count):
        pass


def model() -> Checkpoint:
    torch.manual_seed(0)
    networks = untrained(CONFIGS)
    return Checkpoint(
        CONFIGS, {part: module.half().state_dict() for part, module in vars(networks).items() if module}
    )


def single(folder: Path) -> Path:
    write_single(model(), folder / "model.safetensors")
    return folder / "model.safetensors"


def released(folder: Path) -> Path:
    write_folder(model(), folder / "model")
    return folder / "model"


def animate_anyone(folder: Path) -> Path:
    configs = {part: dict(config) for part, config in CONFIGS.items()}
    configs["denoising_unet"]["in_channels"] = 4
    networks = untrained(configs)
    weights = {part: module.half().state_dict() for part, module in vars(networks).items() if module}
    ANIMATE_ANYONE.layout.write(Checkpoint(configs, weights), folder / "model", None)
    return folder / "model"


def build(path: Path) -> None:
    build_networks(read_checkpoint(path))


def pose_model(folder: Path) -> Path:
    tiny_onnx.write_detector(folder / "detector.onnx")
    tiny_onnx.write_pose(folder / "pose.onnx")
    return folder


def find(path: Path) -> None:
    DWPose(path / "detector.onnx", path / "pose.onnx", "cpu").poses(np.stack(frames(1)))


def shards(folder: Path) -> Path:
    write_shards(folder, {"a": [2], "b": [3]})
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name.endswith(".part.tar"):
            path.unlink()
    return folder


def train_on_shards(path: Path) -> None:
    dataset = ShardClips(Data(source="shards", path=str(path), size=(16, 16)), 2)
    for index in range(min(2, len(dataset))):
        dataset[index, 0]


def pairs(folder: Path) -> Path:
    layers = {"frame": frames(2), "scene": frames(2), "mask": masks(2), "character": masks(2), "pose": frames(2)}
    members = [
        (f"00000000.{number:03d}.{kind}.png", png(pictures[number]))
        for kind, pictures in layers.items()
        for number in range(2)
    ] + [("00000000.reference.png", png(frames(1)[0]))]
    write_tar(folder / "part.tar", members)
    join_tars(folder / "000000.tar", [folder / "part.tar"])
    (folder / "part.tar").unlink()
    row = {"key": "00000000", "offset": 0, "frames": 2, "size": list(SIZE), "origin": {"driving": {}}}
    (folder / "000000.json").write_bytes(facts({"tried": 1, "pairs": [row]}))
    return folder


def train_on_pairs(path: Path) -> None:
    PairClips(Data(source="pairs", path=str(path)), 2)[0, 0]


KINDS = (
    Kind("keypoints", 220, written("pose.json", keypoints()), draw),
    Kind("openpose", 60, openpose, draw),
    Kind(
        "boxes",
        120,
        written("box.json", [[1, 2, 30, 40], None, {"x": 1, "y": 2, "width": 9, "height": 9}]),
        lambda path: drain(mask_frames(path, SIZE)),
    ),
    Kind("png", 160, picture("a.png"), read_reference),
    Kind("transparent", 60, picture("a.png", "RGBA"), read_reference),
    Kind("palette", 60, picture("a.png", "P", transparency=3), read_reference),
    Kind("jpeg", 80, picture("a.jpg"), read_reference),
    Kind("tiff", 120, picture("a.tiff", compression="tiff_lzw"), read_reference),
    Kind("webp", 40, picture("a.webp"), read_reference),
    Kind("gif", 30, picture("a.gif"), read_reference),
    Kind("bmp", 30, picture("a.bmp"), read_reference),
    Kind(
        "outline", 40, picture("a.png", "L"), lambda path: read_reference_mask(path, frames(1)[0].swapaxes(0, 1))
    ),
    Kind("mask folder", 50, mask_folder, lambda path: drain(mask_frames(path, SIZE))),
    Kind("mask video", 50, mask_video, lambda path: drain(mask_frames(path, SIZE))),
    Kind("mp4", 80, clip("a.mp4"), read_video),
    Kind("mkv", 60, clip("a.mkv", codec="ffv1"), read_video),
    Kind("sound", 30, clip("a.mp4", audio_codec="aac"), read_video),
    Kind("single file", 140, single, build),
    Kind("folder", 80, released, build),
    Kind("Animate Anyone", 60, animate_anyone, build),
    Kind("segmenter", 40, tiny_sam2.save_tiny, load_model),
    Kind("pose model", 30, pose_model, find),
    Kind("config", 180, lambda folder: write_recipe(folder, recipe()), read_config),
    Kind("shards", 70, shards, train_on_shards),
    Kind("pairs", 70, pairs, train_on_pairs),
    Kind(
        "prepared",
        30,
        written("report.json", {"clip": "a.mp4", "chosen": [{"folder": "."}], "cuts": [2]}),
        lambda path: read_prepared(path.parent),
    ),
    Kind(
        "bench",
        20,
        written("bench.json", {"clips": 4, "frames": 8, "size": 64, "task": "swap", "tasks": {}}),
        lambda path: read_setup(path.parent),
    ),
)
