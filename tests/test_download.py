"""`anycharv download` against a hub on the loopback interface, with everything that goes wrong on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_anywhere
from filelock import FileLock
from hub_server import COMMIT, Hub, serve
from waiting import PATIENCE, until

from anycharv_core import UserError, cli
from anycharv_core.checkpoints import download, places
from anycharv_core.checkpoints.cogvideox import join_base, without_base
from anycharv_core.checkpoints.download import SOURCES, Item, by_hand, choose, fetch, plan
from anycharv_core.checkpoints.places import models_folder
from anycharv_core.jobs.doctor import NETWORKS, find_models
from anycharv_core.systems import read_checkpoint

STEP = 1024  # bytes that the tests' transfers are written in
POSE, DETECTOR = "dw-ll_ucoco_384.onnx", "yolox_l.onnx"
DWPOSE, SAM2 = "yzd-v/DWPose", "facebook/sam2-hiera-large"


def noise(seed: int, size: int) -> bytes:
    return bytes((seed * 31 + i * 7 + i // 251) % 256 for i in range(size))


def files_of(tiny_model: Path) -> dict[str, dict[str, bytes]]:
    """Every repository of the table: noise, but for the parts of a real tiny model."""
    repos: dict[str, dict[str, bytes]] = {source.repo: {"README.md": b"not wanted"} for source in SOURCES}
    repos[DWPOSE] |= {DETECTOR: noise(1, 20 * STEP), POSE: noise(2, 3 * STEP + 5)}
    repos[SAM2] |= {"model.safetensors": noise(3, 5000), "config.json": b"{}", "processor_config.json": b"[]"}
    places = {part: ("harriswen/AnyCharV", f"{part}/") for part in NETWORKS}
    places["vae"] = ("stabilityai/sd-vae-ft-mse", "")
    places["image_encoder"] = ("lambdalabs/sd-image-variations-diffusers", "image_encoder/")
    for part, (repo, folder) in places.items():
        for path in (tiny_model / part).iterdir():
            repos[repo][folder + path.name] = path.read_bytes()
    return repos


@pytest.fixture
def hub(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import close_session, constants

    for name in ("HF_TOKEN", "ANYCHARV_MODELS", "COMFYUI_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", STEP)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between huggingface_hub's attempts
    made = Hub(files_of(tiny_model))
    server = serve(made)
    close_session()
    yield made
    close_session()
    server.shutdown()
    server.server_close()


def get(hub: Hub, to: Path, *names: str) -> list[Path]:
    items = plan(choose(names), to, hub.endpoint)
    return fetch(items, to, endpoint=hub.endpoint)


def below(folder: Path) -> set[str]:
    """The files below `folder` but for the lock, which filelock may or may not leave behind."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return set(found) - {download.LOCK}


def test_everything_goes_where_the_rest_of_the_pack_looks_for_it(hub: Hub, tmp_path: Path) -> None:
    get(hub, tmp_path, "all")
    assert below(tmp_path / "detection") == {DETECTOR, POSE}
    assert (tmp_path / "detection" / POSE).read_bytes() == hub.repos[DWPOSE][POSE]
    assert below(tmp_path / "sam2") == {
        f"sam2-hiera-large/{name}" for name in ("model.safetensors", "config.json", "processor_config.json")
    }
    model = tmp_path / "anycharv" / "AnyCharV"
    assert find_models(tmp_path / "anycharv") == [model]
    assert set(read_checkpoint(str(model)).weights) == {*NETWORKS, "vae", "image_encoder"}
    assert not any("README" in name for name in below(tmp_path))


