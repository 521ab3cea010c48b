"""A real ComfyUI as its users start it, for tests: a server with this pack, a client, and prompts from workflows.

The server has folders of its own, so that nobody's models, outputs or settings are read or written.
"""

from __future__ import annotations

import atexit
import base64
import functools
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[1]
PACK = "ComfyUI-AnyCharV"
HOST = "127.0.0.1"
MUTED, BYPASSED = 2, 4
INTO_SUBGRAPH, OUT_OF_SUBGRAPH = -10, -20  # the ids of a subgraph's own ends
FRONTEND_ONLY = ("MarkdownNote", "Note", "Reroute")
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")
UPLOADS = ("image_upload", "video_upload", "audio_upload")


def _comfyui() -> Path | None:
    folder = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    return folder if (folder / "main.py").is_file() else None


def _python() -> Path:
    if os.environ.get("COMFYUI_PYTHON"):
        return Path(os.environ["COMFYUI_PYTHON"])
    own = (COMFYUI or Path()) / ".venv" / "bin" / "python"
    return own if own.exists() else Path(sys.executable)


COMFYUI = _comfyui()
PYTHON = _python()


class PromptRefused(Exception):
    """What POST /prompt answered instead of an id: `error`, and `nodes`, the errors by node id."""

    def __init__(self, answer: dict[str, Any]):
        super().__init__(json.dumps(answer)[:3000])
        self.error, self.nodes = answer["error"], answer["node_errors"]


class ExecutionFailed(Exception):
    """The execution_error or execution_interrupted of a prompt: `kind` and `data`."""

    def __init__(self, kind: str, data: dict[str, Any]):
        super().__init__(f"{kind} in {data.get('node_type')}: {data.get('exception_message')}")
        self.kind, self.data = kind, data


