"""Pictures, videos, masks and skeletons: read, written, drawn."""
