"""Weights on disk: read, written, recognised, fetched."""
