"""The trainer: `python -m training.train CONFIG --out OUT`, and the commands that prepare its data."""

import sys
from importlib.util import find_spec

# The extra "train" of pyproject.toml, by the names that are imported.
_missing = [name for name in ("accelerate", "filelock", "peft", "tqdm", "yaml") if find_spec(name) is None]
if _missing:
    _sentence = f"it lacks {', '.join(_missing)}: run pip install -e '.[train]' on top of requirements.txt."
    if sys.argv[0] != "-m":  # else Python is on its way to a command
        raise ImportError(f"training can't be imported, {_sentence}")
    print(f"training: {_sentence}", file=sys.stderr)
    raise SystemExit(2)
