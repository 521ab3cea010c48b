"""Whole-body skeletons by DWPose: a person detector, and the points of each person found."""

from .estimator import DWPose, pack_people

__all__ = ["DWPose", "pack_people"]
