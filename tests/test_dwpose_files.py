"""DWPose's files and devices, and what a user can get wrong."""

from __future__ import annotations

import logging
import sys

import numpy as np
import onnxruntime
import pytest
from dwpose_files import SIDE, black
from dwpose_files import files as files
from dwpose_files import tiny as tiny
from tiny_onnx import write_detector

from anycharv_core.errors import UserError
from anycharv_core.preprocess.dwpose import DWPose, onnx_net


def test_sessions_open_on_first_use(tmp_path, files, monkeypatch):
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(files[1].read_bytes()[:500])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    net = DWPose(files[0], damaged)
    with pytest.raises(UserError, match="pip install onnxruntime"):
        net.detect(black()[None])
    monkeypatch.undo()
    assert len(net.detect(black()[None])) == 1
    with pytest.raises(UserError, match=r"cannot open .*damaged\.onnx.*anycharv download pose"):
        net.estimate(black()[None], [[]])


def test_a_session_is_opened_once(files, monkeypatch):
    opened, paths = onnxruntime.InferenceSession, []
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda path, *a, **k: paths.append(path) or opened(path, *a, **k)
    )
    net = DWPose(*files, device="cpu")
    assert paths == []
    net.poses([black(red=[(2, 2, 250)])] * 3)
    net.poses([black(red=[(2, 2, 250)])])
    assert paths == [str(path) for path in files]


def test_a_missing_file_is_named_at_once(tmp_path, files):
    with pytest.raises(UserError, match=r"no person detector \(yolox_l.onnx\) at .*gone.*anycharv download pose"):
        DWPose(tmp_path / "gone.onnx", files[1])
    with pytest.raises(UserError, match=r"no pose network \(dw-ll_ucoco_384.onnx\) at .*download pose"):
        DWPose(files[0], tmp_path)


def test_swapped_files(files):
    net = DWPose(*files[::-1], device="cpu")
    with pytest.raises(UserError, match=r"ucoco_384\.onnx is not the person detector \(yolox_l\.onnx\)"):
        net.detect(black()[None])
    with pytest.raises(UserError, match=r"yolox_l\.onnx is not the pose network \(dw-ll_ucoco_384\.onnx\)"):
        net.estimate(black()[None], [[]])


def test_foreign_detectors(tmp_path, files):
    few = write_detector(tmp_path / "few.onnx", SIDE, columns=6)
    with pytest.raises(UserError, match=r"few\.onnx is not the person detector.* \[1, 84, 6\] .*\[\*, 84, 85\]"):
        DWPose(few, files[1], "cpu").detect(black()[None])
    free = write_detector(tmp_path / "free.onnx", side_name="side")
    with pytest.raises(UserError, match=r"free\.onnx is not .*does not fix the size"):
        DWPose(free, files[1], "cpu").detect(black()[None])
    text = tmp_path / "text.onnx"
    text.write_text("<!doctype html>")
    with pytest.raises(UserError, match=r"cannot open .*text\.onnx"):
        DWPose(text, files[1], "cpu").detect(black()[None])


@pytest.mark.parametrize(
    ("frames", "boxes", "sentence"),
    [
        (np.zeros((1, 8, 8, 3), np.float32), [[]], "uint8"),
        (np.zeros((1, 8, 8), np.uint8), [[]], "uint8"),
        (np.zeros((2, 8, 8, 3), np.uint8), [[]], "2 frames, and boxes for 1"),
        (np.zeros((1, 8, 8, 3), np.uint8), [[[1, 2, 3]]], "boxes of frame 0"),
        (np.zeros((1, 8, 8, 3), np.uint8), [[1, 2, 3, 4]], "boxes of frame 0"),
        (np.zeros((1, 8, 8, 3), np.uint8), [[[0, 0, np.nan, 4]]], "boxes of frame 0"),
    ],
)
def test_wrong_frames_and_boxes(tiny, frames, boxes, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny.estimate(frames, boxes)


def test_no_frames(tiny):
    frames = np.zeros((0, 8, 8, 3), np.uint8)
    assert tiny.detect(frames) == tiny.estimate(frames, []) == []
    with pytest.raises(UserError, match="no frames"):
        tiny.poses(frames)


def test_cuda_where_there_is_none_is_said_once(files, tiny, caplog, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    onnx_net._say_choice.cache_clear()
    frame = black(red=[(2, 2, 250)])[None]
    with caplog.at_level(logging.INFO, "anycharv_core"):
        for _ in range(2):
            (found,) = DWPose(*files, device="cuda").poses(frame).people
            assert np.array_equal(found, tiny.poses(frame).people[0], equal_nan=True)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "onnxruntime-gpu" in record.message


def test_the_cpu_is_said_once_and_is_no_warning(files, caplog):
    onnx_net._say_choice.cache_clear()
    with caplog.at_level(logging.INFO, "anycharv_core"):
        DWPose(*files, device="cpu").poses(black(red=[(2, 2, 250)])[None])
        DWPose(*files, device="mps").detect(black()[None])
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (logging.INFO, "Poses are found on the CPU.")
    ]


@pytest.mark.parametrize(
    ("device", "torch_has_it", "index"),
    [("cuda", True, 0), ("cuda:1", True, 1), (None, True, 0), (None, False, None), ("cpu", True, None)],
)
def test_cuda_is_used_where_it_is(files, monkeypatch, device, torch_has_it, index):
    import torch

    asked = []
    opened = onnxruntime.InferenceSession

    def session(path, options, providers):
        asked.append(providers)
        return opened(path, options, providers=["CPUExecutionProvider"])

    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: torch_has_it)
    DWPose(*files, device=device).detect(black()[None])
    cuda = [] if index is None else [("CUDAExecutionProvider", {"device_id": index})]
    assert asked == [[*cuda, "CPUExecutionProvider"]]
