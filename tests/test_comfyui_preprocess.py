"""DWPose, Find People, Segment and Pose Retarget in a real ComfyUI, on tiny networks that find red things."""

from __future__ import annotations

import json
import shutil
import urllib.error
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import needs
import numpy as np
import pytest
from comfyui_server import ExecutionFailed, Server
from PIL import Image
from tiny_onnx import write_detector, write_pose
from tiny_sam2 import save_tiny

from anycharv_core.media.video_write import VideoWriter
from anycharv_core.puppets.task import sample_swap

SIZE, FRAMES = 64, 6
SQUARE = 8  # one cell of the tiny detector, so that it finds one person
EMBEDDED = [
    Path(__file__).parents[1] / "anycharv_core" / "weights" / name
    for name in ("puppet_detector.onnx", "puppet_pose.onnx", "puppet_segmenter")
]
Prompt = dict[str, Any]

pytestmark = [pytest.mark.comfyui, needs.comfyui]


def clip(*people: tuple[int, range, bool]) -> list[np.ndarray]:
    """Frames with a red square for everybody: (row, frames with it, whether it walks to the right)."""
    frames = []
    for index in range(FRAMES):
        frame = np.zeros((SIZE, SIZE, 3), np.uint8)
        for top, present, walks in people:
            left = 8 + 8 * index if walks else 40
            if index in present:
                frame[top : top + SQUARE, left : left + SQUARE, 0] = 255
        frames.append(frame)
    return frames


