"""A paper's ablation where the truth is known: small models of every variant, scored on PuppetBench.

    python -m training.ablate --out runs/ablation [--seeds 0 1 2] [--clips 48] [--only NAME ...] [--set KEY=VALUE]
    python -m training.ablate --paper animate2 --out runs/ablation2 [...]

Says what is expected before it trains; writes OUT/ablation.json and prints a table such as docs/ablation.md has.
Stopped at any moment, the same command goes on. Intervals are over all clips of all seeds; the last columns tell
the difference to the paper's recipe on the same clips, and the spread of the seeds' means.

Animate Anyone 2's ablation is in ablate_animate2.py. AnyCharV's (Table 4) trains
training/configs/embedded_bold.yaml, its phases on frames and shorter, once for each seed, changed as a variant
asks; stage one is shared by the variants that agree on it. A variant is scored on bold swaps, with the kind of
mask its last stage was trained with, and with the scene as that stage saw it: its character cut out in stage one
(eq. 2), the whole clip in stage two (eq. 3).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from anycharv_core import Pipeline
from anycharv_core.bench.naming import NAMED
from anycharv_core.bench.puppets import Method, measure, of_model, references, sheet_titles
from anycharv_core.bench.report import NOT_MEASURED, markdown, summarise
from anycharv_core.bench.tasks import BOLD_SWAP, VERSION, Setup
from anycharv_core.errors import UserError
from anycharv_core.files import atomic_path
from anycharv_core.inference.backend import TorchBackend
from anycharv_core.inference.encode import EncodedVideo
from anycharv_core.inference.sampling import Sampled
from anycharv_core.media.sheet import sheet
from training import ablate_animate2, ablate_anywhere, commands
from training.study import Study, share_phases, slug, train_phases

CONFIG = Path(__file__).parent / "configs" / "embedded_bold.yaml"
# A fifth of the embedded model's length, on clips that the disk holds for every run. --set changes it.
SHORT = (
    "data.clips=4000",
    "engine.cache.variants=1",
    "phases.decoder.steps=500",
    "phases.compose.steps=8000",
    "phases.compose.validate.every=0",
    "phases.pairs.pairs.pairs=1000",
    "phases.boost.steps=1500",
    "phases.boost.validate.every=0",
)
PSNR = "character PSNR"
METRICS = (PSNR, "character SSIM", "identity", "sharpness", "box PSNR", *NAMED)
SIZE = 256  # pixels a side of the frames that are scored
FIRST = ("codec", "decoder", "compose", "pairs")
OURS = "Seg & Box (ours)"
ORDER = (OURS, "Seg & Seg", "Box & Box", "Box & Seg")
HYPOTHESIS = (
    f"Character PSNR falls in the paper's order, {' > '.join(ORDER)}, and is lower without each of the four "
    "ingredients. It is upheld where the difference to the paper's recipe is below zero with its whole interval."
)


@dataclass(frozen=True)
class Variant:
    """What differs from the paper's recipe. first: changes of stage one, whose model makes the pairs; second: of
    stage two; boost: whether there is a stage two; fine: whether the last stage is shown the exact mask;
    shows_mask: whether it is shown any; fvd: the paper's."""

    first: tuple[str, ...] = ()
    second: tuple[str, ...] = ()
    boost: bool = True
    fine: bool = False
    shows_mask: bool = True
    fvd: float | None = None


BOX_FIRST = ("data.mask=box",)
FINE_SECOND = ("phases.boost.data.mask=fine",)
VARIANTS = {
    OURS: Variant(fvd=622.01),
    "Seg & Seg": Variant(second=FINE_SECOND, fine=True, fvd=648.61),
    "Box & Box": Variant(BOX_FIRST, fvd=670.86),
    "Box & Seg": Variant(BOX_FIRST, FINE_SECOND, fine=True, fvd=702.16),
    "without mask augmentation": Variant(("data.augment=false",), fvd=646.03),
    "without self-boost": Variant(boost=False, fine=True, fvd=652.34),
    "without mask input": Variant(("objective.mask_input=false",), shows_mask=False, fvd=680.31),
    "without character segmentation": Variant(("data.reference=picture",), fvd=678.51),
}


class Maskless(TorchBackend):
    """Networks that are not shown the mask."""

    def denoise(self, video: EncodedVideo, *args: Any, **kwargs: Any) -> Sampled:
        mask = None
        if video.mask is not None:
            mask = video.mask.empty()
            for frame in range(len(video.mask)):
                mask.append(np.zeros_like(video.mask[frame]))
        return super().denoise(replace(video, mask=mask), *args, **kwargs)


def train_variant(name: str, seed: int, out: Path, config: Path = CONFIG, changed: Sequence[str] = ()) -> Path:
    """The model of a variant, trained where it is not there yet. Raises SystemExit where the trainer gives up."""
    variant = VARIANTS[name]
    # The first variant that shares stage one names its folder.
    leader = next(other for other, each in VARIANTS.items() if each.first == variant.first)
    stage = out / f"seed_{seed}" / slug(leader)
    changes = [f"seed={seed}", *SHORT, *changed, *variant.first]
    if not variant.boost:
        train_phases(config, stage, changes, FIRST[: FIRST.index("compose") + 1])
        return stage / "compose" / "model.safetensors"
    train_phases(config, stage, changes, FIRST)
    folder = out / f"seed_{seed}" / f"{slug(name)}_boost"
    share_phases(stage, folder, FIRST)
    train_phases(config, folder, [*changes, *variant.second], (*FIRST, "boost"))
    return folder / "boost" / "model.safetensors"


