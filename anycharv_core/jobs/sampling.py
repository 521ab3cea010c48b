"""How a job samples: steps, guidance, and what makes it faster."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..inference.pipeline import Pipeline, check_steps
from ..inference.shortcuts import FAST, NONE, Shortcuts, fast_steps


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """None = the model's own setting, or with `fast` that of `FAST`, or else of `NONE`.

    guidance_interval, deep_cache, solver: as in `Shortcuts`; fast: `FAST`, and fewer steps unless they are given.
    """

    steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 42
    fast: bool = False
    guidance_interval: tuple[float, float] | None = None
    deep_cache: int | None = None
    solver: str | None = None

    @property
    def shortcuts(self) -> Shortcuts:
        """Raises UserError for options that make no sense."""
        own = {name: getattr(self, name) for name in ("guidance_interval", "deep_cache", "solver")}
        given: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
        return replace(FAST if self.fast else NONE, **given)

    def sampling(self, pipe: Pipeline) -> tuple[int, float]:
        """Steps and guidance scale for the model of `pipe`. Raises UserError for steps that cannot be taken."""
        steps, guidance_scale = pipe.system.sampling(pipe.settings, self.steps, self.guidance_scale)
        if self.fast and self.steps is None:
            steps = fast_steps(steps)
        check_steps(steps)
        return steps, guidance_scale