def test_the_base_of_animateanywhere_is_fetched_by_name_without_its_text_encoder(hub: Hub, tmp_path: Path) -> None:
    model, made = tiny_anywhere.checkpoint(), tmp_path / "made"
    tiny_anywhere.write_base(model, made)
    (made / "scheduler").mkdir()
    (made / "scheduler" / "scheduler_config.json").write_text("{}")
    wanted = below(made)
    own = {file: (made / file).read_bytes() for file in wanted}
    hub.repos[download.COGVIDEOX] = own | {"text_encoder/model.safetensors": b"large", "README.md": b"not wanted"}
    get(hub, tmp_path, "cogvideox")
    base = tmp_path / "diffusers" / "CogVideoX1.5-5B-I2V"
    assert below(base) == wanted
    assert not hub.transfers("text_encoder/model.safetensors")
    checkpoint = without_base(model)
    join_base(checkpoint, base, "model")
    assert {*checkpoint.weights} == {*model.weights}
    get(hub, tmp_path / "other", "all")
    assert not (tmp_path / "other" / "diffusers").exists()


def test_a_model_folder_counts_as_one_only_when_it_is_whole(hub: Hub, tmp_path: Path) -> None:
    hub.instead["pose_guider/diffusion_pytorch_model.safetensors"] = b"other"
    with pytest.raises(UserError, match="pose_guider"):
        get(hub, tmp_path, "anycharv")
    assert find_models(tmp_path / "anycharv") == []


def test_names_that_a_repository_may_have_instead(hub: Hub, tmp_path: Path) -> None:
    files = hub.repos["lambdalabs/sd-image-variations-diffusers"]
    files["image_encoder/pytorch_model.bin"] = files.pop("image_encoder/model.safetensors")
    hub.licence = None
    items = plan(choose(["clip"]), tmp_path, hub.endpoint)
    assert [item.file for item in items] == ["image_encoder/pytorch_model.bin", "image_encoder/config.json"]
    assert items[0].licence == "creativeml-openrail-m"
    assert (items[0].size, items[0].revision, items[0].present) == (
        len(files["image_encoder/pytorch_model.bin"]),
        COMMIT,
        False,
    )


def test_a_second_run_fetches_nothing(hub: Hub, tmp_path: Path) -> None:
    first = get(hub, tmp_path, "pose", "sam2")
    assert len(first) == 5
    hub.requests.clear()
    assert get(hub, tmp_path, "pose", "sam2") == []
    assert [request.path for request in hub.requests] == [f"/api/models/{DWPOSE}", f"/api/models/{SAM2}"]


def test_planning_writes_nothing_and_asks_for_metadata_only(hub: Hub, tmp_path: Path) -> None:
    items = plan(choose(["all"]), tmp_path / "models", hub.endpoint)
    assert not (tmp_path / "models").exists()
    assert len(hub.requests) == len(SOURCES)
    assert all(request.path.startswith("/api/models/") for request in hub.requests)
    assert {item.file: item.size for item in items}[POSE] == 3 * STEP + 5
    lines = download.listing(items)
    assert any(POSE in line and "0.0 MB" in line for line in lines)
    assert f"    to {tmp_path / 'models' / 'detection' / POSE}" in lines
    assert lines[0] == f"{DWPOSE} (commit {COMMIT[:7]}), licence: apache-2.0"
    assert lines[-1].startswith(f"{len(items)} of {len(items)} files to fetch")


@pytest.mark.parametrize("fault", ["cut", "reset"])
def test_a_lost_connection_is_continued_without_sending_bytes_twice(hub: Hub, tmp_path: Path, fault: str) -> None:
    getattr(hub, fault)[DETECTOR] = 7 * STEP + 100
    get(hub, tmp_path, "pose")
    (first, sent), (second, rest) = hub.transfers(DETECTOR)
    assert (first, sent) == (0, 7 * STEP + 100)
    # A reset may take with it what was still in the socket; after a cut, all but the last step has been written.
    assert second % STEP == 0 and 0 < second <= 7 * STEP and (fault == "reset" or second == 7 * STEP)
    assert second + rest == 20 * STEP
    assert (tmp_path / "detection" / DETECTOR).read_bytes() == hub.repos[DWPOSE][DETECTOR]


