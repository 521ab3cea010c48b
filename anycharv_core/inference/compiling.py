"""torch.compile, with its errors said in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ..errors import UserError

Returned = TypeVar("Returned")


def compiled(function: Callable[..., Returned]) -> Callable[..., Returned]:
    """`function` as torch.compile makes it, which raises UserError where that cannot be done."""
    from torch._dynamo.exc import TorchDynamoException  # a second and more to import

    made = torch.compile(function)

    def call(*given: Any, **settings: Any) -> Returned:
        try:
            return made(*given, **settings)
        except TorchDynamoException as error:
            reason = " ".join(str(error).split())
            raise UserError(f"torch.compile fails here ({reason[:200]}); leave --compile out.") from error

    return call
