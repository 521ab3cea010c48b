"""Results cached by the content they were made from, so that the same work is never done twice."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ..files import file_digest, intact, owned_folder, write_error

# Raised when what a stage writes changes, so that what older versions left is not taken for it.
FORMAT = 2

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """$ANYCHARV_CACHE, or ~/.cache/anycharv. It may be deleted at any time."""
    return Path(os.environ.get("ANYCHARV_CACHE") or "~/.cache/anycharv").expanduser()


def content_key(*parts: object) -> str:
    """Hex digest of `parts`: a file by its content, bytes as they are, anything else by its repr.

    Raises UserError where a file cannot be read.
    """
    digest = hashlib.sha256(str(FORMAT).encode())
    for part in parts:
        if isinstance(part, Path):
            part = file_digest(part)
        content = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:32]


def weights_key(path: Path) -> tuple[object, ...]:
    """What tells one weights file or folder from another: names, sizes and times.

    Not the content, whose gigabyte takes longer to hash than the second run it would save.
    """
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return tuple((file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files)


def cached(stage: str, key: str, make: Callable[[Path], None]) -> Path:
    """The folder that `make` filled for `key`, now or in an earlier run.

    What was damaged since is made again, with a warning in the log.

    Raises UserError where the cache cannot be written, and what `make` raises; then nothing is cached.
    """
    folder = cache_folder() / f"{stage}-{key}"
    if intact(folder):
        return folder
    try:
        if folder.exists():
            _log.warning("%s is damaged, so what it held is made again.", folder)
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
    with owned_folder(folder) as temporary:
        make(temporary)
    return folder