def test_what_arrived_before_the_process_stopped_is_kept(hub: Hub, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done >= 6 * STEP:
            raise KeyboardInterrupt

    items = plan(choose(["pose"]), tmp_path, hub.endpoint)
    with pytest.raises(KeyboardInterrupt):
        fetch(items, tmp_path, stop, hub.endpoint)
    assert not items[0].path.exists()
    assert items[0].partial.read_bytes() == hub.repos[DWPOSE][DETECTOR][: 6 * STEP]
    hub.requests.clear()
    get(hub, tmp_path, "pose")
    assert hub.transfers(DETECTOR) == [(6 * STEP, 14 * STEP)]
    assert below(tmp_path) == {f"detection/{DETECTOR}", f"detection/{POSE}"}


def test_a_server_without_ranges_starts_again(hub: Hub, tmp_path: Path) -> None:
    hub.no_range, hub.cut[DETECTOR] = True, 5 * STEP
    get(hub, tmp_path, "pose")
    assert hub.transfers(DETECTOR) == [(0, 5 * STEP), (0, 20 * STEP)]
    assert (tmp_path / "detection" / DETECTOR).read_bytes() == hub.repos[DWPOSE][DETECTOR]


def test_a_connection_that_never_holds_is_given_up(hub: Hub, tmp_path: Path) -> None:
    hub.cut[DETECTOR], hub.always = 10, True
    with pytest.raises(UserError, match="run the command again to go on where it stopped"):
        get(hub, tmp_path, "pose")
    assert len(hub.transfers(DETECTOR)) < 20


def test_a_partial_file_of_an_older_version_is_not_continued(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "detection"
    folder.mkdir()
    old = folder / f".{DETECTOR}.{'a' * 12}.part"
    old.write_bytes(b"old")
    get(hub, tmp_path, "pose")
    assert not old.exists()
    assert hub.transfers(DETECTOR) == [(0, 20 * STEP)]


def test_a_spoilt_or_finished_partial_file(hub: Hub, tmp_path: Path) -> None:
    items = plan(choose(["pose"]), tmp_path, hub.endpoint)
    items[0].partial.parent.mkdir()
    items[0].partial.write_bytes(b"\0" * 20 * STEP)
    with pytest.raises(UserError, match="hash"):
        fetch(items, tmp_path, endpoint=hub.endpoint)
    assert not items[0].partial.exists()
    items[0].partial.write_bytes(hub.repos[DWPOSE][DETECTOR])
    items[1].partial.write_bytes(hub.repos[DWPOSE][POSE] + b"more")
    fetch(items, tmp_path, endpoint=hub.endpoint)
    assert hub.transfers(DETECTOR) == [] and hub.transfers(POSE) == [(0, 3 * STEP + 5)]


@pytest.mark.parametrize("repo, file", [(DWPOSE, DETECTOR), (SAM2, "config.json")])
def test_other_bytes_than_promised_are_deleted(hub: Hub, tmp_path: Path, repo: str, file: str) -> None:
    name = next(source.name for source in SOURCES if source.repo == repo)
    right = hub.repos[repo][file]
    for wrong, what in ((bytes(len(right)), "hash .* instead of"), (right + b"x", f"{len(right) + 1} bytes")):
        hub.instead[file] = wrong
        with pytest.raises(UserError, match=f"{file} came with {what}.* was deleted"):
            get(hub, tmp_path, name)
        assert not [path for path in below(tmp_path) if path.endswith((file, ".part"))]


def test_another_file_of_the_name_is_left_alone(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "detection" / POSE
    path.parent.mkdir()
    path.write_bytes(bytes(3 * STEP + 5))
    with pytest.raises(UserError, match=f"{POSE} is not the file that {DWPOSE} holds: move it away"):
        plan(choose(["pose"]), tmp_path, hub.endpoint)
    assert path.read_bytes() == bytes(3 * STEP + 5)


def test_a_token_stays_with_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_made_up")
    get(hub, tmp_path, "pose")
    tokens = {(request.host, request.token) for request in hub.requests}
    assert tokens == {("127.0.0.1", "Bearer hf_made_up"), ("localhost", None)}


def test_progress_counts_bytes_over_all_files(hub: Hub, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    hub.cut[DETECTOR] = 4 * STEP
    items = plan(choose(["pose"]), tmp_path, hub.endpoint)
    fetch(items, tmp_path, lambda done, total: seen.append((done, total)), hub.endpoint)
    total = 23 * STEP + 5
    assert {each for _, each in seen} == {total}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[0][0] == STEP and seen[-1][0] == total


def test_refusals_in_one_sentence(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub.gated.add(DWPOSE)
    with pytest.raises(UserError, match=rf"licence: do so at https://huggingface.co/{DWPOSE}, log in with"):
        get(hub, tmp_path, "pose")
    files = hub.repos.pop(SAM2)
    with pytest.raises(UserError, match=f"has no public repository {SAM2}"):
        get(hub, tmp_path, "sam2")
    hub.repos[SAM2] = {"README.md": b""}
    with pytest.raises(UserError, match=f"{SAM2} has no model.safetensors any more"):
        get(hub, tmp_path, "sam2")
    hub.repos[SAM2], hub.status = files, 418
    with pytest.raises(UserError, match=f"answered 418 for {SAM2}"):
        get(hub, tmp_path, "sam2")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids the network"):
        get(hub, tmp_path, "sam2")
    assert below(tmp_path) == set()


def test_no_server(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"connection to http://127\.0\.0\.1:9 failed"):
        plan(choose(["pose"]), tmp_path, "http://127.0.0.1:9")


def test_places_that_take_no_file(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "detection").touch()
    for to, message in ((tmp_path / "file" / "models", "Cannot write"), (tmp_path, f"Cannot write .*{DETECTOR}")):
        items = plan(choose(["pose"]), to, hub.endpoint)
        hub.requests.clear()
        with pytest.raises(UserError, match=message):
            fetch(items, to, endpoint=hub.endpoint)
        assert hub.requests == []
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="you may not write there"):
        fetch(items, tmp_path, endpoint=hub.endpoint)


def test_a_full_disk(hub: Hub, tmp_path: Path) -> None:
    item = plan(choose(["pose"]), tmp_path, hub.endpoint)[0]
    huge = Item(**vars(item) | {"size": 2**62})
    with pytest.raises(UserError, match="free some space"):
        fetch([huge], tmp_path, endpoint=hub.endpoint)
    if not Path("/dev/full").exists():
        pytest.skip("needs Linux: no /dev/full")
    item.partial.parent.mkdir()
    item.partial.symlink_to("/dev/full")
    with pytest.raises(UserError, match=f"{DETECTOR}: the disk is full"):
        fetch([item], tmp_path, endpoint=hub.endpoint)


def test_two_processes_at_once(hub: Hub, tmp_path: Path) -> None:
    with FileLock(tmp_path / download.LOCK), pytest.raises(UserError, match="Another 'anycharv download'"):
        get(hub, tmp_path, "pose")


def test_the_models_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANYCHARV_MODELS", "COMFYUI_PATH"):
        monkeypatch.delenv(name, raising=False)
    home, comfyui = tmp_path / "home", tmp_path / "comfyui"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    with pytest.raises(UserError, match="with --to DIR, or set COMFYUI_PATH"):
        models_folder()
    usual, pack = home / "comfy" / "ComfyUI" / "models", tmp_path / "other" / "custom_nodes" / "pack"
    for folder in (usual, comfyui / "models", tmp_path / "other" / "models", tmp_path / "mine"):
        folder.mkdir(parents=True)
    assert models_folder() == usual
    monkeypatch.setattr(places, "__file__", str(pack / "anycharv_core" / "checkpoints" / "places.py"))
    assert models_folder() == tmp_path / "other" / "models"
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui))
    assert models_folder() == comfyui / "models"
    monkeypatch.setenv("ANYCHARV_MODELS", str(tmp_path / "mine" / "weights"))
    assert models_folder() == comfyui / "models"  # what is put beside that folder would not be looked for
    monkeypatch.setenv("ANYCHARV_MODELS", str(tmp_path / "mine" / "anycharv"))
    assert models_folder() == tmp_path / "mine"
    assert models_folder(tmp_path / "new") == tmp_path / "new"


def test_by_hand_names_the_places_that_fetch_uses(hub: Hub, tmp_path: Path) -> None:
    lines = by_hand(choose(["all"]), tmp_path)
    assert hub.requests == []
    for item in plan(choose(["all"]), tmp_path, hub.endpoint):
        address = f"  https://huggingface.co/{item.repo}/resolve/main/{item.file}"
        index = next(i for i, line in enumerate(lines) if line.split("  (")[0] == address)
        assert lines[index + 1] == f"    to {item.path}"


def command(hub: Hub | None, *args: str) -> tuple[list[str], dict[str, str]]:
    environment = os.environ | ({"HF_ENDPOINT": hub.endpoint} if hub else {"HF_ENDPOINT": "http://127.0.0.1:9"})
    return [sys.executable, "-m", "anycharv_core", "download", *args], environment


def test_the_command(hub: Hub, tmp_path: Path) -> None:
    to = str(tmp_path / "models")

    def run(*args: str) -> tuple[int, str, str]:
        line, environment = command(hub, *args, "--to", to)
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=PATIENCE)
        return done.returncode, done.stdout, done.stderr

    code, out, _ = run("pose", "--dry-run")
    assert code == 0 and "2 of 2 files to fetch" in out and not Path(to).exists()
    code, out, err = run("pose")
    assert (code, err) == (0, "") and out.endswith(f"{Path(to, 'detection', POSE)}\n")
    code, out, _ = run("pose")
    assert code == 0 and out.count("already there") == 2 and out.endswith("Nothing to do.\n")
    hub.status = 503
    code, _, err = run("sam2")
    assert code == 2 and err.count("\n") == 1 and err.startswith("anycharv: ") and "answered 503" in err


def test_ctrl_c_keeps_what_has_arrived(hub: Hub, tmp_path: Path) -> None:
    hub.repos[DWPOSE][DETECTOR] = big = noise(5, 2**17) * 400  # 50 MB, written in steps of 10
    hub.cut[DETECTOR], hub.always = 30 * 2**20, True  # so that the transfer cannot end before the signal
    line, environment = command(hub, "pose", "--to", str(tmp_path))
    with subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        until(lambda: any(p.stat().st_size for p in tmp_path.rglob("*.part")), process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and b"go on where it stopped" in err
    (partial,) = tmp_path.rglob("*.part")
    assert 0 < partial.stat().st_size < len(big) and big.startswith(partial.read_bytes())


def test_offline_needs_neither_network_nor_huggingface_hub(tmp_path: Path) -> None:
    code = """
import json, socket, sys
from anycharv_core import cli
before = sorted({"huggingface_hub", "torch", "filelock"} & {*sys.modules})
sys.modules["huggingface_hub"] = socket.socket = socket.getaddrinfo = None
code = cli.main(["download", "sam2", "--offline", "--to", sys.argv[1]])
print(json.dumps([before, code]))
"""
    line = [sys.executable, "-c", code, str(tmp_path / "models")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE)
    assert json.loads(done.stdout.splitlines()[-1]) == [[], 0]
    assert f"to {tmp_path / 'models' / 'sam2' / 'sam2-hiera-large' / 'config.json'}" in done.stdout
    assert not (tmp_path / "models").exists()


def test_a_word_that_is_no_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["download", "poses"]) == 2
    assert "invalid choice: 'poses'" in capsys.readouterr().err
