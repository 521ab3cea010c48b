"""AnyCharV: any character, given as one picture, in any video."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    from .inference.pipeline import Output, Pipeline

__version__ = "0.1.0"
__all__ = ["Output", "Pipeline", "UserError", "__version__"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, which `anycharv --help` and ComfyUI's start need not wait for.
    if name in ("Output", "Pipeline"):
        from .inference import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
