"""AnyCharV Replace Character: a video in, a video out."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from comfy_api.latest import InputImpl
from comfy_pack import core, execute, load


def test_replace_character_keeps_times_and_audio() -> None:
    video = core("anycharv_core.media.video_write")
    _, scene, mask, keypoints, reference, cut, _ = execute("AnyCharVPuppetClip", seed=5, frames=8, size=96)
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
    parts = dict(zip(("model", "reference_net", "vae", "clip_vision"), load(), strict=True))
    (result,) = execute(
        "AnyCharVReplaceCharacter",
        **parts,
        video=InputImpl.VideoFromFile(str(clip)),
        reference=reference,
        mask=mask,
        pose=keypoints,
        reference_mask=cut,
        steps=1,
        cfg=1.0,
        seed=1,
        width=0,
        height=0,
        recipe="default",
    )
    path = result.get_stream_source()
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
