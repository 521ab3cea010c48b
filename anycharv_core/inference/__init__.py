"""A character and a video, as tensors, in; the finished video out."""
