"""The embeddings of the empty text, once, for `init.prompt` of a recipe of AnimateAnywhere.

Takes the folder `text_encoder` of CogVideoX1.5-5B-I2V, a T5 of 9.5 GB, which nothing else here needs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from anycharv_core.checkpoints.state_dicts import save_safetensors
from anycharv_core.errors import UserError
from training import commands

TOKENS = 226  # of CogVideoX's text
END, PADDING = 1, 0  # in T5's vocabulary


def empty_text(text_encoder: Path, tokens: int = TOKENS) -> Tensor:
    """The T5's embeddings [tokens, width] of "", in the number format of its file.

    No tokenizer is needed: the text is its end, and padding, which CogVideoX does not mask. Raises UserError where
    the folder cannot be read.
    """
    from transformers import T5EncoderModel

    try:
        model = T5EncoderModel.from_pretrained(text_encoder, local_files_only=True, torch_dtype="auto")
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{text_encoder} can't be read as a T5 ({str(error).splitlines()[0][:200]}): give the folder "
            "text_encoder of CogVideoX1.5-5B-I2V."
        ) from None
    ids = torch.full((1, tokens), PADDING)
    ids[0, 0] = END
    with torch.inference_mode():
        embeds: Tensor = model(ids).last_hidden_state[0]
    return embeds.contiguous()


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code, see `commands.run`."""
    parser = commands.new_parser("prepare.prompt", __doc__)
    parser.add_argument("text_encoder", type=Path, help="its folder")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    args = parser.parse_args(argv)
    return commands.run("prepare.prompt", partial(_write, args.text_encoder, args.out), "stopped; run it again.")


def _write(text_encoder: Path, out: Path) -> None:
    save_safetensors({"embeds": empty_text(text_encoder)}, out, {"text": ""})


if __name__ == "__main__":
    sys.exit(main())
