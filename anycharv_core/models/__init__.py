"""The networks: denoising UNet, ReferenceNet, pose guider."""

from .config import MotionConfig, PoseGuiderConfig, UNetConfig
from .patch_codec import PatchCodec
from .unet import DenoisingUNet, PoseGuider, ReferenceNet

__all__ = [
    "DenoisingUNet",
    "MotionConfig",
    "PatchCodec",
    "PoseGuider",
    "PoseGuiderConfig",
    "ReferenceNet",
    "UNetConfig",
]
