"""What a hub or a mirror says of a repository, damaged: the plan is made, or one sentence says why not."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from random import Random

import pytest
from bounds import bounded
from mutate import dumped, odd

from anycharv_core.checkpoints.download import choose, listing, plan
from anycharv_core.errors import UserError

SIBLINGS = [
    {
        "rfilename": name,
        "size": 100,
        "blobId": "0" * 40,
        "lfs": {"sha256": "0" * 64, "size": 100, "pointerSize": 134},
    }
    for name in ("yolox_l.onnx", "dw-ll_ucoco_384.onnx", "README.md")
]
ANSWER = {"id": "yzd-v/DWPose", "sha": "0" * 40, "private": False, "tags": ["license:mit"], "siblings": SIBLINGS}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[bytes], str]]:
    """What the hub on the loopback interface says to whatever it is asked, and its address."""
    from huggingface_hub import close_session, constants

    said: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(said[0])))
            self.end_headers()
            self.wfile.write(said[0])

        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    close_session()
    yield said, f"http://127.0.0.1:{server.server_port}"
    close_session()
    server.shutdown()
    server.server_close()


def test_damaged_answers_are_understood_or_refused(tmp_path: Path, answers: tuple[list[bytes], str]) -> None:
    said, endpoint = answers
    said[:] = [json.dumps(ANSWER).encode()]
    assert len(listing(plan(choose(["pose"]), tmp_path, endpoint))) == 6
    for number in range(120):
        random = Random(f"hub {number}")
        said[:] = [dumped(odd(ANSWER, random)).encode() if number % 10 else random.randbytes(50)]
        try:
            with bounded():
                listing(plan(choose(["pose"]), tmp_path, endpoint))
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000, (number, said[0][:300])
        assert not list(tmp_path.iterdir())
