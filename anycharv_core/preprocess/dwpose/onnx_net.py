"""ONNX networks: opened on first use, run in batches, on CUDA where onnxruntime has it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...device import usable_cores
from ...errors import UserError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

BATCH = 16  # pictures at once, where the network's batch is free

Shape = Sequence[int | str | None]
"""Sizes of one array; whatever is not a number is free."""

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_LOG = logging.getLogger(__name__)


class OnnxNet:
    """One network that takes a single batch of pictures [N, 3, H, W].

    Args:
        path: the .onnx file. That it exists is checked here; it is opened by the first use.
        role: what the file must be, as error messages call it.
        outputs: from (H, W) to the shape of every output, by which a foreign file is recognised.
        device: "cuda" or "cuda:1" for CUDA if onnxruntime has it and else the CPU; any other name is the
            CPU; None is "cuda" where torch finds such a device. The choice is logged once per process,
            as a warning where CUDA was asked for and is not to be had.

    Raises:
        UserError: here: no such file; on first use: not ONNX, or not the network that `role` names.
    """

    def __init__(
        self,
        path: str | Path,
        role: str,
        outputs: Callable[[int, int], Sequence[Shape]],
        device: str | None = None,
    ):
        self.path, self._role, self._outputs, self._device = Path(path), role, outputs, device
        if not self.path.is_file():
            raise UserError(
                f"There is no {role} at {path}; correct the path, or get the file with 'anycharv download pose'."
            )

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the pictures it takes."""
        height, width = self._session.get_inputs()[0].shape[2:]
        return width, height

    def run(self, pictures: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, ...]]:
        """float32 pictures [3, H, W] -> for each the network's outputs, without the batch axis.

        Pictures are taken as they are needed: BATCH of them are in memory, or 1 where the file fixes that.
        """
        session, source = self._session, iter(pictures)
        entry = session.get_inputs()[0]
        batch = 1 if entry.shape[0] == 1 else BATCH
        width, height = self.size
        while chunk := list(islice(source, batch)):
            with self._explained("run"):
                outputs = session.run(None, {entry.name: np.stack(chunk)})
            self._check([output.shape for output in outputs], self._outputs(height, width))
            yield from zip(*outputs, strict=True)

    @cached_property
    def _session(self) -> InferenceSession:
        # torch first: its own CUDA libraries are then loaded, and onnxruntime finds them.
        import torch

        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(
                "Finding poses needs onnxruntime: pip install onnxruntime (or onnxruntime-gpu for NVIDIA)."
            ) from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only: nobody can act on its warnings about the graph
        options.intra_op_num_threads = usable_cores()  # by itself it counts all there are
        wanted = self._device or ("cuda" if torch.cuda.is_available() else "cpu")
        providers = _providers(wanted, onnxruntime.get_available_providers())
        with self._explained("open"):
            session = onnxruntime.InferenceSession(str(self.path), options, providers=providers)
        # onnxruntime itself falls back to the CPU where its CUDA libraries do not load.
        _say_choice(wanted.startswith("cuda"), session.get_providers()[0] == _CUDA)
        entries, results = session.get_inputs(), session.get_outputs()
        self._check([entry.shape for entry in entries], [(1, 3, None, None)])
        height, width = entries[0].shape[2:]
        if not isinstance(height, int) or not isinstance(width, int):
            raise self._foreign("it does not fix the size of its pictures")
        self._check([result.shape for result in results], self._outputs(height, width))
        return session

    def _check(self, shapes: Sequence[Shape], expected: Sequence[Shape]) -> None:
        if len(shapes) != len(expected) or not all(map(_fits, shapes, expected)):
            found, wanted = (" and ".join(_named(s) for s in group) for group in (shapes, expected))
            raise self._foreign(f"it has {found} where {wanted} belongs")

    @contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # onnxruntime's own errors have no class in common
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"onnxruntime cannot {action} {self.path} ({reason}); if the file is damaged, delete it and "
                "run 'anycharv download pose'."
            ) from error

    def _foreign(self, why: str) -> UserError:
        return UserError(
            f"{self.path} is not the {self._role}, as {why}; give that file, or get it with "
            "'anycharv download pose'."
        )


def _fits(shape: Shape, expected: Shape) -> bool:
    sizes = zip(shape, expected, strict=False)
    return len(shape) == len(expected) and all(
        a == b for a, b in sizes if isinstance(a, int) and isinstance(b, int)
    )


def _named(shape: Shape) -> str:
    return f"[{', '.join(str(size) if isinstance(size, int) else '*' for size in shape)}]"


def _providers(device: str, available: Sequence[str]) -> list[str | tuple[str, dict[str, int]]]:
    kind, _, index = device.partition(":")
    if kind != "cuda" or _CUDA not in available:
        return [_CPU]
    return [(_CUDA, {"device_id": int(index or 0)}), _CPU]


@cache
def _say_choice(wanted: bool, given: bool) -> None:
    if wanted and not given:
        _LOG.warning(
            "Poses are found on the CPU, as onnxruntime cannot use CUDA here; install onnxruntime-gpu in place "
            "of onnxruntime to use the GPU."
        )
    else:
        _LOG.info("Poses are found on %s.", "CUDA" if given else "the CPU")
