"""OpenCV, or in its place what says how to install it: ComfyUI then still has the nodes to say it on."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .errors import UserError

MISSING: str | None = None
"""Why OpenCV is of no use and what to do, or None where it is there."""

if TYPE_CHECKING:
    import cv2 as cv2
else:
    try:
        import cv2
    except ImportError as error:
        MISSING = (
            f"OpenCV does not load ({error}): install it with '{sys.executable} -m pip install "
            "opencv-python-headless' and start again."
        )

        class _Missing:
            def __getattr__(self, name: str) -> Any:
                raise UserError(MISSING)

        cv2 = _Missing()
