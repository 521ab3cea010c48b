"""Animate Anyone 2's ablation (Table 4, and what else the paper gives reasons for), on puppets that touch things.

From scratch a small model draws blurs after a quarter of an hour, and is blind to depth. So every variant goes on
from the embedded model with training/configs/embedded_animate2.yaml, shorter and changed as the variant asks, and
is shown what it was trained with. The choices between two tasks, of bench/interaction.py, need no sharp pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anycharv_core.bench.puppets import Method, of_model
from anycharv_core.bench.tasks import INTERACTION, Task
from anycharv_core.checkpoints.single_file import write_single
from anycharv_core.inference.backend import DEPTH, OBJECTS, TorchBackend
from anycharv_core.inference.pipeline import Pipeline
from anycharv_core.media.frames import Reopened, Source
from anycharv_core.puppets.interaction import Interaction
from anycharv_core.systems import read_unet_checkpoint
from training.study import Study, share_cache, share_phases, slug, train_phases

CONFIG = Path(__file__).parent / "configs" / "embedded_animate2.yaml"
START = "embedded-animate2"
FIRST, LAST = "frames", "clips"
SHORT = (
    "init.additions=null",
    *(f"phases.{FIRST}.{change}" for change in ("steps=100", "batch=5", "lr=4.0e-4", "data.clips=700")),
    *(f"phases.{LAST}.{change}" for change in ("steps=24", "batch=1", "lr=1.0e-4", "data.clips=24")),
    *(f"phases.{phase}.validate.every=0" for phase in (FIRST, LAST)),
)
OURS, MERGED, SKELETON, UNCARRIED = "full", "objects in the input", "skeleton only", "no carried frame"
METRICS = (
    *("character PSNR", "character SSIM", "object PSNR", "scene PSNR", "order choice", "object choice"),
    *("leak", "growth", "joint error"),
)
COMPARED = ("character PSNR", "character SSIM", "object PSNR", "scene PSNR", "leak", "growth", "joint error")
HYPOTHESIS = (
    f"Character PSNR and SSIM fall in the paper's order, {OURS} > {MERGED} > {SKELETON} (Table 4), which is "
    "upheld where the difference to the paper's recipe is below zero with its whole interval. The order choice of "
    f"the paper's recipe lies above 0.5 with its whole interval, and that of '{SKELETON}' is 0.5 exactly; its "
    f"object choice is at least that of '{MERGED}' and lies above 0.5, which is that of 'no objects'. The leak "
    "falls from the exact mask over blocks to the box; without scaling the growth is less; of clips "
    "of over 16 frames, without a carried frame the joint error is more."
)


@dataclass(frozen=True)
class Variant:
    """What differs from the paper's recipe. changes: as `--set` takes them; without: which of `backend.EXTRAS` the
    model is not shown; ssim: the paper's."""

    changes: tuple[str, ...] = ()
    without: str | None = None
    ssim: float | None = None


VARIANTS = {
    OURS: Variant(ssim=0.794),
    MERGED: Variant(("objective.object_input=true",), OBJECTS, ssim=0.789),
    SKELETON: Variant(("data.conditions=[objects]",), DEPTH, ssim=0.769),
    "no objects": Variant(("data.conditions=[depth]",), OBJECTS),
    "exact mask": Variant(("data.mask=fine", "data.augment=false", "settings.blocks=[1000, 1000]")),
    "box": Variant(("data.rows=[1, 1]", "data.columns=[1, 1]", "settings.blocks=[1, 1]")),
    "no scaling": Variant(("data.scale=null",)),
    UNCARRIED: Variant((f"phases.{LAST}.data.carried=0",)),
}


def study() -> Study:
    """Animate Anyone 2's ablation."""
    ssims = {name: variant.ssim for name, variant in VARIANTS.items()}
    what = CONFIG, SHORT, INTERACTION, 128, METRICS, COMPARED, ssims, "paper's SSIM (higher is better)"
    return Study(HYPOTHESIS, *what, train_variant, method)


def train_variant(name: str, seed: int, out: Path, config: Path = CONFIG, changed: Sequence[str] = ()) -> Path:
    """The model of a variant, trained where it is not there yet. Raises SystemExit where the trainer gives up."""
    variant, place = VARIANTS[name], out / f"seed_{seed}"
    start = START if variant.without != DEPTH else str(write_without_depth(out / "without_depth.safetensors"))
    changes = [f"seed={seed}", *SHORT, f"init.model={start}", *changed]
    folder, first = (place / slug(each) for each in (name, OURS))
    if name == UNCARRIED:  # begins as the paper's recipe does
        share_cache(out, first)
        train_phases(config, first, changes, [FIRST])
        share_phases(first, folder, [FIRST])
    share_cache(out, folder)
    train_phases(config, folder, [*changes, *variant.changes], [FIRST, LAST])
    return folder / LAST / "model.safetensors"


def write_without_depth(target: Path) -> Path:
    """The model that all go on from, less what reads depth, which is written to `target` where it is not there."""
    if not target.exists():
        checkpoint = read_unet_checkpoint(START)
        checkpoint.configs["pose_guider"]["depth_modulation"] = False
        weights = checkpoint.weights["pose_guider"]
        for name in [name for name in weights if name.startswith("depth_modulation.")]:
            del weights[name]
        write_single(checkpoint, target)
    return target


class Merging(Pipeline):
    """Shows the networks objects as a part of the scene that is to stay, as `objective.object_input` does. held:
    masks of them uint8 [F, H, W]."""

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
    backend = TorchBackend.from_pretrained(model)
    backend.extras -= {VARIANTS[name].without}
    pipe = (Merging if name == MERGED else Pipeline)(backend)
    run = of_model(pipe, pipe.settings["steps"], pipe.settings["guidance_scale"])

    def merged(task: Task) -> np.ndarray:
        assert isinstance(pipe, Merging) and isinstance(task.given, Interaction)
        pipe.held = task.given.objects
        return run(task)

    return merged if name == MERGED else run
