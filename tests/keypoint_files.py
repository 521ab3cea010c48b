"""POSE_KEYPOINT frames as tests write them down, in and out of the core's packed poses."""

from anycharv_core.media.pose import parse_poses
from anycharv_core.media.pose import read_poses as read_packed
from anycharv_core.media.pose import write_poses as write_packed
from anycharv_core.media.pose_drawing import draw_poses


def clean_pose(frame):
    """A frame in canonical form."""
    return next(parse_poses(frame).keypoints())


def people_of(frame):
    """The people of a frame, float64 [n, POINTS, 3]."""
    return parse_poses(frame).people[0]


def draw_pose(frame):
    return next(draw_poses(parse_poses(frame)))


def scale_pose(frame, width, height):
    return next(parse_poses(frame).scaled(width, height).keypoints())


def read_frames(path, canvas=None):
    return list(read_packed(path, canvas).keypoints())


def write_frames(path, frames):
    write_packed(path, parse_poses(list(frames)))
