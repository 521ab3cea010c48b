"""Masks of a person: by a tiny SAM 2 with random weights, from SAM3's tracks, and from alpha channels."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_sam2 import IMAGE_SIZE, save_tiny

from anycharv_core.errors import UserError
from anycharv_core.media.mask_read import has_alpha, read_alpha
from anycharv_core.preprocess import segment
from anycharv_core.preprocess.sam2 import load_model
from anycharv_core.preprocess.segment import (
    KEPT_PROMPTS,
    LONGEST_GAP,
    PROMPT_EVERY,
    Segmenter,
    plan,
    to_pixels,
    without_leaks,
)

HEIGHT, WIDTH = 45, 61
BOX = (5.0, 6.0, 30.0, 41.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("sam2"))


@pytest.fixture(scope="module")
def segmenter(folder: Path) -> Segmenter:
    return Segmenter(folder, "cpu")


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every session that is started, in order."""
    started: list[Any] = []
    make = segment._new_session

    def noted(*args: Any) -> Any:
        started.append(make(*args))
        return started[-1]

    monkeypatch.setattr(segment, "_new_session", noted)
    return started


@pytest.fixture
def with_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks as the model gives them."""
    monkeypatch.setattr(segment, "without_leaks", lambda mask, box: mask)


def noise(count: int, seed: int = 0) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def test_every_frame_gets_a_mask_of_its_size(segmenter):
    masks = list(segmenter.masks(noise(8), [BOX] * 8))
    assert len(masks) == 8 and len({mask.tobytes() for mask in masks}) == 8
    for mask in masks:
        assert mask.shape == (HEIGHT, WIDTH) and mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 255}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_much_the_same_masks(folder, segmenter, dtype):
    exact = list(segmenter.masks(noise(6), [BOX] * 6))
    for mask, other in zip(exact, Segmenter(folder, "cpu", dtype).masks(noise(6), [BOX] * 6), strict=True):
        assert (mask != other).mean() < 0.1


def test_no_frame_is_taken_before_its_mask_is_asked_for(segmenter):
    taken = 0

    def frames() -> Iterator[np.ndarray]:
        nonlocal taken
        for frame in noise(6):
            taken += 1
            yield frame

    masks = segmenter.masks(frames(), [None, BOX, BOX, None, BOX, BOX], cuts=[4])
    assert taken == 0
    for count in range(1, 7):
        next(masks)
        assert taken == count
    assert next(masks, None) is None


def test_frames_and_boxes_must_pair(segmenter):
    with pytest.raises(ValueError):
        list(segmenter.masks(noise(3), [BOX] * 2))
    with pytest.raises(ValueError):
        list(segmenter.masks(noise(1), [BOX] * 2))


def test_where_nobody_is_the_mask_is_empty_and_the_model_left_alone(segmenter, sessions):
    away = LONGEST_GAP + 1
    boxes = [None, None, BOX, BOX, *[None] * away, BOX, None, BOX]
    found = [bool(mask.any()) for mask in segmenter.masks(noise(len(boxes)), boxes)]
    assert found == [False] * 2 + [True] * 2 + [False] * away + [True] * 3
    assert len(sessions) == 1
    # Nothing is loaded for a clip without the person.
    assert not any(mask.any() for mask in Segmenter("nowhere").masks(noise(3), [None] * 3))


def test_a_low_object_score_gives_an_empty_mask(tmp_path):
    unsure = Segmenter(save_tiny(tmp_path / "unsure", score=-5.0), "cpu")
    assert not any(mask.any() for mask in unsure.masks(noise(4), [BOX] * 4))


def test_plan_prompts_at_the_first_box_after_gaps_and_regularly():
    assert plan([None, BOX, BOX, None, None, BOX, BOX]) == [
        "empty",
        "start",
        "follow",
        "follow",
        "follow",
        "prompt",
        "follow",
    ]
    long = plan([BOX] * (2 * PROMPT_EVERY + 2))
    assert [number for number, step in enumerate(long) if step != "follow"] == [0, PROMPT_EVERY, 2 * PROMPT_EVERY]
    # A prompt after a gap counts.
    gap = plan([BOX] * 5 + [None] + [BOX] * PROMPT_EVERY + [BOX])
    assert [number for number, step in enumerate(gap) if step == "prompt"] == [6, 6 + PROMPT_EVERY]
    assert plan([]) == [] and plan([None] * 3) == ["empty"] * 3


@pytest.mark.parametrize(("gap", "step"), [(LONGEST_GAP, "follow"), (LONGEST_GAP + 1, "empty")])
def test_plan_bridges_only_short_gaps(gap, step):
    assert plan([BOX] + [None] * gap + [BOX]) == ["start"] + [step] * gap + ["prompt"]
    assert plan([BOX] + [None] * gap) == ["start"] + [step] * gap
    assert plan([None] * gap + [BOX]) == ["empty"] * gap + ["start"]


def test_plan_starts_anew_in_every_shot():
    assert plan([BOX, BOX, BOX, None, None, BOX], cuts=[2, 4]) == [
        "start",
        "follow",
        "start",
        "follow",
        "empty",
        "start",
    ]
    # A gap that a cut divides is two gaps, and the one after the cut has no prompt before it.
    gap = LONGEST_GAP
    divided = plan([BOX, *[None] * 2 * gap, BOX], [1 + gap])
    assert divided == ["start", *["follow"] * gap, *["empty"] * gap, "start"]


def test_a_shot_knows_nothing_of_the_one_before(segmenter, sessions, with_leaks):
    frames = list(noise(10))
    cut = list(segmenter.masks(frames, [BOX] * 10, cuts=[6]))
    assert len(sessions) == 2
    alone = list(segmenter.masks(frames[6:], [BOX] * 4))
    whole = list(segmenter.masks(frames, [BOX] * 10))
    assert all(np.array_equal(a, b) for a, b in zip(cut[6:], alone, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(cut[:6], whole[:6], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(cut[6:], whole[6:], strict=True))


def test_the_model_is_given_the_box_in_its_own_pixels(segmenter, monkeypatch):
    prompts = {}
    forget = segment._forget

    def noted(session: Any, number: int, config: Any) -> None:
        prompts.update({number: dict(prompt) for number, prompt in session.point_inputs_per_obj[0].items()})
        forget(session, number, config)

    monkeypatch.setattr(segment, "_forget", noted)
    list(segmenter.masks(noise(3), [BOX, None, (-10, 0, WIDTH, HEIGHT + 10)]))
    assert list(prompts) == [0, 2]
    assert all(prompt["point_labels"].tolist() == [[[2, 3]]] for prompt in prompts.values())
    scale = np.array([IMAGE_SIZE / WIDTH, IMAGE_SIZE / HEIGHT])
    assert np.allclose(prompts[0]["point_coords"][0, 0], np.reshape(BOX, (2, 2)) * scale)
    assert prompts[2]["point_coords"].tolist() == [[[[0, 0], [IMAGE_SIZE, IMAGE_SIZE]]]]


def test_what_is_held_does_not_grow(segmenter, sessions, monkeypatch):
    every = 10
    monkeypatch.setattr(segmenter._model.config, "prompt_every", every, raising=False)
    count = (KEPT_PROMPTS + 3) * every
    reach = segmenter._model.config.max_object_pointers_in_encoder - 1
    kept = []
    for _ in segmenter.masks(noise(count), [BOX] * count):
        (session,) = sessions
        outputs = session.output_dict_per_obj[0]
        assert not session.processed_frames and not session.frames_tracked_per_obj[0]
        assert not session.point_inputs_per_obj[0]
        assert len(outputs["cond_frame_outputs"]) <= KEPT_PROMPTS
        assert len(outputs["non_cond_frame_outputs"]) <= reach
        kept.append(sum(len(output) for kind in outputs.values() for output in kind.values()))
    assert len(sessions) == 1 and max(kept[-every:]) == max(kept[-2 * every : -every])


def test_what_is_dropped_is_not_missed(segmenter, monkeypatch, with_leaks):
    count = 42
    boxes = [None if 20 <= number < 25 else BOX for number in range(count)]
    pruned = list(segmenter.masks(noise(count), boxes))
    monkeypatch.setattr(segment, "_forget", lambda *args: None)
    whole = list(segmenter.masks(noise(count), boxes))
    assert all(np.array_equal(a, b) for a, b in zip(pruned, whole, strict=True))


def test_parts_that_do_not_touch_the_grown_box_are_dropped():
    mask = np.zeros((100, 100), np.uint8)
    mask[20:60, 20:40] = 255  # the person
    mask[30:35, 43:60] = 255  # within the margin of 4 pixels of the box
    mask[80:90, 80:90] = 255  # a leak
    mask[60, 40] = 255  # touches the person by a corner only
    kept = without_leaks(mask, (20.0, 20.0, 40.0, 60.0))
    assert kept.dtype == np.uint8 and np.array_equal(kept[:80], mask[:80]) and not kept[80:].any()
    mask[30:35, 43] = 0
    assert not without_leaks(mask, (20, 20, 40, 60))[30:35, 44:].any()
    assert not without_leaks(np.zeros_like(mask), (20, 20, 40, 60)).any()
    assert not without_leaks(mask, (-30, -30, -10, -10)).any()
    assert np.array_equal(without_leaks(mask, (-5, -5, 200, 200)), mask)


def test_masks_of_frames_with_a_box_touch_it(segmenter):
    for mask, box in zip(segmenter.masks(noise(5), [BOX] * 5), [BOX] * 5, strict=True):
        assert np.array_equal(without_leaks(mask, box), mask)


def test_pixels_are_stretched_and_normalised():
    pixels = to_pixels(torch.full((2, 30, 50, 3), 255, dtype=torch.uint8), 64)
    assert pixels.shape == (2, 3, 64, 64) and pixels.dtype == torch.float32
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(pixels, expected[:, None, None].expand_as(pixels), atol=1e-5)


def test_loading_says_nothing(folder, capfd):
    load_model(folder)
    assert capfd.readouterr() == ("", "")


def break_files(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def break_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def break_kind(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "clip"}))


def break_list(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def change_config(*path: str, to: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        section = config
        for name in path[:-1]:
            section = section[name]
        section[path[-1]] = to
        (folder / "config.json").write_text(json.dumps(config))

    return change


def break_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def break_names(folder: Path) -> None:
    save_file({"other": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (break_files, "lacks config.json or model.safetensors"),
        (break_config, "lacks config.json or model.safetensors"),
        (break_kind, "holds another kind of model"),
        (break_list, "holds another kind of model"),
        (break_weights, "is damaged"),
        (break_names, "holds another kind of model"),
        (change_config("vision_config", to=3), "has a config.json whose vision_config (3) cannot be"),
        (change_config("image_size", to="big"), "has a config.json whose image_size ('big') cannot be"),
        (change_config("image_size", to=None), "has a config.json whose image_size (None) cannot be"),
        (change_config("prompt_every", to=[1]), "has a config.json whose prompt_every ([1]) cannot be"),
        (
            change_config("mask_decoder_config", "num_hidden_layers", to=10**9),
            "has a config.json whose mask_decoder_config.num_hidden_layers (1000000000) cannot be",
        ),
        (
            change_config("vision_config", "backbone_config", "blocks_per_stage", to="x"),
            "has a config.json whose vision_config.backbone_config.blocks_per_stage ('x') cannot be",
        ),
        (change_config("mask_decoder_config", "mlp_dim", to=8000), "holds another kind of model"),
        (
            change_config("mask_decoder_config", "num_attention_heads", to=0),
            "has a config.json whose settings don't fit together",
        ),
        (
            change_config("memory_attention_rope_feat_sizes", to=[3]),
            "has a config.json whose settings don't fit together",
        ),
    ],
)
def test_a_wrong_folder_is_refused_in_one_sentence(tmp_path, damage, problem, capfd):
    broken = save_tiny(tmp_path / "broken")
    damage(broken)
    with pytest.raises(UserError) as caught:
        next(Segmenter(broken, "cpu").masks(noise(1), [BOX]))
    message = str(caught.value)
    assert message.startswith(f"{broken} {problem}; ") and "'anycharv download sam2'" in message
    assert "\n" not in message and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["facebook/sam2.1-hiera-tiny", "no/such/folder", "nothing-here"])
def test_a_model_that_cannot_be_had_is_refused_in_one_sentence(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="is neither a folder nor to be had") as caught:
        next(Segmenter(name, "cpu").masks(noise(1), [BOX]))
    assert str(caught.value).startswith(name) and "'anycharv download sam2'" in str(caught.value)


ALPHAS = [((np.indices((50, 70)).sum(0) * 3 + 20 * number) % 256).astype(np.uint8) for number in range(4)]


def with_alpha(alpha: np.ndarray, layout: str) -> av.VideoFrame:
    """A black frame in a layout with alpha, filled in byte by byte: swscale is off by a level or more."""
    height, width = alpha.shape
    frame = av.VideoFrame(width, height, layout)
    channel = frame.format.components[-1]
    shared = sum(other.plane == channel.plane for other in frame.format.components)
    top = 2**channel.bits - 1
    depth = np.dtype(np.uint8 if top == 255 else ">u2" if frame.format.is_big_endian else "<u2")
    for index, plane in enumerate(frame.planes):
        rows = np.zeros((plane.buffer_size // plane.line_size, plane.line_size // depth.itemsize), depth)
        if index == channel.plane:
            first = layout.index("a") if shared > 1 else 0
            rows[:height, first : width * shared : shared] = (alpha.astype(int) * top + 127) // 255
        plane.update(rows.tobytes())
    return frame


def write_alpha(path: Path, codec: str, layout: str, **options: str) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, 25, width=70, height=50, pix_fmt=layout, options=options)
        if codec.startswith("libvpx"):
            stream.metadata["alpha_mode"] = "1"
        for number, alpha in enumerate(ALPHAS):
            frame = with_alpha(alpha, layout)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "layout", "options"),
    [
        ("prores.mov", "prores_ks", "yuva444p10le", {"profile": "4444", "alpha_bits": "16"}),
        ("animation.mov", "qtrle", "argb", {}),
        ("ffv1_420.mkv", "ffv1", "yuva420p", {}),
        ("ffv1_444.mkv", "ffv1", "yuva444p10le", {}),
        ("ffv1_rgb.mkv", "ffv1", "bgra", {}),
        ("ffv1_deep.mkv", "ffv1", "gbrap12le", {}),
        ("vp9.webm", "libvpx-vp9", "yuva420p", {"lossless": "1"}),
        ("png.mov", "png", "rgba", {}),
        ("png_gray.mov", "png", "ya16be", {}),
        ("png_deep.mov", "png", "rgba64be", {}),
    ],
)
def test_alpha_comes_back_bit_for_bit(tmp_path, name, codec, layout, options):
    path = write_alpha(tmp_path / name, codec, layout, **options)
    got = list(read_alpha(path))
    assert len(got) == len(ALPHAS) and all(alpha.dtype == np.uint8 for alpha in got)
    assert all(np.array_equal(a, b) for a, b in zip(got, ALPHAS, strict=True))
    assert has_alpha(path)


def test_alpha_of_a_folder_of_pngs(tmp_path):
    for number, alpha in enumerate(ALPHAS):
        Image.fromarray(np.dstack([alpha * 0] * 3 + [alpha])).save(tmp_path / f"{number + 8}.png")
    assert all(np.array_equal(a, b) for a, b in zip(read_alpha(tmp_path), ALPHAS, strict=True))
    assert has_alpha(tmp_path)


def test_alpha_of_palettes_and_opaque_pictures(tmp_path):
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    picture = Image.fromarray(indices, "P")
    picture.putpalette(itertools.chain.from_iterable([(9, 9, 9), (200, 0, 0), (0, 0, 200)]))
    picture.save(tmp_path / "clear.png", transparency=1)
    assert np.array_equal(next(read_alpha(tmp_path / "clear.png")), np.where(indices == 1, 0, 255))
    picture.save(tmp_path / "solid.png")
    Image.new("RGBA", (4, 3), (1, 2, 3, 255)).save(tmp_path / "opaque.png")
    Image.new("L", (4, 3)).save(tmp_path / "gray.png")
    found = {name: has_alpha(tmp_path / f"{name}.png") for name in ("clear", "solid", "opaque", "gray")}
    assert found == {"clear": True, "solid": False, "opaque": False, "gray": False}


def test_a_video_without_alpha_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "plain.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 25, width=70, height=50, pix_fmt="yuv420p")
        container.mux(stream.encode(av.VideoFrame(70, 50, "yuv420p")))
        container.mux(stream.encode(None))
    with pytest.raises(UserError, match=r"has no alpha channel \(yuv420p\)") as caught:
        list(read_alpha(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not has_alpha(path)
    with pytest.raises(UserError, match="is not there"):
        has_alpha(tmp_path / "missing.mov")
