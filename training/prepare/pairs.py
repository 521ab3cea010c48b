"""Makes the pairs of the self-boosting phases (paper 3.3): the first-stage model puts one video's character into
another video, whose original is then what a model learns to bring back.

    python -m training.make_pairs CONFIG --model RUN/compose/model --out DIR --pairs 64000
    RAY_ADDRESS=... python -m training.make_pairs CONFIG --model MODEL --out /shared/DIR --pairs 64000 --ray

takes data, length and settings from the config's phase of task "pairs". Stopped at any moment, the same command
goes on with the shards that are missing. Pair k is a function of the config's seed and k alone, whichever machine
makes it.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from anycharv_core.bench.metrics import gradient_energy
from anycharv_core.checkpoints.places import EMBEDDED
from anycharv_core.errors import UserError
from anycharv_core.files import atomic_path
from anycharv_core.foreign import read_json
from anycharv_core.inference.backend import TorchBackend
from anycharv_core.inference.finish import paste_weights
from anycharv_core.inference.pipeline import Pipeline
from anycharv_core.media.canvas import FRAME
from anycharv_core.models import DenoisingUNet
from training import commands
from training.config import Config, Data, Pairs, data_facts
from training.config_file import read_config
from training.data.pairs import HEADER, facts, png, read_indices
from training.data.samples import positions
from training.data.shards import write_tar
from training.data.sources import Clips, open_dataset
from training.prepare.parallel import run_all
from training.sections import build, plain

TRIES = 1000  # draws of a partner until one is of another video


@dataclass(frozen=True)
class Job:
    """All that one shard's making depends on, but its number. vae, image_encoder: folders, where `model` has
    none."""

    settings: Pairs
    data: Data
    frames: int
    seed: int
    model: str
    out: Path
    vae: str | None = None
    image_encoder: str | None = None
    model_hash: str = ""

    @property
    def shards(self) -> int:
        return -(-self.settings.pairs // self.settings.per_shard)

    def numbers(self, shard: int) -> range:
        """The pairs of a shard."""
        first = shard * self.settings.per_shard
        return range(first, min(first + self.settings.per_shard, self.settings.pairs))


def make_pairs(
    job: Job,
    workers: int = 0,
    ray: bool = False,
    share: tuple[int, int] = (0, 1),
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = print,
) -> bool:
    """Makes the shards that `job.out` lacks, by `run_all`; whether all of them are there now.

    share: (rank, processes) where several processes run this side by side, each for its part. `stop` is asked
    after every shard.

    Raises UserError where the folder holds pairs of another job, the data are of a single video, or a file does
    not fit.
    """
    if job.settings.pairs < 1 or job.settings.per_shard < 1:
        raise UserError("The settings of the pairs ask for none; use at least 1 for `pairs` and `per_shard`.")
    job = replace(job, model_hash=hash_model(job.model))
    if share[0] == 0:
        _claim(job)
    missing = unfinished(job)[share[0] :: share[1]]
    gpus = 1 if torch.cuda.is_available() else 0
    for count, report in enumerate(run_all(partial(make_shard, job), missing, workers, ray, gpus), start=1):
        say(f"pairs: {report}, {count} of {len(missing)} shards")
        if stop():
            break
    return not unfinished(job)


def unfinished(job: Job) -> list[int]:
    """The shards that are not there, or were the last of a smaller set and have fewer pairs than now asked for."""
    tried = {int(path.stem): index.tried for path, index in read_indices(job.out).items()}
    return [number for number in range(job.shards) if tried.get(number) != len(job.numbers(number))]


def _claim(job: Job) -> None:
    """DIR/pairs.json says what the folder's pairs are made of, so that none of another kind get in."""
    job.out.mkdir(parents=True, exist_ok=True)
    own = plain({k: v for k, v in asdict(job).items() if k not in ("out", "model", "vae", "image_encoder")})
    own["data"] = data_facts(job.data)
    # More pairs of the same kind may be added to a folder.
    own["settings"].pop("pairs")
    header = job.out / HEADER
    if header.exists():
        if read_json(header) != own:
            raise UserError(f"{job.out} has pairs of another model, data or settings; choose another folder.")
        return
    with atomic_path(header) as tmp:
        tmp.write_bytes(facts(own))


