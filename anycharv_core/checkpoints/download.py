"""`anycharv download`: the weights of other projects, from the Hugging Face hub into ComfyUI's model folders.

`SOURCES` is the one table of what is fetched and where it goes. `plan` asks the hub for names, sizes and hashes,
`fetch` brings the bytes, `by_hand` says the same for a machine without a network. The transfer is
huggingface_hub's `http_get`, not its `hf_hub_download`, whose partial files carry a random name since 2.0 and are
deleted when the process stops. It writes in steps of 10 MB, so that much may be sent twice. huggingface_hub is
imported where it is used: the command line starts without it.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from ..errors import UserError
from ..files import write_error

HUB = "https://huggingface.co"
LOCK = ".anycharv-download.lock"
COGVIDEOX = "zai-org/CogVideoX1.5-5B-I2V"  # what AnimateAnywhere is built on

Progress = Callable[[int, int], None]
Arrived = Callable[[int], None]


@dataclass(frozen=True)
class Source:
    """What one word of the command line stands for.

    folder: below the models folder; files keep the path they have in the repository under it.
    files: each a tuple of the names it may have there, best first; weights come before the config.json that makes
    a folder count as a model, so that half a model is never taken for one. extras: fetched where they exist.
    licence: as the repository states it, None where it was not known when this was written.
    """

    name: str
    repo: str
    folder: str
    files: tuple[tuple[str, ...], ...]
    extras: tuple[str, ...] = ()
    licence: str | None = None


def _diffusers(folder: str) -> tuple[tuple[str, ...], ...]:
    stem = f"{folder}diffusion_pytorch_model"
    return (f"{stem}.safetensors", f"{stem}.bin"), (f"{folder}config.json",)


# The VAE and the image encoder lie inside the model's folder, where the loader node and the command line find them
# without being named, and where the node does not list their weights as checkpoints.
SOURCES = (
    Source(
        "pose", "yzd-v/DWPose", "detection", (("yolox_l.onnx",), ("dw-ll_ucoco_384.onnx",)), licence="apache-2.0"
    ),
    Source(
        "sam2",
        "facebook/sam2-hiera-large",
        "sam2/sam2-hiera-large",
        (("model.safetensors",), ("config.json",)),
        ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
        "apache-2.0",
    ),
    Source(
        "anycharv",
        "harriswen/AnyCharV",
        "anycharv/AnyCharV",
        (*_diffusers("denoising_unet/"), *_diffusers("reference_unet/"), *_diffusers("pose_guider/")),
    ),
    Source("vae", "stabilityai/sd-vae-ft-mse", "anycharv/AnyCharV/vae", _diffusers(""), licence="mit"),
    Source(
        "clip",
        "lambdalabs/sd-image-variations-diffusers",
        "anycharv/AnyCharV",
        (("image_encoder/model.safetensors", "image_encoder/pytorch_model.bin"), ("image_encoder/config.json",)),
        licence="creativeml-openrail-m",
    ),
)
# Too large to come with "all": 11.6 GB, without the text encoder, which AnimateAnywhere alone needs. In the folder
# anycharv the loader node would list each of the files as a checkpoint.
APART = (
    Source(
        "cogvideox",
        COGVIDEOX,
        f"diffusers/{COGVIDEOX.rpartition('/')[2]}",
        (
            *((f"transformer/diffusion_pytorch_model-0000{n}-of-00003.safetensors",) for n in (1, 2, 3)),
            ("transformer/diffusion_pytorch_model.safetensors.index.json",),
            ("transformer/config.json",),
            *_diffusers("vae/"),
            ("scheduler/scheduler_config.json",),
        ),
    ),
)
NAMES = (*(source.name for source in (*SOURCES, *APART)), "all")


@dataclass(frozen=True)
class Item:
    """One file as the hub describes it.

    file: its path in the repository; path: its place on this machine. size: bytes. digest: hexadecimal; the
    sha256 of a large file, git's SHA-1 of one that the repository keeps in git itself. revision: the commit it is
    taken from. present: whether exactly this file is already at `path`.
    """

    repo: str
    file: str
    path: Path
    size: int
    digest: str
    revision: str
    licence: str | None
    present: bool

    @property
    def partial(self) -> Path:
        # The digest in the name keeps the beginning of one version from being continued with another's end.
        return self.path.with_name(f".{self.path.name}.{self.digest[:12]}.part")


def choose(names: Sequence[str]) -> list[Source]:
    """The sources that `names` (of `NAMES`) stand for, in the table's order."""
    chosen = [source for source in SOURCES if source.name in names or "all" in names]
    return chosen + [source for source in APART if source.name in names]


