"""The networks: denoising UNet, ReferenceNet, pose guider."""

from .config import MotionConfig, PoseGuiderConfig, UNetConfig
from .unet import DenoisingUNet, PoseGuider, ReferenceNet

__all__ = ["DenoisingUNet", "MotionConfig", "PoseGuider", "PoseGuiderConfig", "ReferenceNet", "UNetConfig"]