def hash_model(model: str) -> str:
    """SHA-256 of a model's files, in the order of their names."""
    path = EMBEDDED.get(model, Path(model))
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    if not files:
        raise UserError(f"There is no model at {model}: give the folder or file that the first phase wrote.")
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            while block := content.read(2**24):
                total.update(block)
    return total.hexdigest()


def make_shard(job: Job, number: int) -> str:
    """Makes and writes shard `number`; what became of it, in words. The shard counts once its index is there."""
    numbers = job.numbers(number)
    members: list[tuple[str, bytes]] = []
    rows = []
    for k in numbers:
        made = make_pair(job, k)
        if made is not None:
            members += [(f"{made[1]['key']}.{name}", content) for name, content in made[0].items()]
            rows.append(made[1])
    shard = job.out / f"{number:06d}.tar"
    write_tar(shard, members)
    offsets: dict[str, int] = {}
    with tarfile.open(shard) as tar:
        for member in tar:
            offsets.setdefault(member.name.partition(".")[0], member.offset)
    with atomic_path(shard.with_suffix(".json")) as tmp:
        tmp.write_bytes(
            facts({"tried": len(numbers), "pairs": [row | {"offset": offsets[row["key"]]} for row in rows]})
        )
    refused = len(numbers) - len(rows)
    return f"{shard.name} has {len(rows)} pairs" + (f" and left {refused} out" if refused else "")


def make_pair(job: Job, k: int) -> tuple[dict[str, bytes], dict[str, Any]] | None:
    """Pair number k: its members by name, and its line of the index; None where nobody is in the clip, or where it
    is below the quality asked for."""
    pipe, dataset, settings = _pipeline(job), _dataset(job.data, job.frames), job.settings
    rng = np.random.default_rng([job.seed, k])
    driving = positions(job.seed, len(dataset), k, 1)[0]
    partner = _partner(dataset, driving, rng)
    clip = {name: tensor.numpy() for name, tensor in dataset[driving].items()}
    reference = dataset.reference(*partner).numpy()
    seed = int(rng.integers(2**31))
    frames, mask = clip["frames"], clip["mask"]
    if not (mask >= 128).any():
        return None
    # The first stage has learned to fill a hole (eq. 2), not to look at who was there.
    hollow = frames * (mask < 128)[..., None]
    out = pipe(
        reference,
        hollow,
        mask,
        clip["pose"],
        settings.steps,
        settings.guidance,
        noise=_noise(pipe, frames.shape, settings.motion, seed),
        canvas=FRAME,
    )
    assert isinstance(out.frames, np.ndarray)
    made = _sharpened(out.frames, settings.sharpen * rng.uniform(-0.8, 1.2))
    touched = np.stack([paste_weights(each) > 0 for each in mask])[..., None]
    energy = gradient_energy(made, frames, mask >= 128)
    quality = min(energy, 1 / max(energy, 1e-6))
    if quality < settings.min_quality:
        return None
    origin = {
        "pair": k,
        "seed": seed,
        "driving": dataset.origin(*driving),
        "partner": dataset.origin(*partner),
        "model": job.model_hash,
        "quality": round(quality, 4),
    }
    layers = {
        "frame": frames,
        "scene": made * touched,
        "mask": mask,
        "character": clip["character"],
        "pose": clip["pose"],
    }
    members = {f"{i:03d}.{kind}.png": png(layer[i]) for i in range(len(frames)) for kind, layer in layers.items()}
    members |= {"reference.png": png(clip["reference"]), "partner.png": png(reference), "json": facts(origin)}
    size = [frames.shape[2], frames.shape[1]]
    return members, {"key": f"{k:08d}", "frames": len(frames), "size": size, "origin": origin}