def method(name: str, model: Path) -> Method:
    variant = VARIANTS[name]
    pipe = Pipeline((TorchBackend if variant.shows_mask else Maskless).from_pretrained(model))
    steps, guidance = pipe.settings["steps"], pipe.settings["guidance_scale"]
    run = of_model(pipe, steps, guidance, fine=variant.fine, cut=not variant.boost)
    if "data.reference=picture" not in variant.first:
        return run
    # The pipeline cuts the reference out by its alpha, which this model was never shown.
    return lambda task: run(replace(task, given=replace(task.given, reference=task.given.reference[..., :3])))


def study() -> Study:
    """AnyCharV's ablation."""
    fvds = {name: variant.fvd for name, variant in VARIANTS.items()}
    what = CONFIG, SHORT, BOLD_SWAP, SIZE, METRICS, (PSNR,), fvds, "paper's FVD (lower is better)"
    return Study(HYPOTHESIS, *what, train_variant, method)


STUDIES = {"anycharv": study, "animate2": ablate_animate2.study, "anywhere": ablate_anywhere.study}


def table(report: dict[str, Any], study: Study) -> str:
    """Mean and 95 % interval of every metric by variant, the differences to the paper's recipe, the spread over
    seeds, and the paper's own number."""
    rows, first = {}, study.compared[0]
    ours = report["variants"].get(next(iter(study.variants)))
    for name, metrics in report["variants"].items():
        number = study.variants.get(name)
        by_seed = [np.mean(values) for values in metrics[first].values()]
        row = {each: summarise([v for kept in metrics[each].values() for v in kept]) for each in study.metrics}
        for each in study.compared:
            row[f"{each}, less ours"] = (
                summarise("the paper's recipe was left out") if ours is None else less(metrics, ours, each)
            )
        row[f"seeds' {first}, lowest to highest"] = {"mean": float(np.ptp(by_seed))}
        row[study.column] = {"mean": number} if number else {NOT_MEASURED: "the paper has none of it"}
        rows[name] = row
    return markdown(rows, "variant")


def less(metrics: dict[str, Any], ours: dict[str, Any], metric: str) -> dict[str, Any]:
    """How much more of a metric a variant has than the paper's recipe on the same clips and seeds."""
    pairs = (zip(each, ours[metric][seed], strict=True) for seed, each in metrics[metric].items() if each)
    return summarise([value - own for pair in pairs for value, own in pair])


def main() -> int:
    parser = commands.new_parser("ablate", __doc__)
    add = parser.add_argument
    add("--paper", choices=STUDIES, default="anycharv", help="whose ablation, default %(default)s")
    add("--out", type=Path, required=True, help="folder of models and scores; one that was stopped goes on")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default %(default)s")
    add("--clips", type=int, default=48, help="held-out clips that each model is scored on, default %(default)s")
    add("--frames", type=int, help="of a clip (default: 1, of a journey 24); over 16 of Animate Anyone 2 join")
    add("--only", nargs="+", metavar="NAME", help="only these variants")
    add("--config", type=Path, help="recipe that is ablated (default: the one that is named above)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="as training.train takes it, for all runs")
    add("--train-only", action="store_true", help="train without scoring, which a later run does")
    args = parser.parse_args()
    return commands.run(
        "ablate", lambda: ablate(args, STUDIES[args.paper]()), "stopped; the same command goes on."
    )


def ablate(args: argparse.Namespace, study: Study) -> None:
    """Trains and scores what the command line asks for. Raises UserError for a variant that there is not."""
    chosen = args.only or list(study.variants)
    if unknown := sorted(set(chosen) - study.variants.keys()):
        known = ", ".join(map(repr, study.variants))
        raise UserError(f"There is no variant {', '.join(map(repr, unknown))}; use some of {known}.")
    print(study.hypothesis)
    report: dict[str, Any] = {"hypothesis": study.hypothesis, "puppetbench": VERSION, "clips": args.clips}
    frames = args.frames or study.frames
    report |= {"frames": frames, "seeds": args.seeds, "changed": [*study.short, *args.set], "variants": {}}
    titles: list[str] = []
    pages: list[list[np.ndarray]] = []
    for seed in args.seeds:
        config = args.config or study.config
        models = {name: study.train(name, seed, args.out, config, args.set) for name in chosen}
        if args.train_only:
            continue
        methods = {name: study.method(name, model) for name, model in models.items()} | references(study.task)
        setup = Setup(args.clips, frames, study.size, study.task)
        looks = {name: look for name, model in models.items() if (look := study.look(name, model)) is not None}
        found, rows = measure(methods, setup, "left out here", looks=looks)
        if not pages:
            titles, pages = sheet_titles(methods, study.task), rows
        for name, metrics in found["clips"].items():
            kept = report["variants"].setdefault(name, {metric: {} for metric in study.metrics})
            for metric in study.metrics:
                kept[metric][seed] = metrics.get(metric, [])
    if args.train_only:
        return
    with atomic_path(args.out / "ablation.json") as tmp:
        tmp.write_text(json.dumps(report) + "\n", encoding="utf-8")
    with atomic_path(args.out / "sheet.png") as tmp:
        sheet(pages, titles).save(tmp)
    print(table(report, study))


if __name__ == "__main__":
    sys.exit(main())
