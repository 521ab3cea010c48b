"""Trains the small detector, pose net and segmenter that are shipped for the puppet world."""