def _partner(dataset: Clips, driving: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    """A sample of another video than `driving`'s."""
    video = dataset.origin(*driving)["video"]
    for _ in range(TRIES):
        sample = int(rng.integers(len(dataset))), int(rng.integers(2**31))
        if dataset.origin(*sample)["video"] != video:
            return sample
    raise UserError("Pairs need characters from at least two videos, but the data holds one; prepare more videos.")


def _noise(pipe: Pipeline, shape: Sequence[int], motion: bool, seed: int) -> torch.Tensor:
    frames, height, width = shape[0], *(-(-side // pipe.backend.multiple) for side in shape[1:3])
    count = frames if motion else 1
    generator = torch.Generator().manual_seed(seed)
    channels = pipe.backend.latent_channels
    noise = torch.randn(count, channels, height, width, generator=generator)
    return noise.expand(frames, -1, -1, -1).contiguous()


def _sharpened(frames: np.ndarray, amount: float) -> np.ndarray:
    if not amount:
        return frames
    soft = np.stack([cv2.blur(frame, (3, 3)) for frame in frames]).astype(np.float32)
    return np.clip(np.rint(frames + amount * (frames - soft)), 0, 255).astype(np.uint8)


@lru_cache(maxsize=1)
def _pipeline(job: Job) -> Pipeline:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    backend = TorchBackend.from_pretrained(job.model, job.vae, job.image_encoder, device, dtype)
    if not job.settings.motion:
        _hold_still(backend.networks.denoising_unet)
    return Pipeline(backend)


def _hold_still(unet: DenoisingUNet) -> None:
    """Takes the motion modules out, whose weights have not been trained with this model yet."""
    for stage in unet.stages():
        stage.motion_modules = None


@lru_cache(maxsize=1)
def _dataset(data: Data, frames: int) -> Clips:
    return open_dataset(data, frames)


def new_job(config: Config, phase: str, model: str, out: Path) -> Job:
    """The job that a config's phase of task "pairs" describes."""
    chosen, init = config.phases[phase], config.init
    return Job(chosen.pairs, chosen.data, chosen.frames, config.seed, model, out, init.vae, init.image_encoder)


def main(argv: Sequence[str] | None = None) -> int:
    parser = commands.new_parser("make_pairs", __doc__)
    add = parser.add_argument
    add("config", type=Path, help="recipe that has a phase of task 'pairs'")
    add("--model", required=True, help="the first-stage model: a folder, a .safetensors file, or 'embedded'")
    add("--out", type=Path, required=True, help="folder of the pairs; on a cluster one that all machines share")
    add("--phase", help="the config's phase of task 'pairs'; the first one unless given")
    add("--pairs", type=int, help="how many, in place of the config's number")
    add("--min-quality", type=float, help="drop pairs of lower quality, 0..1 (see Pairs in training/config.py)")
    add("--workers", type=int, default=0, help="processes (with --ray: calls at a time)")
    add("--ray", action="store_true", help="on the ray cluster of RAY_ADDRESS, or a local one")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a value of the config, such as data.path=shards",
    )
    args = parser.parse_args(argv)

    def work() -> None:
        config = read_config(args.config, args.set)
        named = [name for name, phase in config.phases.items() if phase.task == "pairs"]
        phase = args.phase or next(iter(named), None)
        if phase not in named:
            raise UserError(f"{args.config} has no phase {phase or ''} of task 'pairs'; add one to the config.")
        given = {"pairs": args.pairs, "min_quality": args.min_quality}
        changes = {key: value for key, value in given.items() if value is not None}
        job = new_job(config, phase, args.model, args.out)
        job = replace(job, settings=build(Pairs, plain(job.settings) | changes, f"phases.{phase}.pairs"))
        with commands.alone(args.out):
            make_pairs(job, args.workers, args.ray)

    return commands.run("make_pairs", work, "stopped; the same command goes on with the missing shards.")
