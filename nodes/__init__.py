"""The ComfyUI nodes: a file per family, with its schemas and what they run."""

from __future__ import annotations

import logging
from pathlib import Path

import folder_paths
from comfy_api.latest import ComfyExtension, io

from ..anycharv_core.errors import UserError
from ..anycharv_core.opencv import MISSING
from .animate import AnyCharVAnimateCharacter
from .composite import AnyCharVComposite
from .conditioning import AnyCharVConditioning
from .depth import AnyCharVStructuredDepth
from .dwpose import MODELS as POSE_MODELS
from .dwpose import AnyCharVDWPose
from .loader import MODELS, AnyCharVLoader
from .masks import AnyCharVBoxMask, AnyCharVMaskAugment
from .people import AnyCharVFindPeople
from .pose import AnyCharVPoseDraw, AnyCharVPoseRetarget
from .prepare import AnyCharVLoadPrepared, AnyCharVPrepareVideo
from .puppets import AnyCharVPuppetClip
from .reference import AnyCharVReferenceEncode
from .replace import AnyCharVReplaceCharacter
from .sampling import AnyCharVSampler
from .segment import MODELS as SEGMENTERS
from .segment import AnyCharVSegment
from .windows import AnyCharVLongVideo

# In front of the sentence ComfyUI shows the exception's class, and where that comes from, which is a path here.
UserError.__module__, UserError.__qualname__ = "builtins", "AnyCharV"


class AnyCharVExtension(ComfyExtension):
    async def on_load(self) -> None:
        if MISSING:
            logging.error("AnyCharV: %s", MISSING)
        for name in (MODELS, POSE_MODELS, SEGMENTERS):
            folder_paths.add_model_folder_path(name, str(Path(folder_paths.models_dir) / name))
        # Where Save Model writes to, as ComfyUI does for kinds of its own.
        folder_paths.add_model_folder_path(MODELS, str(Path(folder_paths.get_output_directory()) / MODELS))

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            AnyCharVLoader,
            AnyCharVReferenceEncode,
            AnyCharVBoxMask,
            AnyCharVMaskAugment,
            AnyCharVPoseDraw,
            AnyCharVConditioning,
            AnyCharVSampler,
            AnyCharVLongVideo,
            AnyCharVComposite,
            AnyCharVReplaceCharacter,
            AnyCharVPuppetClip,
            AnyCharVDWPose,
            AnyCharVFindPeople,
            AnyCharVSegment,
            AnyCharVPoseRetarget,
            AnyCharVPrepareVideo,
            AnyCharVLoadPrepared,
            AnyCharVAnimateCharacter,
            AnyCharVStructuredDepth,
        ]
