"""Feature networks of transformers from a folder, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..errors import UserError
from ..preprocess.sam2 import quiet_transformers


def load_pretrained(kind: Any, folder: Path, named: str, device: str) -> Any:
    """The transformers class `kind` with the weights in `folder`, ready for use; nothing is fetched.

    Raises UserError, calling what is needed `named`, where the folder holds anything else.
    """
    unusable = UserError(f"{folder} is not a folder of {named} that can be read; give a complete one.")
    with quiet_transformers():
        try:
            network, report = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        except (OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError, SafetensorError) as error:
            raise unusable from error
    # transformers fills gaps with random weights, whose features mean nothing.
    if set(report["missing_keys"]) & {name for name, _ in network.named_parameters()} or report["mismatched_keys"]:
        raise unusable
    return network.to(device).train(False)
