"""Turns a folder of videos into shards: training/prepare/dataset.py."""

import sys

from training.prepare.dataset import main

if __name__ == "__main__":
    sys.exit(main())
