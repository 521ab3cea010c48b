"""Animate Anyone 2's ablation (Table 4, and what else the paper gives reasons for), on puppets that touch things.

Every variant is training/configs/tiny_animate2.yaml but for what it names, trained through all phases; those of
one seed share the codec. A variant is given what its networks read. The choices between two tasks, of
bench/interaction.py, need no sharp pictures: they are what models of this size can be told apart by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anycharv_core.bench.puppets import Method, of_model
from anycharv_core.bench.tasks import INTERACTION, Task
from anycharv_core.inference.backend import TorchBackend
from anycharv_core.inference.pipeline import Pipeline
from anycharv_core.media.frames import Reopened, Source
from anycharv_core.puppets.interaction import Interaction
from training.study import Study, share_phases, slug, train_phases, write_variant

CONFIG = Path(__file__).parent / "configs" / "tiny_animate2.yaml"
SHORT = ("phases.frames.validate.every=0", "phases.clips.validate.every=0")
SHARED, OWN = ("codec", "decoder"), ("frames", "clips")
OURS, MERGED, SKELETON = "full", "objects in the input", "skeleton only"
METRICS = (
    *("character PSNR", "character SSIM", "object PSNR", "scene PSNR", "order choice", "object choice"),
    *("leak", "growth", "joint error"),
)
COMPARED = ("character PSNR", "character SSIM", "order choice", "object choice")
HYPOTHESIS = (
    f"Character PSNR and SSIM fall in the paper's order, {OURS} > {MERGED} > {SKELETON} (Table 4), which is "
    "upheld where the difference to the paper's recipe is below zero with its whole interval. The order choice of "
    f"the paper's recipe lies above 0.5 with its whole interval, and that of '{SKELETON}' is 0.5 exactly; its "
    f"object choice is at least that of '{MERGED}' and lies above 0.5, which is that of 'no objects'. The leak "
    "falls from the exact mask over blocks to the box; without scaling the growth is less; of clips "
    "of over 16 frames, without a carried frame the joint error is more."
)

Config = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """What differs from the paper's recipe. changes: as `--set` takes them; strip: what the config's networks and
    phases are left without; ssim: the paper's."""

    changes: tuple[str, ...] = ()
    strip: Callable[[Config], None] | None = None
    ssim: float | None = None


def _without_branch(config: Config) -> None:
    del config["networks"]["object_guider"]
    config["networks"]["denoising_unet"]["object_blending"] = None
    for name in OWN:
        phase = config["phases"][name]
        phase["train"] = [part for part in phase["train"] if part != "object_guider"]


def _without_depth(config: Config) -> None:
    config["networks"]["pose_guider"]["depth_modulation"] = False


VARIANTS = {
    OURS: Variant(ssim=0.794),
    MERGED: Variant(strip=_without_branch, ssim=0.789),
    SKELETON: Variant(("data.conditions=[objects]",), _without_depth, ssim=0.769),
    "no objects": Variant(("data.conditions=[depth]",), _without_branch),
    "exact mask": Variant(("data.mask=fine", "data.augment=false", "settings.blocks=[1000, 1000]")),
    "box": Variant(("data.rows=[1, 1]", "data.columns=[1, 1]", "settings.blocks=[1, 1]")),
    "no scaling": Variant(("data.scale=null",)),
    "no carried frame": Variant(("phases.clips.data.carried=0",)),
}


def study() -> Study:
    ssims = {name: variant.ssim for name, variant in VARIANTS.items()}
    what = CONFIG, SHORT, INTERACTION, 128, METRICS, COMPARED, ssims, "paper's SSIM (higher is better)"
    return Study(HYPOTHESIS, *what, train_variant, method)


def train_variant(name: str, seed: int, out: Path, config: Path = CONFIG, changed: Sequence[str] = ()) -> Path:
    """The model of a variant, trained where it is not there yet. Raises SystemExit where the trainer gives up."""
    place, changes = out / f"seed_{seed}", [f"seed={seed}", *SHORT, *changed]
    first = place / slug(OURS)
    train_phases(config, first, changes, SHARED)
    folder = place / slug(name)
    share_phases(first, folder, SHARED)
    own = write_variant(config, folder.with_suffix(".yaml"), VARIANTS[name].strip)
    train_phases(own, folder, [*changes, *VARIANTS[name].changes], OWN)
    return folder / OWN[-1] / "model.safetensors"


class Merging(Pipeline):
    """Shows the networks objects as a part of the scene that is to stay, as `objective.encode_batch` does where
    they have no branch for them. held: masks of them uint8 [F, H, W]."""

    held: np.ndarray

    def given_masks(self, mask: Source) -> Source:
        coarse = super().given_masks(mask)
        kept = Reopened(
            lambda: (
                np.where(held > 127, np.uint8(0), each) for each, held in zip(coarse, self.held, strict=True)
            ),
            coarse.count,
        )
        return Source(mask.name, kept, None)


def method(name: str, model: Path) -> Method:
    pipe = (Merging if name == MERGED else Pipeline)(TorchBackend.from_pretrained(model))
    run = of_model(pipe, pipe.settings["steps"], pipe.settings["guidance_scale"])

    def merged(task: Task) -> np.ndarray:
        assert isinstance(pipe, Merging) and isinstance(task.given, Interaction)
        pipe.held = task.given.objects
        return run(task)

    return merged if name == MERGED else run
