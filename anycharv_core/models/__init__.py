"""The networks: denoising UNet, ReferenceNet, pose guider, object guider."""

from .config import BlendingConfig, MotionConfig, ObjectGuiderConfig, PoseGuiderConfig, UNetConfig
from .guiders import ObjectGuider, PoseGuider
from .patch_codec import PatchCodec
from .unet import DenoisingUNet, ReferenceNet

__all__ = [
    "BlendingConfig",
    "DenoisingUNet",
    "MotionConfig",
    "ObjectGuider",
    "ObjectGuiderConfig",
    "PatchCodec",
    "PoseGuider",
    "PoseGuiderConfig",
    "ReferenceNet",
    "UNetConfig",
]
