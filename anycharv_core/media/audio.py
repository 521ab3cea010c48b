"""The sound of a video, carried into another one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer, OutputContainer

from ..errors import UserError
from .decode import open_input


class AudioCopy:
    """Carries the audio of a video into another file, a little at a time. note: what wasn't copied, or None."""

    def __init__(
        self,
        path: Path | str | None,
        source: InputContainer | None,
        streams: Sequence[av.AudioStream],
        output: OutputContainer,
    ) -> None:
        self.note: str | None = None
        self._path = path
        self._output = output
        self._copied: dict[int, av.AudioStream] = {}
        self._encoded: dict[int, av.AudioStream] = {}
        if source and len(streams) < len(source.streams.audio):
            self.note = f"Part of the audio of {path} is in an unknown format and was left out."
        for stream in streams:
            assert path is not None
            if _fits(output.format.name, path, stream.index):
                self._copied[stream.index] = _add_copy(output, stream)
            else:
                self._encode_instead(stream)
        self._times: dict[int, int] = {}
        self._packets = source.demux(tuple(streams)) if source and streams else iter(())
        self._waiting = self._next()

    def copy_until(self, end: Fraction | None) -> None:
        """Write the audio up to `end` in seconds, or all that is left."""
        while self._waiting and (end is None or _time(self._waiting) * self._waiting.time_base <= end):
            packet, self._waiting = self._waiting, self._next()
            index = packet.stream.index
            if index in self._copied:
                # Without a duration the last packet would lie past the end of its track.
                time = _time(packet)
                packet.duration = packet.duration or time - self._times.get(index, time - 1)
                self._times[index] = time
                packet.stream = self._copied[index]
                self._output.mux(packet)
                continue
            # A damaged packet leaves a gap; it must not cost a video that is nearly finished.
            frames: list[av.AudioFrame] = []
            with suppress(av.FFmpegError):
                frames = packet.decode()
            for frame in frames:
                self._output.mux(self._encoded[index].encode(self._rising(index, frame)))
        if self._waiting is None:
            for output in self._encoded.values():
                self._output.mux(output.encode())
            self._encoded.clear()

    def _rising(self, index: int, frame: av.AudioFrame) -> av.AudioFrame:
        last = self._times.get(index)
        if last is None:
            frame.pts = frame.pts or 0
        elif frame.pts is None or frame.pts <= last:
            assert frame.time_base is not None
            frame.pts = last + round(Fraction(frame.samples, frame.sample_rate) / frame.time_base)
        self._times[index] = frame.pts
        return frame

    def _next(self) -> av.Packet[av.AudioStream] | None:
        with _audio_errors(self._path):
            # Empty packets only tell a decoder that its stream has ended.
            return next((packet for packet in self._packets if packet.size), None)

    def _encode_instead(self, stream: av.AudioStream) -> None:
        output = self._encoded[stream.index] = _add_aac(self._output, stream)
        kind, container = stream.codec_context.name, self._output.format.name
        self.note = (
            f"The audio of {self._path} is {kind}, which {container} cannot hold, "
            f"so it was re-encoded to AAC ({output.layout.name}, {output.rate} Hz)."
        )


def cut_audio(path: Path | str, start: Fraction, end: Fraction | None, out: Path) -> bool:
    """Writes the first audio stream of a video between two times in seconds, None = its end, to an mp4 of sound
    alone that begins at `start`, as AAC.

    Returns whether there was any. Raises UserError where the audio cannot be read.
    """
    with open_input(path, "audio") as source, ExitStack() as stack:
        stream = next((each for each in source.streams.audio if each.codec_context is not None), None)
        if stream is None:
            return False
        output = stack.enter_context(av.open(f"file:{out}", "w", format="mp4"))
        encoder = _add_aac(output, stream)
        rate, layout = encoder.rate, encoder.layout.name
        first, last = round(start * rate), None if end is None else round(end * rate)
        written = False
        for at, samples in _samples(path, source, stream, encoder):
            if last is not None and at >= last:
                break
            kept = samples[:, max(0, first - at) : None if last is None else last - at]
            if kept.size:
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(kept), "fltp", layout)
                frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
                frame.pts = max(0, at - first)
                output.mux(encoder.encode(frame))
                written = True
        if written:
            output.mux(encoder.encode())
    return written


