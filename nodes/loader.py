"""AnyCharVLoader: a model folder, a single file or the embedded model -> MODEL and its companions."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from .types import CATEGORY, ReferenceNetType

MODELS = "anycharv"
EMBEDDED = "embedded"
DTYPES = ["auto", "fp32", "fp16", "bf16"]


def checkpoint_names() -> list[str]:
    """The embedded models, then the folders and single files under models/anycharv, by name."""
    from ..anycharv_core.checkpoints.places import EMBEDDED as SHIPPED

    found = set()
    for root in map(Path, folder_paths.get_folder_paths(MODELS)):
        if root.is_dir():
            # AnyCharV's is a folder, Animate Anyone's a file.
            folders = {path.parent for path in root.glob("*/**/denoising_unet*") if path.stem == "denoising_unet"}
            files = {p for p in root.glob("**/*.safetensors") if not folders & {*p.parents}}
            found |= {path.relative_to(root).as_posix() for path in folders | files}
    return [*SHIPPED, *sorted(found)]


def checkpoint_path(name: str) -> str:
    """Where checkpoint `name` lies; those of the pack stand for themselves. Raises UserError if it is nowhere."""
    from ..anycharv_core import UserError
    from ..anycharv_core.checkpoints.places import EMBEDDED as SHIPPED

    if name in SHIPPED:
        return name
    for root in map(Path, folder_paths.get_folder_paths(MODELS)):
        if (root / name).exists():
            return str(root / name)
    raise UserError(f"There is no checkpoint '{name}' under models/{MODELS}: put it there and press R.")


class AnyCharVLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVLoader",
            display_name="AnyCharV Loader",
            category=CATEGORY,
            description="Loads a checkpoint of AnyCharV or Animate Anyone as a native MODEL with its "
            "ReferenceNet, and its VAE and CLIP vision encoder where the checkpoint has them.",
            search_aliases=["character replacement", "animate anyone", "moore", "anychar"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=checkpoint_names(),
                    default=EMBEDDED,
                    tooltip="A folder in either system's official layout or a single .safetensors file under "
                    "models/anycharv; 'embedded' and 'embedded-animate' are small models of AnyCharV and Animate "
                    "Anyone shipped with this pack, which know only the puppets of AnyCharV Puppet Clip.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=DTYPES,
                    default="auto",
                    advanced=True,
                    tooltip="Precision of the weights. 'auto' lets ComfyUI choose for your device.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The denoising UNet with motion modules and pose guider."),
                ReferenceNetType.Output(
                    display_name="REFERENCE_NET", tooltip="Reads the reference; for AnyCharV Reference Encode."
                ),
                io.Vae.Output(tooltip="The checkpoint's own VAE. If it has none, load sd-vae-ft-mse."),
                io.ClipVision.Output(
                    tooltip="The checkpoint's own image encoder. If it has none, load CLIP ViT-L."
                ),
            ],
        )

    @classmethod
    def execute(cls, checkpoint: str, dtype: str) -> io.NodeOutput:
        from .native.load import load_checkpoint

        model, reference_net, vae, clip_vision = load_checkpoint(checkpoint_path(checkpoint), dtype)
        return io.NodeOutput(
            model,
            reference_net,
            vae
            or ExecutionBlocker(
                f"The checkpoint '{checkpoint}' has no VAE: add Load VAE with sd-vae-ft-mse "
                "(vae-ft-mse-840000-ema-pruned.safetensors) and wire it instead."
            ),
            clip_vision
            or ExecutionBlocker(
                f"The checkpoint '{checkpoint}' has no image encoder: add Load CLIP Vision with the ViT-L "
                "encoder it was trained with (lambdalabs/sd-image-variations-diffusers) and wire it instead."
            ),
        )