def by_hand(sources: Sequence[Source], to: Path) -> list[str]:
    """Lines that say which address belongs into which file. Nothing is looked up."""
    lines = []
    for source in sources:
        lines.append(_heading(source.name, source.repo, source.licence))
        for names in (*source.files, *((extra,) for extra in source.extras)):
            note = "  (if the repository has it)" if names[0] in source.extras else ""
            lines.append(f"  {HUB}/{source.repo}/resolve/main/{names[0]}{note}")
            lines.append(f"    to {to / source.folder / names[0]}")
            lines += [f"    or, if it is not there, {name} under its own name" for name in names[1:]]
    return lines


def plan(sources: Sequence[Source], to: Path, endpoint: str | None = None) -> list[Item]:
    """Asks the hub, once per repository, what `sources` are made of; fetches and writes nothing.

    endpoint: the hub's address; None = $HF_ENDPOINT or the public one.

    Raises:
        UserError: the hub cannot be reached or refuses, a repository lacks a file, or another file than the hub's
            already has one of the names.
    """
    return [item for source in sources for item in _plan_source(source, to, endpoint)]


def _plan_source(source: Source, to: Path, endpoint: str | None) -> Iterator[Item]:
    from huggingface_hub import HfApi

    with _explained(source.repo, endpoint):
        try:
            info = HfApi(endpoint=endpoint).model_info(source.repo, files_metadata=True, timeout=30)
            offered = {sibling.rfilename: sibling for sibling in info.siblings or ()}
            licences = [tag.partition(":")[2] for tag in info.tags or () if tag.startswith("license:")]
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            raise UserError(
                f"What the hub says of {source.repo} is not understood ({type(error).__name__}): fetch it "
                "without a mirror."
            ) from error
    wanted = [next((name for name in names if name in offered), None) for names in source.files]
    if None in wanted:
        raise UserError(
            f"{source.repo} has no {source.files[wanted.index(None)][0]} any more: look for it elsewhere and see "
            f"'anycharv download {source.name} --offline' for where it goes."
        )
    extras = [name for name in source.extras if name in offered]
    for file in (*filter(None, wanted), *extras):
        size, path, large = offered[file].size, to / source.folder / file, offered[file].lfs
        digest = large.sha256 if large else offered[file].blob_id
        if not _is_size(size) or not _is_hash(digest) or not _is_hash(info.sha):
            raise UserError(f"The hub lists {source.repo}/{file} without size or hash: fetch it without a mirror.")
        present = path.is_file() and path.stat().st_size == size and _digest(path, digest) == digest
        if path.exists() and not present:
            raise UserError(f"{path} is not the file that {source.repo} holds: move it away, then run again.")
        licence = licences[0] if licences else source.licence
        yield Item(source.repo, file, path, size, digest, info.sha, licence, present)