class Server:
    """ComfyUI on a free port of this machine, with the pack as its only custom node."""

    def __init__(self, *arguments: str):
        if COMFYUI is None:
            raise RuntimeError("no ComfyUI at COMFYUI_PATH or in the home folder")
        self._folder = tempfile.TemporaryDirectory(prefix="anycharv_comfyui_")
        self.base = Path(self._folder.name)
        self.log_file = self.base / "server.log"
        for name in ("custom_nodes", "input", "output", "models/anycharv", "models/vae"):
            (self.base / name).mkdir(parents=True)
        (self.base / "custom_nodes" / PACK).symlink_to(REPO, target_is_directory=True)
        with socket.socket() as free:
            free.bind((HOST, 0))
            self.port = free.getsockname()[1]
        command = [
            str(PYTHON),
            "main.py",
            "--listen",
            HOST,
            "--port",
            str(self.port),
            "--base-directory",
            str(self.base),
            "--database-url",
            "sqlite:///:memory:",
            "--disable-api-nodes",
            "--disable-auto-launch",
            *arguments,
        ]
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(command, cwd=COMFYUI, stdout=log, stderr=subprocess.STDOUT)
        self.client = secrets.token_hex(8)
        with ExitStack() as undo:
            undo.callback(self.stop)
            self._wait_until_ready()
            undo.pop_all()

    def _wait_until_ready(self, seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.check_alive()
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        raise RuntimeError(f"ComfyUI did not answer within {seconds:.0f} s:\n{self.log()[-3000:]}")

    def check_alive(self) -> None:
        """Raises RuntimeError with the end of the log where the server has died."""
        if self.process.poll() is not None:
            raise RuntimeError(f"ComfyUI ended with {self.process.returncode}:\n{self.log()[-3000:]}")

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._folder.cleanup()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://{HOST}:{self.port}{path}", timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, data: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"http://{HOST}:{self.port}{path}", json.dumps(data).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    @functools.cached_property
    def object_info(self) -> dict[str, Any]:
        return self.get("/object_info")

    def queue(self, prompt: dict[str, Any]) -> str:
        """The id of the queued prompt. Raises PromptRefused where ComfyUI finds it invalid."""
        try:
            return self.post("/prompt", {"prompt": prompt, "client_id": self.client})["prompt_id"]
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            raise PromptRefused(json.load(error)) from None

    def wait(self, prompt_id: str, seconds: float = 600) -> dict[str, Any]:
        """Outputs by node id. Raises ExecutionFailed where a node failed or the prompt was interrupted."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.check_alive()
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry:
                for kind, data in entry["status"]["messages"]:
                    if kind in ("execution_error", "execution_interrupted"):
                        raise ExecutionFailed(kind, data)
                return entry["outputs"]
            time.sleep(0.1)
        self.interrupt()
        raise TimeoutError(f"the prompt did not finish within {seconds:.0f} s:\n{self.log()[-2000:]}")

    def run(self, prompt: dict[str, Any], seconds: float = 600) -> dict[str, Any]:
        return self.wait(self.queue(prompt), seconds)

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def files(self, outputs: dict[str, Any], node: str) -> list[Path]:
        """The files that an output node saved."""
        return [
            self.base / saved["type"] / saved["subfolder"] / saved["filename"] for saved in outputs[node]["images"]
        ]

    def events(self) -> Iterator[dict[str, Any]]:
        """Messages {"type", "data"} about this client's prompts, as they come."""
        with socket.create_connection((HOST, self.port), timeout=120) as connection:
            key = base64.b64encode(secrets.token_bytes(16)).decode()
            connection.sendall(
                f"GET /ws?clientId={self.client} HTTP/1.1\r\nHost: {HOST}:{self.port}\r\nUpgrade: websocket\r\n"
                f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            stream = connection.makefile("rb")
            while stream.readline().strip():
                pass
            while True:
                opcode, size = stream.read(2)
                if size > 125:
                    size = int.from_bytes(stream.read(2 if size == 126 else 8), "big")
                payload = stream.read(size)
                # Previews are binary.
                if opcode & 15 == 1:
                    yield json.loads(payload)


@functools.cache
def shared_server() -> Server:
    """One server for all test files: it takes long to start."""
    server = Server("--cpu")
    atexit.register(server.stop)
    return server


def small_prompt(frames: int = 8, steps: int = 1, size: int = 64) -> dict[str, Any]:
    """The embedded model on a small puppet clip, saved as pictures."""
    workflow = {
        "1": ("AnyCharVLoader", {"checkpoint": "embedded", "dtype": "auto"}),
        "2": ("AnyCharVPuppetClip", {"seed": 3, "frames": frames, "size": size}),
        "3": (
            "AnyCharVReferenceEncode",
            {
                "reference_net": ["1", 1],
                "vae": ["1", 2],
                "clip_vision": ["1", 3],
                "image": ["2", 4],
                "mask": ["2", 5],
            },
        ),
        "4": ("AnyCharVPoseDraw", {"keypoints": ["2", 3], "width": 256, "height": 256}),
        "5": (
            "AnyCharVConditioning",
            {
                "model": ["1", 0],
                "reference": ["3", 0],
                "vae": ["1", 2],
                "scene": ["2", 1],
                "mask": ["2", 2],
                "pose": ["4", 0],
                "width": 0,
                "height": 0,
                "recipe": "default",
            },
        ),
        "6": (
            "AnyCharVSampler",
            {
                "model": ["1", 0],
                "positive": ["5", 0],
                "negative": ["5", 1],
                "latent": ["5", 2],
                "steps": steps,
                "cfg": 1.0,
                "seed": 42,
                "recipe": "default",
            },
        ),
        "7": ("VAEDecode", {"samples": ["6", 0], "vae": ["1", 2]}),
        "8": ("SaveImage", {"images": ["7", 0], "filename_prefix": "small"}),
    }
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in workflow.items()}


def unpacked(workflow: dict[str, Any]) -> dict[str, Any]:
    """The workflow with the nodes of its subgraphs (none within another) in place of the subgraphs' own nodes.

    A widget of a subgraph that nothing is wired into has the value that it has within.
    """
    subgraphs = {one["id"]: one for one in workflow.get("definitions", {}).get("subgraphs", [])}
    nodes, links, left = [], {link[0]: link for link in workflow["links"]}, {}
    for host in workflow["nodes"]:
        if (inner := subgraphs.get(host["type"])) is None:
            nodes.append(host)
            continue
        entered = {}
        for link in inner["links"]:
            key, origin, target = (f"{host['id']}:{link[end]}" for end in ("id", "origin_id", "target_id"))
            if link["target_id"] == OUT_OF_SUBGRAPH:
                left[host["id"], link["target_slot"]] = origin, link["origin_slot"]
            elif link["origin_id"] == INTO_SUBGRAPH:
                entered[key] = host["inputs"][link["origin_slot"]]["link"]
            else:
                links[key] = [key, origin, link["origin_slot"], target, link["target_slot"], link["type"]]
        for node in inner["nodes"]:
            inputs = [
                entry | {"link": entered.get(key, key) if entry["link"] is not None else None}
                for entry in node["inputs"]
                for key in [f"{host['id']}:{entry['link']}"]
            ]
            nodes.append(node | {"id": f"{host['id']}:{node['id']}", "inputs": inputs})
    for key, (link_id, origin, slot, *rest) in links.items():
        links[key] = [link_id, *left.get((origin, slot), (origin, slot)), *rest]
    return workflow | {"nodes": nodes, "links": list(links.values())}


def to_prompt(workflow: dict[str, Any], object_info: dict[str, Any], earlier: bool = False) -> dict[str, Any]:
    """A saved workflow as the API prompt that ComfyUI's page would queue.

    In a workflow saved `earlier`, widgets that came since have their defaults, as on the page. Raises ValueError
    where widget values are missing, which only there may be, or left over.
    """
    workflow = unpacked(workflow)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link for link in workflow["links"]}

    def source(link_id: int | None) -> list[Any] | None:
        if link_id is None:
            return None
        _, origin_id, slot, _, _, kind = links[link_id]
        origin = nodes[origin_id]
        if origin["mode"] == MUTED:
            return None
        if origin["mode"] == BYPASSED or origin["type"] == "Reroute":
            through = (entry for entry in origin["inputs"] if origin["type"] == "Reroute" or entry["type"] == kind)
            return source(next((entry["link"] for entry in through), None))
        return [str(origin_id), slot]

    prompt = {}
    for node in nodes.values():
        if node["type"] in FRONTEND_ONLY or node["mode"] in (MUTED, BYPASSED):
            continue
        info = object_info[node["type"]]
        specs = {
            name: info["input"][section][name]
            for section, names in info["input_order"].items()
            if section != "hidden"
            for name in names
        }
        values = iter(node.get("widgets_values") or [])
        inputs = _widget_values(specs, values, node["type"], earlier)
        if left := list(values):
            raise ValueError(f"{node['type']} has widget values too many: {left}")
        for entry in node["inputs"]:
            if (origin := source(entry["link"])) is not None:
                inputs[entry["name"]] = origin
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def _widget_values(
    specs: dict[str, Any], values: Iterator[Any], where: str, earlier: bool, prefix: str = ""
) -> dict[str, Any]:
    inputs = {}
    for name, (kind, *rest) in specs.items():
        options = rest[0] if rest else {}
        if not (isinstance(kind, list) or kind in WIDGETS) or options.get("forceInput"):
            continue
        value = next(values, options.get("default") if earlier else None)
        if value is None:
            # Pages that knew fewer widgets saved fewer values; hidden ones come last.
            if options.get("hidden"):
                continue
            raise ValueError(f"{where} has no value for {prefix}{name}")
        inputs[prefix + name] = value
        if kind == "COMFY_DYNAMICCOMBO_V3":
            chosen = next(option["inputs"] for option in options["options"] if option["key"] == value)
            inner = chosen.get("required", {}) | chosen.get("optional", {})
            inputs |= _widget_values(inner, values, where, earlier, f"{prefix}{name}.")
        # The page puts a widget without an input of its own behind these.
        seed = kind == "INT" and name in ("seed", "noise_seed")
        if options.get("control_after_generate", seed) or any(options.get(upload) for upload in UPLOADS):
            next(values, None)
    return inputs