def _samples(
    path: Path | str, source: InputContainer, stream: av.AudioStream, like: av.AudioStream
) -> Iterator[tuple[int, np.ndarray]]:
    """The samples of a stream, float32 [channels, n], in the rate and channels of `like`, and how many came before
    them since time 0."""
    resampler = av.AudioResampler("fltp", like.layout, like.rate)
    packets = source.demux(stream)
    following: int | None = None
    while True:
        with _audio_errors(path):
            packet = next(packets, None)
        if packet is None:
            return
        # As in `AudioCopy`, a damaged packet leaves a gap.
        frames: list[av.AudioFrame] = []
        with suppress(av.FFmpegError):
            frames = packet.decode()
        for frame in itertools.chain.from_iterable(map(resampler.resample, frames)):
            at = following or 0
            if frame.pts is not None and frame.time_base is not None:
                at = round(frame.pts * frame.time_base * like.rate)
            # Encoders take no samples that go back in time.
            at = at if following is None else max(at, following)
            yield at, frame.to_ndarray()
            following = at + frame.samples


class _Sink:
    """A file that forgets what is written to it."""

    def __init__(self) -> None:
        self._at = self._end = 0

    def write(self, data: bytes) -> int:
        self._at += len(data)
        self._end = max(self._end, self._at)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._end)[whence]
        return self._at

    def tell(self) -> int:
        return self._at


def _fits(container: str, path: Path | str, index: int) -> bool:
    """Try to copy one audio stream into a container, because some faults only show when the file is closed."""
    with open_input(path, "audio") as source, ExitStack() as stack:
        output = av.open(_Sink(), "w", format=container, options={"strict": "experimental"})
        stack.callback(abandon, output)
        stream = source.streams[index]
        assert isinstance(stream, av.AudioStream)
        try:
            copy = _add_copy(output, stream)
            packets = source.demux(stream)
            while True:
                with _audio_errors(path):
                    packet = next((packet for packet in packets if packet.size), None)
                if packet is None:
                    break
                packet.stream = copy
                output.mux(packet)
            output.close()
        except UserError:
            raise
        except (ValueError, av.FFmpegError):
            return False
    return True


def _add_aac(output: OutputContainer, stream: av.AudioStream) -> av.AudioStream:
    """A stream of AAC in `output` that is as near to `stream` as AAC in stereo can be."""
    rate = stream.rate if stream.rate in (av.Codec("aac", "w").audio_rates or ()) else 48000
    layout = "mono" if stream.channels == 1 else "stereo"
    return output.add_stream("aac", rate=rate, layout=layout, bit_rate=192_000)


def _add_copy(output: OutputContainer, stream: av.AudioStream) -> av.AudioStream:
    copy = output.add_stream_from_template(stream)
    # Some files give only a number of channels; containers want to know which ones they are.
    if stream.channels <= 2:
        copy.codec_context.layout = "mono" if stream.channels == 1 else "stereo"
    return copy


def _time(packet: av.Packet) -> int:
    return (packet.pts if packet.dts is None else packet.dts) or 0


def abandon(container: OutputContainer) -> None:
    # Closing also writes what an unfinished file lacks; on a full disk that fails, and the file is
    # about to be deleted anyway.
    with suppress(av.FFmpegError):
        container.close()


@contextmanager
def _audio_errors(path: Path | str | None) -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        raise UserError(
            f"The audio of {path} cannot be read ({error.strerror}); give an undamaged copy or no audio."
        ) from error
