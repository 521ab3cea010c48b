"""`python -m anycharv_core` is `anycharv`."""

import sys

from .cli import main

sys.exit(main())
