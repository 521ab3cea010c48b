"""A model folder into a single file, or back: the job behind `anycharv convert`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.checkpoint import LIBRARY_PARTS
from ..checkpoints.dit_networks import build_dit_networks
from ..checkpoints.folders import read_library_part
from ..checkpoints.networks import build_networks
from ..checkpoints.single_file import write_single
from ..errors import UserError
from ..files import check_owned, owned_folder
from ..systems import read_checkpoint, write_folder
from .precision import DTYPES


@dataclass(frozen=True)
class ConvertJob:
    """What to write where.

    source: a model folder, a .safetensors file or an embedded model's name; target: a name that ends in
    .safetensors, or else a folder; dtype: a name of `DTYPES`, None = every weight keeps its own; vae,
    image_encoder: folders to include instead of the model's own; base: what a model of AnimateAnywhere was trained
    on, to include it; force: replace what is there, if it is ours.
    """

    source: str
    target: Path
    dtype: str | None = None
    vae: Path | None = None
    image_encoder: Path | None = None
    base: Path | None = None
    force: bool = False

    @property
    def single(self) -> bool:
        """Whether the target is a single file."""
        return self.target.suffix == ".safetensors"

    @property
    def inputs(self) -> list[Path]:
        """The files and folders read, which are never replaced."""
        return [
            Path(given) for given in (self.source, self.vae, self.image_encoder, self.base) if given is not None
        ]


def convert(job: ConvertJob) -> list[Path]:
    """Writes the model to its target; returns the files. Raises UserError for anything the user can put right."""
    _check_target(job)
    model = read_checkpoint(job.source, job.base)
    for part, folder in zip(LIBRARY_PARTS, (job.vae, job.image_encoder), strict=True):
        if folder is not None and part not in model.parts.library:
            raise UserError(f"{job.source} is a model that has no {part.replace('_', ' ')}: leave it out.")
        if folder is not None:
            model.configs[part], model.weights[part] = read_library_part(part, folder)
    build = build_dit_networks if model.is_dit else build_networks
    build(model, "meta")  # raises where the weights don't fit their configs
    dtype = DTYPES[job.dtype] if job.dtype else None
    if job.single:
        write_single(model, job.target, dtype)
        return [job.target]
    with owned_folder(job.target, job.inputs) as temporary:
        try:
            write_folder(model, temporary, dtype)
        except UserError as error:
            raise UserError(str(error).replace(str(temporary), str(job.target))) from error
    return sorted(path for path in job.target.rglob("*") if path.is_file())


def _check_target(job: ConvertJob) -> None:
    """Raises UserError unless the target may be written; a folder is only ever replaced by `force`, and only if
    it holds nothing but what this command wrote, and no input."""
    target, single = job.target, job.single
    if target.suffix in (".bin", ".ckpt", ".pt", ".pth"):
        raise UserError(f"{target} would be a folder; let a single file end in .safetensors.")
    if single and os.path.realpath(target) in map(os.path.realpath, job.inputs):
        raise UserError(f"{target} is one of the inputs and would be overwritten; choose another name.")
    if single or not target.is_dir():
        if target.exists() and not job.force:
            raise UserError(f"{target} exists; choose another name, or add --force to replace it.")
        if target.exists() and target.is_file() != single:
            raise UserError(f"{target} is not a {'file' if single else 'folder'}; choose another name.")
        return
    if any(target.iterdir()) and not job.force:
        raise UserError(f"{target} exists; choose another name, or add --force to replace it.")
    check_owned(target, job.inputs)
