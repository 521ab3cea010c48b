"""The paper's ablation (Table 4) where the truth is known: small models of every variant, scored on PuppetBench.

    python -m training.ablate --out runs/ablation [--seeds 0 1 2] [--clips 48] [--only NAME ...] [--set KEY=VALUE]

Trains training/configs/embedded_bold.yaml, its phases on frames and shorter, once for each seed, changed as a
variant asks; stage one is shared by the variants that agree on it. Stopped at any moment, the same command goes
on. Says what is expected before it trains; writes OUT/ablation.json and prints a table such as docs/ablation.md
has.

A variant is scored on bold swaps, with the kind of mask its last stage was trained with, and with the scene as
that stage saw it: its character cut out in stage one (eq. 2), the whole clip in stage two (eq. 3). Intervals are
over all clips of all seeds; the last columns tell the difference to the paper's recipe on the same clips, and the
spread of the seeds' means.
"""

from __future__ import annotations

import argparse
import json
import shutil
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
from anycharv_core.files import atomic_path
from anycharv_core.inference.backend import TorchBackend
from anycharv_core.inference.encode import EncodedVideo
from anycharv_core.media.sheet import sheet
from training import commands, train

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

    def denoise(self, video: EncodedVideo, *args: Any, **kwargs: Any) -> None:
        mask = None
        if video.mask is not None:
            mask = video.mask.empty()
            for frame in range(len(video.mask)):
                mask.append(np.zeros_like(video.mask[frame]))
        super().denoise(replace(video, mask=mask), *args, **kwargs)


def train_variant(name: str, seed: int, out: Path, config: Path = CONFIG, changed: Sequence[str] = ()) -> Path:
    """The model of a variant, trained where it is not there yet. Raises SystemExit where the trainer gives up."""
    variant = VARIANTS[name]
    # The first variant that shares stage one names its folder.
    leader = next(other for other, each in VARIANTS.items() if each.first == variant.first)
    stage = out / f"seed_{seed}" / _slug(leader)
    changes = [f"seed={seed}", *SHORT, *changed, *variant.first]
    if not variant.boost:
        _train(config, stage, changes, "compose")
        return stage / "compose" / "model.safetensors"
    _train(config, stage, changes, "pairs")
    folder = out / f"seed_{seed}" / f"{_slug(name)}_boost"
    for phase in FIRST:
        if not (folder / phase).exists():
            shutil.copytree(stage / phase, folder / phase)
    _train(config, folder, [*changes, *variant.second], "boost")
    return folder / "boost" / "model.safetensors"


def _train(config: Path, folder: Path, changes: list[str], last: str) -> None:
    arguments = [str(config), "--out", str(folder), "--cpu"]
    for change in changes:
        arguments += ["--set", change]
    phases = (*FIRST, "boost")
    for phase in phases[: phases.index(last) + 1]:
        code = train.main([*arguments, "--phase", phase])
        if code:
            raise SystemExit(code)
    # Encoded clips, gigabytes of them, that no later phase of the folder reads.
    shutil.rmtree(folder / "cache", ignore_errors=True)


def method(name: str, model: Path) -> Method:
    variant = VARIANTS[name]
    pipe = Pipeline((TorchBackend if variant.shows_mask else Maskless).from_pretrained(model))
    steps, guidance = pipe.settings["steps"], pipe.settings["guidance_scale"]
    run = of_model(pipe, steps, guidance, fine=variant.fine, cut=not variant.boost)
    if "data.reference=picture" not in variant.first:
        return run
    # The pipeline cuts the reference out by its alpha, which this model was never shown.
    return lambda task: run(replace(task, given=replace(task.given, reference=task.given.reference[..., :3])))


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name.lower()).strip("_").replace("___", "_")


def table(report: dict[str, Any]) -> str:
    """Mean and 95 % interval of every metric by variant, the difference to the paper's recipe, the spread over
    seeds, and the paper's FVD."""
    rows = {}
    ours = report["variants"].get(OURS)
    for name, metrics in report["variants"].items():
        fvd = VARIANTS[name].fvd if name in VARIANTS else None  # not of the baselines
        by_seed = [np.mean(values) for values in metrics[PSNR].values()]
        row = {metric: summarise([v for each in metrics[metric].values() for v in each]) for metric in METRICS}
        row["less ours"] = summarise("the paper's recipe was left out") if ours is None else less(metrics, ours)
        row["seeds' PSNR, lowest to highest"] = {"mean": float(np.ptp(by_seed))}
        row["paper's FVD (lower is better)"] = {"mean": fvd} if fvd else {NOT_MEASURED: "baselines are ours"}
        rows[name] = row
    return markdown(rows, "variant")


def less(metrics: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """How much more character PSNR a variant has than the paper's recipe on the same clips and seeds."""
    pairs = (zip(each, ours[PSNR][seed], strict=True) for seed, each in metrics[PSNR].items())
    return summarise([value - own for pair in pairs for value, own in pair])


def main() -> int:
    parser = commands.new_parser("ablate", __doc__)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of models and scores; one that was stopped goes on")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default %(default)s")
    add("--clips", type=int, default=48, help="held-out clips that each model is scored on, default %(default)s")
    add("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME", help="only these variants")
    add("--config", type=Path, default=CONFIG, help="recipe that is ablated, default %(default)s")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="as training.train takes it, for all runs")
    add("--train-only", action="store_true", help="train without scoring, which a later run does")
    args = parser.parse_args()
    return commands.run("ablate", lambda: ablate(args), "stopped; the same command goes on.")


def ablate(args: argparse.Namespace) -> None:
    """Trains and scores what the command line asks for."""
    print(HYPOTHESIS)
    report: dict[str, Any] = {"hypothesis": HYPOTHESIS, "puppetbench": VERSION, "clips": args.clips}
    report |= {"seeds": args.seeds, "changed": [*SHORT, *args.set], "variants": {}}
    titles: list[str] = []
    pages: list[list[np.ndarray]] = []
    for seed in args.seeds:
        models = {name: train_variant(name, seed, args.out, args.config, args.set) for name in args.only}
        if args.train_only:
            continue
        methods = {name: method(name, model) for name, model in models.items()} | references(BOLD_SWAP)
        found, rows = measure(methods, Setup(args.clips, 1, SIZE, BOLD_SWAP), "left out here")
        if not pages:
            titles, pages = sheet_titles(methods), rows
        for name, metrics in found["clips"].items():
            kept = report["variants"].setdefault(name, {metric: {} for metric in METRICS})
            for metric in METRICS:
                kept[metric][seed] = metrics[metric]
    if args.train_only:
        return
    with atomic_path(args.out / "ablation.json") as tmp:
        tmp.write_text(json.dumps(report) + "\n", encoding="utf-8")
    with atomic_path(args.out / "sheet.png") as tmp:
        sheet(pages, titles).save(tmp)
    print(table(report))


if __name__ == "__main__":
    sys.exit(main())
