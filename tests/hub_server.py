"""A Hugging Face hub on the loopback interface: as much of its protocol as a download needs, and its faults.

Large files are redirected to "another host" (localhost instead of 127.0.0.1), as the real hub does, and byte
ranges are honoured there.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".onnx", ".bin")


@dataclass
class Request:
    """start: first byte asked for, of what `sent` bytes of the file went out."""

    method: str
    path: str
    host: str
    token: str | None
    start: int = 0
    sent: int = 0


@dataclass
class Hub:
    """repos: files by repository. The faults name files; cut and reset give the bytes after which the connection
    ends, once or always."""

    repos: dict[str, dict[str, bytes]]
    licence: str | None = "apache-2.0"
    cut: dict[str, int] = field(default_factory=dict)
    reset: dict[str, int] = field(default_factory=dict)
    always: bool = False
    instead: dict[str, bytes] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    no_range: bool = False
    status: int | None = None
    requests: list[Request] = field(default_factory=list)
    port: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def transfers(self, file: str) -> list[tuple[int, int]]:
        """(first byte, bytes sent) of every answer that carried bytes of `file`."""
        return [(r.start, r.sent) for r in self.requests if r.path.endswith(f"/{file}") and r.sent]


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def shutdown_request(self, request: Any) -> None:
        self.close_request(request)  # without the orderly goodbye that would come before a reset


def serve(hub: Hub) -> ThreadingHTTPServer:
    """Starts serving in a thread; the caller ends it with shutdown() and server_close()."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            token, host = self.headers["Authorization"], self.headers["Host"].partition(":")[0]
            request = Request(self.command, path, host, token)
            hub.requests.append(request)
            if hub.status:
                return self.answer(hub.status)
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(/revision/.+)?", path):
                return self.info(found[1])
            found = re.fullmatch(r"/(cdn/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            if not found:
                return self.answer(400)
            repo, file = found[2], found[4]
            if repo in hub.gated:
                return self.answer(401, {"X-Error-Code": "GatedRepo"})
            if file not in hub.repos.get(repo, ()):
                return self.answer(404, {"X-Error-Code": "EntryNotFound"})
            if not found[1] and file.endswith(LARGE):
                linked = {"X-Linked-Size": str(len(hub.repos[repo][file])), "X-Repo-Commit": COMMIT}
                location = f"http://localhost:{hub.port}/cdn{self.path}"
                return self.answer(302, linked | {"Location": location})
            self.send_file(request, file, hub.instead.get(file, hub.repos[repo][file]))

        def info(self, repo: str) -> None:
            if repo not in hub.repos:
                return self.answer(401, {"X-Error-Code": "RepoNotFound"})
            siblings = []
            for name, data in hub.repos[repo].items():
                blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                siblings.append({"rfilename": name, "size": len(data), "blobId": blob})
                if name.endswith(LARGE):
                    digest = hashlib.sha256(data).hexdigest()
                    siblings[-1]["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
            tags = [f"license:{hub.licence}"] if hub.licence else []
            found = {"id": repo, "sha": COMMIT, "private": False, "tags": tags, "siblings": siblings}
            self.answer(200, {"Content-Type": "application/json"}, json.dumps(found).encode())

        def send_file(self, request: Request, file: str, data: bytes) -> None:
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
            request.start = int(asked[1]) if asked and not hub.no_range else 0
            body = data[request.start :]
            headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
            if request.start:
                headers["Content-Range"] = f"bytes {request.start}-{len(data) - 1}/{len(data)}"
            self.send_response(206 if request.start else 200)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            stop = hub.cut.get(file, hub.reset.get(file))
            part = body if stop is None else body[:stop]
            self.wfile.write(part)
            self.wfile.flush()
            request.sent = len(part)
            if stop is None:
                return
            if file in hub.reset:  # a linger time of zero makes the close a reset
                threading.Event().wait(0.2)  # until the other side has read
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if not hub.always:
                hub.cut.pop(file, None)
                hub.reset.pop(file, None)
            self.close_connection = True

        def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
            self.send_response(status)
            for name, value in ((headers or {}) | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    server = Server(("127.0.0.1", 0), Handler)
    hub.port = server.server_port
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server
