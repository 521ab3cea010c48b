"""From videos to what is trained on: shards, and the pairs of self-boosting."""
