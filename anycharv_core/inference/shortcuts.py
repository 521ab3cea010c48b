"""Ways to sample faster that change the result a little. docs/performance.md says what each gains and costs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError
from ..media.frames import FrameStore
from ..models.schedule import TRAIN_STEPS, NoiseSchedule
from ..models.solvers import DDIM, DPM, SOLVERS, timesteps_of

SHALLOW = 1  # output blocks that are computed at every step, whatever is cached
HELD, MOST = 2**30, 2**34  # bytes of deep features that stay on the device, and that are kept in all


@dataclass(frozen=True)
class Shortcuts:
    """Which of them are taken; none by default.

    guidance_interval: the lowest and highest noise level, timestep / 1000, at which there is guidance; at others
    only the conditional rows are computed (Kynkäänniemi et al., "Applying Guidance in a Limited Interval in
    Diffusion Models", section 3). deep_cache: at every n-th step the whole UNet is computed; at those between, its
    deepest blocks' features are the last ones that were (Ma et al., "DeepCache", section 3.3). solver: of
    `SOLVERS`. Raises UserError for what is none of that.
    """

    guidance_interval: tuple[float, float] = (0.0, 1.0)
    deep_cache: int = 1
    solver: str = DDIM

    def __post_init__(self) -> None:
        low, high = self.guidance_interval
        if not 0 <= low <= high <= 1:
            raise UserError(
                f"The guidance interval is {low:g} to {high:g}; give two noise levels from 0 (clean) to 1 (noise "
                "alone), the lower one first."
            )
        if self.deep_cache < 1:
            raise UserError(
                f"The deep cache is {self.deep_cache}; give every how many steps it is renewed, from 1."
            )
        if self.solver not in SOLVERS:
            raise UserError(f"There is no solver '{self.solver}'; use one of {', '.join(map(repr, SOLVERS))}.")

    @property
    def parts(self) -> int:
        """How many parts of a frame are kept, see `Latents`."""
        return 2 if self.solver == DDIM else 3

    def guides(self, t: int) -> bool:
        """Whether there is guidance at this timestep."""
        low, high = self.guidance_interval
        return low <= t / TRAIN_STEPS <= high

    def whole(self, steps: int, schedule: NoiseSchedule) -> list[bool]:
        """For each step whether the whole UNet is computed, because it is the cache's turn, or because there was
        guidance at the step before and now is not, or the other way round."""
        guided = [self.guides(t) for t, _ in timesteps_of(self.solver, steps, schedule)]
        return [step % self.deep_cache == 0 or guided[step] != guided[step - 1] for step in range(steps)]


NONE = Shortcuts()
# The best combination that loses less than 0.3 dB on PuppetBench, and the share of the steps it takes.
FAST = Shortcuts(guidance_interval=(0.2, 0.8), deep_cache=2, solver=DPM)
FAST_STEPS = 1 / 3


def fast_steps(steps: int) -> int:
    """How many steps `FAST` takes in place of so many."""
    return max(1, round(FAST_STEPS * steps))


def check_shortcuts(recorded: bool, shortcuts: Shortcuts) -> None:
    """Raises UserError where a recipe, which is `recorded` or not, takes none of them."""
    if recorded and shortcuts != NONE:
        raise UserError(
            "The recipe 'official' computes all as the release does: leave fast modes out, or use 'default'."
        )


def check_cache(title: str, shortcuts: Shortcuts) -> None:
    """Raises UserError where a deep cache is asked for and the system, called `title`, has no UNet."""
    if shortcuts.deep_cache > 1:
        raise UserError(
            f"A deep cache belongs to a UNet, which {title} does not have: leave --deep-cache and --fast out; "
            "--guidance-interval and --solver work."
        )


class DeepCache:
    """The deep features of every window, as the last step that computed them left them.

    The first windows' stay on the device, up to HELD bytes, and others' go to a file, up to MOST bytes; those that
    come after are not kept: their windows are computed whole at every step.
    """

    def __init__(self, store: FrameStore) -> None:
        """store: an empty one."""
        self._store = store
        self._slots: dict[tuple[int, ...], int] = {}
        self._held: dict[int, Tensor] = {}
        self._like = torch.empty(0)

    def take(self, window: tuple[int, ...]) -> Tensor | None:
        """Deep features [N, C, h, w] of these frames, or None where they were not kept."""
        slot = self._slots.get(window)
        if slot is None or slot in self._held:
            return None if slot is None else self._held[slot]
        flat = torch.from_numpy(self._store.take([slot])[0]).view(self._like.dtype)
        return flat[: self._like.numel()].view(self._like.shape).to(self._like.device)

    def keep(self, window: tuple[int, ...], features: Tensor) -> None:
        """Every window must have as many frames as the others, and those of a step as many rows."""
        slot = self._slots.get(window, len(self._slots))
        size = 2 * len(window) * features[0].nbytes  # whether there is guidance at this step or not
        if (slot + 1) * size > MOST:
            return
        self._slots[window] = slot
        self._like = torch.empty_like(features)
        if (slot + 1) * size <= HELD:
            self._held[slot] = features
        else:
            flat = features.contiguous().flatten().view(torch.uint8).cpu()
            self._store.put(slot, torch.nn.functional.pad(flat, (0, size - len(flat))).numpy())
