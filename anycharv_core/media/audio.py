"""The sound of a video, carried into another one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
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
        aac = av.Codec("aac", "w")
        rate = stream.rate if stream.rate in (aac.audio_rates or ()) else 48000
        layout = "mono" if stream.channels == 1 else "stereo"
        output = self._output.add_stream("aac", rate=rate, layout=layout, bit_rate=192_000)
        self._encoded[stream.index] = output
        kind, container = stream.codec_context.name, self._output.format.name
        self.note = (
            f"The audio of {self._path} is {kind}, which {container} cannot hold, "
            f"so it was re-encoded to AAC ({layout}, {rate} Hz)."
        )


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
