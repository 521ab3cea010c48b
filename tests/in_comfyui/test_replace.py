"""AnyCharV Replace Character: a video in, a video out."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import comfy.utils
import numpy as np
import pytest
import torch
from comfy_api.latest import InputImpl, Types
from comfy_pack import core, execute, load


def replaced(video: Any, puppet: tuple[Any, ...], mask: Any, **inputs: Any) -> str:
    """The file that Replace Character made of a video of the puppet's frames."""
    parts = dict(zip(("model", "reference_net", "vae", "clip_vision"), load(), strict=True))
    _, _, _, keypoints, reference, cut, *_ = puppet
    settings = {"steps": 1, "cfg": 1.0, "seed": 1, "width": 0, "height": 0, "recipe": "default"}
    files = {"video": video, "reference": reference, "mask": mask, "pose": keypoints, "reference_mask": cut}
    (result,) = execute("AnyCharVReplaceCharacter", **parts | settings | files | inputs)
    return str(result.get_stream_source())


def test_replace_character_keeps_times_and_audio() -> None:
    video = core("anycharv_core.media.video_write")
    puppet = execute("AnyCharVPuppetClip", seed=5, frames=8, size=96)
    scene, mask = puppet[1:3]
    folder = Path(tempfile.mkdtemp())
    sound = folder / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        tone = np.sin(np.arange(44100) * 0.05, dtype=np.float32)[None]
        for start in range(0, 44100 - 1024, 1024):
            frame = av.AudioFrame.from_ndarray(tone[:, start : start + 1024], "fltp", "mono")
            frame.sample_rate, frame.pts = 44100, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    ticks = [0, 1001, 2002, 4004, 5005, 6006, 7007, 8008]  # one frame was dropped
    clip = folder / "clip.mp4"
    with video.VideoWriter(clip, 96, 96, ticks, Fraction(1, 30000), audio_from=sound) as writer:
        for frame in scene:
            writer.write((frame * 255).byte().numpy())
    mask[3] = 0
    path = replaced(InputImpl.VideoFromFile(str(clip)), puppet, mask)
    before, after = video.probe(clip), video.probe(path)
    assert [t * before.time_base for t in before.timestamps] == [t * after.time_base for t in after.timestamps]
    assert (after.width, after.height, after.frames) == (96, 96, 8)

    def packets(name: str) -> list[bytes]:
        with av.open(str(name)) as container:
            return [bytes(p) for p in container.demux(audio=0) if p.size]

    assert packets(str(clip)) == packets(path) != []
    frames = [np.stack(list(video.read_frames(str(p)))).astype(int) for p in (clip, path)]
    changed = np.abs(frames[0] - frames[1]).mean(axis=(1, 2, 3))
    # Without a mask only the encoder touches a frame.
    assert 1.5 * changed[3] < np.delete(changed, 3).min(), changed


def test_a_reference_of_which_nothing_is_shown_is_refused() -> None:
    puppet = execute("AnyCharVPuppetClip", seed=5, frames=2, size=96)
    black = torch.zeros_like(puppet[5])
    clear = torch.cat([puppet[4], black[..., None]], dim=-1)
    refused = core("anycharv_core.errors").UserError
    with pytest.raises(refused, match="reference mask is black everywhere"):
        replaced(puppet[0], puppet, puppet[2], reference_mask=black)
    with pytest.raises(refused, match="reference is transparent everywhere"):
        replaced(puppet[0], puppet, puppet[2], reference=clear, reference_mask=None)


def test_frames_in_memory_and_trimmed_ones_are_not_encoded_on_the_way() -> None:
    video, colour = core("anycharv_core.media.video_write"), core("anycharv_core.media.colour")
    puppet = execute("AnyCharVPuppetClip", seed=5, frames=8, size=96)
    folder = Path(tempfile.mkdtemp())
    noise = np.random.default_rng(0).integers(0, 256, (8, 96, 96, 3), np.uint8)
    with video.VideoWriter(folder / "clip.mkv", 96, 96, rate=Fraction(25), codec="ffv1") as writer:
        for frame in noise:
            writer.write(frame)
    memory = InputImpl.VideoFromComponents(
        Types.VideoComponents(images=torch.from_numpy(noise).float() / 255, audio=None, frame_rate=Fraction(25))
    )
    trimmed = InputImpl.VideoFromFile(str(folder / "clip.mkv"), start_time=0.08, duration=0.16)
    for given, shown, first in ((memory, noise, 0), (trimmed, noise[2:6], 2)):
        count = len(shown)
        mask, keypoints = torch.zeros(count, 96, 96), puppet[3][first : first + count]
        mask[0, 40:50, 40:50] = 1
        path = replaced(given, puppet, mask, pose=keypoints, crf=0)
        info = video.probe(path)
        assert [time * info.time_base for time in info.timestamps] == [Fraction(i, 25) for i in range(count)]
        made = np.stack(list(video.read_frames(path)))
        # At CRF 0 only chroma of half the resolution stands between a frame without a mask and its source.
        weights = np.array([0.2126, 0.7152, 0.0722])
        assert np.abs(made[1:] @ weights - shown[1:] @ weights).mean() < 3
        assert colour.Colours(1, False, 1, 1) == info.colours