CLIPS = {
    "one": clip((8, range(FRAMES), True)),
    "two": clip((8, range(FRAMES), True), (40, range(FRAMES), False)),
    "moment": clip((8, range(2, 3), True)),
    "nobody": clip(),
    "still": clip((8, range(FRAMES), True))[:1],
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # One of its own: with a model that has a released one's name the shared server takes graphs that lack others.
    server = Server("--cpu")
    folder = server.base / "models" / "detection"
    for name in (".", "swapped", "torn"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    detector = write_detector(folder / "yolox_l.onnx")
    pose = write_pose(folder / "dw-ll_ucoco_384.onnx")
    shutil.copy(pose, folder / "swapped" / detector.name)
    shutil.copy(detector, folder / "swapped" / pose.name)
    shutil.copy(pose, folder / "torn" / pose.name)
    (folder / "torn" / detector.name).write_bytes(detector.read_bytes()[:500])
    segmenters = server.base / "models" / "sam2"
    save_tiny(segmenters / "tiny")
    (segmenters / "foreign").mkdir()
    (segmenters / "foreign" / "config.json").write_text('{"model_type": "vit"}')
    (segmenters / "foreign" / "model.safetensors").write_bytes(b"")
    for name, frames in CLIPS.items():
        with VideoWriter(server.base / "input" / f"{name}.mp4", SIZE, SIZE, rate=Fraction(12)) as writer:
            for frame in frames:
                writer.write(frame)
    portrait = np.zeros((SIZE, SIZE, 4), np.uint8)
    portrait[8:56, 16:48] = 255, 0, 0, 255
    Image.fromarray(portrait).save(server.base / "input" / "red.png")
    yield server
    server.stop()


def graph(name: str, choose: dict[str, Any] | None = None, **changes: dict[str, Any]) -> Prompt:
    """A clip through all nodes but Pose Retarget; changes: inputs by node."""
    nodes = {
        "load": ("LoadVideo", {"file": f"{name}.mp4"}),
        "parts": ("GetVideoComponents", {"video": ["load", 0]}),
        "pose": (
            "AnyCharVDWPose",
            {
                "images": ["parts", 0],
                "model": "dwpose",
                "smoothing": 0.0,
                "fps": ["parts", 2],
            },
        ),
        "find": (
            "AnyCharVFindPeople",
            {
                "images": ["parts", 0],
                "keypoints": ["pose", 0],
                **(choose or {"choose": "number", "choose.people": "1"}),
            },
        ),
        "segment": ("AnyCharVSegment", {"images": ["parts", 0], "boxes": ["find", 1], "model": "tiny"}),
        "boxes": ("PreviewAny", {"source": ["find", 1]}),
        "people": ("PreviewAny", {"source": ["find", 3]}),
        "chosen": ("PreviewAny", {"source": ["find", 0]}),
        "white": ("MaskToImage", {"mask": ["segment", 0]}),
        "masks": ("SaveImage", {"images": ["white", 0], "filename_prefix": "mask"}),
        "skeletons": ("SaveImage", {"images": ["pose", 1], "filename_prefix": "skeleton"}),
    }
    prompt = {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}
    for node, changed in changes.items():
        prompt[node]["inputs"] |= changed
    return prompt


def plus(prompt: Prompt, **nodes: tuple[str, dict[str, Any]]) -> Prompt:
    return prompt | {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def shown(outputs: dict[str, Any], node: str) -> Any:
    """What a Preview as Text shows."""
    (text,) = outputs[node]["text"]
    return json.loads(text)


def bodies(frames: list[dict[str, Any]]) -> np.ndarray:
    """Body points [F, 18, 3] of the only person of every frame."""
    return np.array([frame["people"][0]["pose_keypoints_2d"] for frame in frames]).reshape(-1, 18, 3)


def middle(box: dict[str, Any]) -> tuple[float, float]:
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_chosen_person_is_followed_through_the_clip(server: Server) -> None:
    outputs = server.run(graph("one"))
    boxes = shown(outputs, "boxes")
    assert shown(outputs, "people") == 1
    assert [[box["label"] for box in frame] for frame in boxes] == [["1"]] * FRAMES
    for index, (box,) in enumerate(boxes):
        assert middle(box) == pytest.approx((8 + 8 * index + SQUARE / 2, 8 + SQUARE / 2), abs=2)
    for frame in shown(outputs, "chosen"):
        assert (frame["canvas_width"], frame["canvas_height"], len(frame["people"])) == (SIZE, SIZE, 1)
        (person,) = frame["people"]
        assert len(person["foot_keypoints_2d"]) == 18 and len(person["box_keypoints_2d"]) == 6
    for node in ("masks", "skeletons"):
        pictures = [np.asarray(Image.open(path)) for path in server.files(outputs, node)]
        assert [picture.shape for picture in pictures] == [(SIZE, SIZE, 3)] * FRAMES
        assert node == "masks" or all(picture.any() for picture in pictures)
    (sheet,) = server.files(outputs, "find")
    assert Image.open(sheet).width > 500


@pytest.mark.parametrize(
    ("choose", "rows"),
    [
        ({"choose": "click", "choose.frame": 1, "choose.x": 20, "choose.y": 12}, {12}),
        ({"choose": "click", "choose.frame": 1, "choose.x": 44, "choose.y": 44}, {44}),
        (
            {
                "choose": "box",
                "choose.frame": 0,
                "choose.left": 36,
                "choose.top": 36,
                "choose.width": 20,
                "choose.height": 20,
            },
            {44},
        ),
        ({"choose": "likeness", "choose.picture": ["picture", 0]}, None),
        ({"choose": "number", "choose.people": "1, 2"}, {12, 44}),
    ],
    ids=["click above", "click below", "box", "likeness", "both"],
)
def test_every_way_to_choose(server: Server, choose: dict[str, Any], rows: set[int] | None) -> None:
    outputs = server.run(plus(graph("two", choose), picture=("LoadImage", {"image": "red.png"})))
    assert shown(outputs, "people") == 2
    for frame in shown(outputs, "boxes"):
        found = {row for row in (12, 44) for box in frame if abs(middle(box)[1] - row) < 8}
        assert len(found) == len(frame) == len({box["label"] for box in frame})
        assert found == rows if rows else len(found) == 1


def test_person_in_one_frame_only(server: Server) -> None:
    outputs = server.run(graph("moment"))
    assert [len(frame) for frame in shown(outputs, "boxes")] == [0, 0, 1, 0, 0, 0]
    assert [len(frame["people"]) for frame in shown(outputs, "chosen")] == [0, 0, 1, 0, 0, 0]
    masks = [np.asarray(Image.open(path)) for path in server.files(outputs, "masks")]
    assert not any(mask.any() for mask in masks[:2])


def test_single_frame(server: Server) -> None:
    outputs = server.run(graph("still", pose={"smoothing": 0.5}))
    assert [len(frame) for frame in shown(outputs, "boxes")] == [1]
    assert len(server.files(outputs, "masks")) == 1


def test_smoothing_moves_points_and_keeps_scores(server: Server) -> None:
    runs = (server.run(graph("one", pose={"smoothing": smoothing})) for smoothing in (0.0, 1.0))
    rough, steady = (bodies(shown(outputs, "chosen")) for outputs in runs)
    assert np.array_equal(rough[..., 2], steady[..., 2])
    moved = np.abs(rough - steady)[..., :2].max()
    assert 0.01 < moved < 16


def test_retarget_keeps_frames_and_people(server: Server) -> None:
    prompt = plus(
        graph("moment"),
        puppet=("AnyCharVPuppetClip", {"seed": 3, "frames": 2, "size": 64}),
        other=("AnyCharVPuppetClip", {"seed": 4, "frames": 4, "size": 64}),
        retarget=("AnyCharVPoseRetarget", {"keypoints": ["other", 3], "reference": ["puppet", 3]}),
        result=("PreviewAny", {"source": ["retarget", 0]}),
        before=("PreviewAny", {"source": ["other", 3]}),
    )
    outputs = server.run(prompt)
    result, before = (shown(outputs, node) for node in ("result", "before"))
    assert [len(frame["people"]) for frame in result] == [1] * 4
    assert np.abs(bodies(result) - bodies(before)).max() > 1


CASES: dict[str, tuple[Callable[[], Prompt], str, str]] = {
    "nobody": (lambda: graph("nobody"), "find", "There is nobody in the keypoints"),
    "fewer keypoints than images": (
        lambda: plus(
            graph("one", pose={"images": ["first", 0]}),
            first=("ImageFromBatch", {"image": ["parts", 0], "batch_index": 0, "length": 4}),
        ),
        "find",
        f"images has {FRAMES} frames but keypoints has 4",
    ),
    "no such number": (
        lambda: graph("two", {"choose": "number", "choose.people": "3"}),
        "find",
        "There are 2 people in the video",
    ),
    "no number": (
        lambda: graph("two", {"choose": "number", "choose.people": "the tall one"}),
        "find",
        "not a list of people",
    ),
    "click beside everybody": (
        lambda: graph("one", {"choose": "click", "choose.frame": 0, "choose.x": 60, "choose.y": 60}),
        "find",
        "Nobody is at 60, 60 in frame 0; person 1 is in",
    ),
    "click in no frame": (
        lambda: graph("one", {"choose": "click", "choose.frame": 99, "choose.x": 1, "choose.y": 1}),
        "find",
        "The video has no frame 99",
    ),
    "box around nobody": (
        lambda: graph(
            "one",
            {
                "choose": "box",
                "choose.frame": 0,
                "choose.left": 40,
                "choose.top": 40,
                "choose.width": 20,
                "choose.height": 20,
            },
        ),
        "find",
        "Nobody is in the box",
    ),
    "boxes of another clip": (
        lambda: plus(
            graph("one", segment={"images": ["first", 0]}),
            first=("ImageFromBatch", {"image": ["parts", 0], "batch_index": 0, "length": 2}),
        ),
        "segment",
        f"images has 2 frames but boxes has {FRAMES}",
    ),
    "networks in each other's place": (
        lambda: graph("one", pose={"model": "swapped"}),
        "pose",
        "is not the person detector",
    ),
    "torn network": (lambda: graph("one", pose={"model": "torn"}), "pose", "onnxruntime cannot open"),
    "another kind of segmenter": (
        lambda: graph("one", segment={"model": "foreign"}),
        "segment",
        "holds another kind of model",
    ),
    "several people to retarget": (
        lambda: plus(
            graph("two"),
            retarget=("AnyCharVPoseRetarget", {"keypoints": ["pose", 0], "reference": ["pose", 0]}),
            result=("PreviewAny", {"source": ["retarget", 0]}),
        ),
        "retarget",
        "Frame 0 of the poses to retarget has 2 people",
    ),
    "retarget to nobody": (
        lambda: plus(
            graph("one"),
            empty=("EmptyImage", {"width": 64, "height": 64, "batch_size": 1, "color": 0}),
            none=("AnyCharVDWPose", {"images": ["empty", 0], "model": "dwpose", "smoothing": 0.0, "fps": 24.0}),
            retarget=("AnyCharVPoseRetarget", {"keypoints": ["find", 0], "reference": ["none", 0]}),
            result=("PreviewAny", {"source": ["retarget", 0]}),
        ),
        "retarget",
        "The reference pose has no body",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_mistake_is_one_sentence_on_its_node(server: Server, name: str) -> None:
    make, node, words = CASES[name]
    with pytest.raises(ExecutionFailed) as failed:
        server.run(make())
    data, message = failed.value.data, failed.value.data["exception_message"].strip()
    assert failed.value.kind == "execution_error" and data["node_id"] == node, message
    assert words in message and message.endswith(".")
    assert "\n" not in message and "Traceback" not in message and 'File "' not in message
    server.check_alive()


@pytest.mark.parametrize(
    ("node", "remedy"),
    [("pose", "-m anycharv_core download pose' in "), ("segment", "-m anycharv_core download sam2' in ")],
)
def test_missing_model_says_how_to_get_it(server: Server, node: str, remedy: str) -> None:
    try:
        # Where other branches are sound, they run all the same.
        prompt = graph("one", **{node: {"model": "absent"}})
        errors = server.post("/prompt", {"prompt": prompt})["node_errors"]
    except urllib.error.HTTPError as refused:
        errors = json.load(refused)["node_errors"]
    (error,) = errors[node]["errors"]
    assert error["type"] == "custom_validation_failed" and remedy in error["details"]


def test_combos_list_what_is_there(server: Server) -> None:
    choices = {}
    for node in ("AnyCharVDWPose", "AnyCharVSegment"):
        kind, *rest = server.get(f"/object_info/{node}")[node]["input"]["required"]["model"]
        choices[node] = rest[0]["options"] if kind == "COMBO" else kind
    assert choices["AnyCharVDWPose"] == ["dwpose", "swapped", "torn", "embedded"]
    assert choices["AnyCharVSegment"] == ["foreign", "tiny", "embedded"]


def test_interrupt_stops_finding_poses(server: Server) -> None:
    events = server.events()
    next(events)
    prompt = plus(
        graph("one", pose={"images": ["many", 0]}),
        many=("RepeatImageBatch", {"image": ["parts", 0], "amount": 2000}),
    )
    prompt_id = server.queue(prompt)
    while (event := next(events))["type"] != "progress" or event["data"]["node"] != "pose":
        pass
    server.interrupt()
    while event["type"] != "execution_interrupted":
        if event["type"] == "progress":
            done = event["data"]
        event = next(events)
    assert done["value"] < done["max"] == 2000 * FRAMES
    with pytest.raises(ExecutionFailed) as failed:
        server.wait(prompt_id)
    assert failed.value.kind == "execution_interrupted"


def test_embedded_models_cut_a_puppet_out(server: Server) -> None:
    if not all(path.exists() for path in EMBEDDED):
        pytest.skip("needs the embedded preprocessors' weights")
    swap = sample_swap(3, 8, 256)
    with VideoWriter(server.base / "input" / "puppet.mp4", 256, 256, rate=Fraction(24)) as writer:
        for frame in swap.driving.frames:
            writer.write(frame)
    outputs = server.run(graph("puppet", pose={"model": "embedded"}, segment={"model": "embedded"}))
    masks = np.stack([np.asarray(Image.open(path))[..., 0] > 127 for path in server.files(outputs, "masks")])
    truth = swap.driving.mask > 127
    shared = (masks & truth).sum() / (masks | truth).sum()
    assert shared > 0.3