def _is_size(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**50


def _is_hash(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", value) is not None


def listing(items: Sequence[Item]) -> list[str]:
    """Lines for the user: every file with its size and place, by repository with its licence, and the sum."""
    lines, repo = [], None
    for item in items:
        if item.repo != repo:
            repo = item.repo
            lines.append(_heading(repo, f"commit {item.revision[:7]}", item.licence))
        state = "already there" if item.present else _megabytes(item.size)
        lines += [f"  {item.file}  {state}", f"    to {item.path}"]
    missing = [item.size for item in items if not item.present]
    lines.append(f"{len(missing)} of {len(items)} files to fetch, {_megabytes(sum(missing))}")
    return lines


def _silent(done: int, total: int) -> None:
    pass


def fetch(
    items: Sequence[Item], to: Path, progress: Progress = _silent, endpoint: str | None = None
) -> list[Path]:
    """Brings every item of `plan` that is not present; returns the new files.

    A file gets its name only when its size and hash are the hub's. What has arrived when the process is stopped
    stays beside it under a hidden name and is continued by the next call. progress(done, total) counts bytes.

    Raises:
        UserError: the folder or disk does not take the files, the hub refuses, the connection is lost, or what
            came is not what the hub promised (it is deleted then).
    """
    missing = [item for item in items if not item.present]
    total, done = sum(item.size for item in missing), 0
    if not missing:
        return []
    with _only_process(to):
        needed = total - sum(_size(item.partial) for item in missing)
        if needed > (free := shutil.disk_usage(to).free):
            raise UserError(
                f"{to} has {_megabytes(free)} free and {_megabytes(needed)} are needed: free some space, or "
                "choose another disk with --to."
            )
        for item in missing:
            _fetch_one(item, _after(done, total, progress), endpoint)
            done += item.size
    return [item.path for item in missing]


def _after(before: int, total: int, progress: Progress) -> Arrived:
    """Counts a file's bytes on from those of the files before it."""
    return lambda arrived: progress(before + arrived, total)


def _fetch_one(item: Item, arrived: Arrived, endpoint: str | None) -> None:
    partial = item.partial
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        for old in partial.parent.glob(f".{item.path.name}.*.part"):
            if old != partial or _size(old) > item.size:
                old.unlink()
        if not partial.exists() or _size(partial) < item.size:
            _receive(item, arrived, endpoint)
        arrived(item.size)
        found, size = _digest(partial, item.digest), _size(partial)
        if size != item.size or found != item.digest:
            partial.unlink()
            what = f"{size} bytes instead of {item.size}"
            if size == item.size:
                what = f"hash {found[:12]}... instead of {item.digest[:12]}..."
            raise UserError(f"{item.repo}/{item.file} came with {what} and was deleted: run the command again.")
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        # Not files.atomic_path: that deletes its temporary file, and this one is what the next run continues.
        partial.replace(item.path)
    except OSError as error:
        raise write_error(item.path, error) from error


def _receive(item: Item, arrived: Arrived, endpoint: str | None) -> None:
    """Appends to the partial file until the server has sent everything."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # HTTPError: the base class of its HTTP library
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(item.repo, item.file, revision=item.revision, endpoint=endpoint)
    # A byte range of a compressed answer would not be a byte range of the file.
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    with _explained(item.repo, endpoint):
        while True:
            start = _size(item.partial)
            try:
                with _Counted(item.partial, arrived) as file:
                    http_get(url, file, resume_size=start, headers=headers)
                return
            except BaseException as error:
                if not _size(item.partial):
                    item.partial.unlink(missing_ok=True)
                # http_get goes on by itself after some of these, but not after a reset connection.
                lost = isinstance(error, HTTPError) and not isinstance(error, HfHubHTTPError)
                if not lost or _size(item.partial) <= start:
                    raise


class _Counted(io.BufferedWriter):
    """A file opened for appending that tells its length after every write."""

    def __init__(self, path: Path, arrived: Arrived):
        super().__init__(io.FileIO(path, "ab"))
        self._arrived = arrived

    def write(self, data: Any, /) -> int:
        count = super().write(data)
        self._arrived(self.tell())
        return count


@contextmanager
def _only_process(to: Path) -> Iterator[None]:
    """Makes `to` and holds its lock: two runs appending to one partial file would spoil it."""
    from filelock import FileLock, Timeout

    try:
        to.mkdir(parents=True, exist_ok=True)
        if not os.access(to, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        with FileLock(to / LOCK, timeout=0):
            yield
    except Timeout:
        raise UserError(f"Another 'anycharv download' is writing to {to}: wait for it, then run again.") from None
    except OSError as error:
        raise write_error(to, error) from error


@contextmanager
def _explained(repo: str, endpoint: str | None) -> Iterator[None]:
    """Turns what huggingface_hub raises into one sentence; a disk's own errors pass."""
    from huggingface_hub import constants, errors

    hub = endpoint or constants.ENDPOINT
    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"{repo} is only for those who accept its licence: do so at {HUB}/{repo}, log in with 'hf auth login' "
            "or set HF_TOKEN, then run again."
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{hub} has no public repository {repo}: if it was made private, log in with 'hf auth login' or set "
            "HF_TOKEN; if it has moved, see 'anycharv download --offline' for where its files go."
        ) from None
    except errors.OfflineModeIsEnabled:
        raise UserError("HF_HUB_OFFLINE forbids the network: unset it, or do it by hand with --offline.") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        raise UserError(f"{hub} answered {status} for {repo}: wait a little, then run again.") from None
    except (errors.HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"The connection to {hub} failed ({reason}): run the command again to go on where it stopped, or add "
            "--offline to do it by hand."
        ) from None


def _digest(path: Path, like: str) -> str:
    """The file's hash of the kind of `like`: 64 digits sha256, 40 digits git's SHA-1 of a blob."""
    if len(like) == 64:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % _size(path), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _heading(name: str, detail: str, licence: str | None) -> str:
    return f"{name} ({detail}), licence: {licence or 'see its page'}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
