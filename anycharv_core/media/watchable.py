"""An mp4 that players show while it is written."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import av
from av.packet import Packet
from av.video.stream import VideoStream

from .audio import abandon

# Fragments of a second, each with an index of its own, on the disk as soon as they are whole.
_OPTIONS = {
    "movflags": "frag_keyframe+empty_moov+default_base_moof",
    "frag_duration": "1000000",
    "flush_packets": "1",
}


class Watchable:
    """The pictures of another mp4 as far as they have come, without its sound. It is removed in the end."""

    def __init__(self, path: Path, stream: VideoStream) -> None:
        """stream: that of the other mp4, whose encoder is open."""
        self._path = path
        self._container = av.open(f"file:{path}", "w", format="mp4", container_options=_OPTIONS)
        self._stream = self._container.add_stream_from_template(stream)

    def mux(self, packet: Packet) -> None:
        """Adds a packet of the other stream, after it was added there. Raises av.FFmpegError on a full disk."""
        packet.stream = self._stream
        self._container.mux(packet)

    def __enter__(self) -> Watchable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        abandon(self._container)
        self._path.unlink(missing_ok=True)
