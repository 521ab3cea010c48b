"""The picture of a place, through which AnimateAnywhere lets a character walk."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..foreign import read_picture
from ..preprocess.dwpose import DWPose
from ..preprocess.models import pose_files

_log = logging.getLogger(__name__)


def read_background(path: Path, pose_model: str | None, device: str | None) -> np.ndarray:
    """The picture uint8 [H, W, 3].

    A person in it would stay there, which is said in the log. pose_model: whose detector looks for one, see
    `models.pose_files`; where none is named, and none is found or can be run, nobody looks. Raises UserError where
    the picture or a named detector cannot be read.
    """
    picture = np.array(read_picture(path, "RGB"))
    try:
        people = DWPose(*pose_files(pose_model), device).detect(picture[None])[0]
    except UserError:
        if pose_model is not None:
            raise
        return picture
    if len(people):
        _log.warning("Somebody seems to be in %s, and would stay there: give a place with nobody in it.", path)
    return picture
