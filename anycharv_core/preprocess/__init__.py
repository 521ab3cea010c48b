"""From a plain driving video to what `generate` takes: shots, skeletons, people and their masks."""
