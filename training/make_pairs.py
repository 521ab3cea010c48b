"""Makes the pairs of the self-boosting phases: training/prepare/pairs.py."""

import sys

from training.prepare.pairs import main

if __name__ == "__main__":
    sys.exit(main())