def test_two_characters_take_the_places_of_two_people(tmp_path: Path) -> None:
    video, jobs = core("anycharv_core.media.video_write"), core("anycharv_core.jobs.prepared")
    pose, person = core("anycharv_core.media.pose"), core("anycharv_core.preprocess.person")
    frames, size = 4, 96
    puppets = [execute("AnyCharVPuppetClip", seed=seed, frames=frames, size=size) for seed in (5, 6)]
    people, masks = [], []
    for place, puppet in enumerate(puppets):
        mask = torch.zeros(frames, size, 2 * size)
        mask[:, :, place * size : (place + 1) * size] = puppet[2]
        masks.append(mask > 0.5)
        folder = tmp_path / str(place)
        folder.mkdir()
        for name in (person.MASKS, person.BOXES):
            video.write_masks(folder / name, (mask * 255).byte().numpy())
        found = [np.add(each, [place * size, 0, 0]) for each in pose.parse_poses(puppet[3]).people]
        people.append(jobs.PreparedPerson(place + 1, pose.Poses(2 * size, size, found), folder))
    scene = torch.cat([puppet[1] for puppet in puppets], dim=2)
    clip = InputImpl.VideoFromComponents(Types.VideoComponents(images=scene, audio=None, frame_rate=Fraction(25)))
    given = {"prepared": people, "pose": None, "crf": 0, "characters": {"character0": puppets[0][4]}}
    made = replaced(clip, puppets[1], None, **given)
    shown = torch.from_numpy(np.stack(list(video.read_frames(made)))).float() / 255
    # At CRF 0 only chroma of half the resolution stands between the two where nothing was pasted.
    changed = ((shown - scene) @ torch.tensor([0.2126, 0.7152, 0.0722])).abs()
    near = torch.nn.functional.max_pool2d((masks[0] | masks[1]).float(), 33, stride=1, padding=16) > 0
    around = changed[~near]
    assert len(around) > 1000 and around.mean() < 0.01
    assert [float(changed[mask].mean()) > 10 * float(around.mean()) for mask in masks] == [True, True]


def test_a_run_shows_who_is_replaced_then_latents_then_finished_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    frames, size, steps = 9, 96, 2
    seen: list[tuple[int, Any]] = []

    def report(value: int, total: int, preview: Any, **_: Any) -> None:
        if preview is not None:
            seen.append((total, np.asarray(preview[1]).astype(int)))

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", report)
    puppet = execute("AnyCharVPuppetClip", seed=5, frames=frames, size=size)
    path = replaced(puppet[0], puppet, puppet[2], steps=steps)
    assert [total for total, _ in seen] == [frames, frames, steps, steps, frames, frames]
    pictures = [shown for _, shown in seen]
    preview, scene = core("nodes.preview"), (puppet[1] * 255).numpy()
    for shown, index in zip(pictures[:2], (0, 8), strict=True):
        x0, y0, x1, y1 = core("anycharv_core.media.masks").mask_box((puppet[2][index] * 255).byte().numpy())
        inside = np.zeros((size, size), bool)
        inside[y0:y1, x0:x1] = True
        expected = np.where(inside[..., None], (scene[index] + preview._TINT) / 2, scene[index])
        lines = np.abs(shown - expected).max(axis=-1) > 30
        assert 0.02 < lines[inside].mean() < 0.5 and lines[~inside].mean() < 0.02
    for shown in pictures[2:4]:
        assert shown.shape[0] == shown.shape[1] < size and shown.std() > 0
    finished = list(core("anycharv_core.media.video_read").read_frames(path))
    for shown, index in zip(pictures[4:], (0, 8), strict=True):
        assert np.abs(shown - finished[index]).mean() < 8
