"""AnyCharVComposite: the generated character back onto the untouched original."""

from __future__ import annotations

import logging

import numpy as np
import torch
from comfy_api.latest import io
from torch import Tensor

from ..anycharv_core.errors import UserError
from ..anycharv_core.inference.reference import scene_key, split_reference
from ..anycharv_core.media.canvas import Canvas, CanvasPath
from ..anycharv_core.media.chroma_key import key_onto
from ..anycharv_core.media.imaging import Size
from ..anycharv_core.media.keep_scene import keep_scene as kept_scene
from ..anycharv_core.media.masks import feather
from .pictures import fitted_masks, image_tensor, image_uint8, interruptible, rgb_frames, same_length
from .reference import Reference
from .types import CATEGORY, CanvasType, ReferenceType


class AnyCharVComposite(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVComposite",
            display_name="AnyCharV Composite",
            category=CATEGORY,
            description="Pastes the generated frames into the original ones. Outside the padded, feathered "
            "mask every value is the original's own, bit for bit. For Animate Anyone, the reference can take the "
            "mask's place.",
            search_aliases=["paste back", "uncrop", "blend", "feather", "合成", "贴回", "羽化"],
            inputs=[
                io.Image.Input("generated", tooltip="Decoded frames, of the size AnyCharV Conditioning chose."),
                io.Image.Input("original", tooltip="The frames of the driving video."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="The mask given to AnyCharV Conditioning; scaled to the original's size.",
                ),
                io.Int.Input(
                    "feather",
                    default=8,
                    min=0,
                    max=256,
                    tooltip="Pixels around the mask that are generated in full, and again as many over which "
                    "the original takes over; 0 cuts hard at the mask.",
                ),
                ReferenceType.Input(
                    "reference",
                    optional=True,
                    tooltip="For Animate Anyone without a mask: the reference given to AnyCharV Conditioning, by "
                    "whose mask the scene takes the place of the background.",
                ),
                CanvasType.Input(
                    "canvas",
                    optional=True,
                    tooltip="From the AnyCharV Conditioning that the frames were generated with: how it scaled "
                    "and padded them. Without it that is guessed from the sizes, and the log says so.",
                ),
                io.Boolean.Input(
                    "even_sides",
                    default=True,
                    optional=True,
                    tooltip="Leaves out the last column or row of frames with odd sides, which Save Video cannot "
                    "write (avcodec_open2 fails).",
                ),
                io.Boolean.Input(
                    "keep_scene",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Keeps the original's own pixels inside the mask, too, where the generated frames "
                    "hardly differ from them, as AnyCharV Replace Character does with a model of AnyCharV.",
                ),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(
        cls,
        generated: Tensor,
        original: Tensor,
        feather: int,
        mask: Tensor | None = None,
        reference: Reference | None = None,
        canvas: CanvasPath | None = None,
        even_sides: bool = False,  # as graphs have it that were saved before there was a choice
        keep_scene: bool = False,
    ) -> io.NodeOutput:
        for name, image in (("generated", generated), ("original", original)):
            image_uint8(image[:1], name)
        if len(generated) != len(original):
            raise UserError(
                f"generated has {len(generated)} frames but original has {len(original)}; make both from the same "
                "frames."
            )
        sizes = (original.shape[2], original.shape[1]), (generated.shape[2], generated.shape[1])
        path = CanvasPath(assumed_canvas(*sizes)) if canvas is None else handed_path(canvas, len(original), *sizes)
        if mask is not None:
            result = composite_images(generated, original, path, mask, feather, keep_scene)
        elif reference is not None:
            result = keyed_images(generated, original, path, reference)
        else:
            raise UserError(
                "Nothing says where the generated frames are to show: wire in the mask given to AnyCharV "
                "Conditioning, or for Animate Anyone without a mask the reference."
            )
        if even_sides:
            height, width = (max(1, side // 2 * 2) for side in result.shape[1:3])
            result = result[:, :height, :width]
        return io.NodeOutput(result)


def composite_images(
    generated: Tensor, original: Tensor, path: CanvasPath, mask: Tensor, width: int, keep: bool
) -> Tensor:
    """The generated frames where the mask, padded and feathered by `width` pixels, and the canvas is; else the
    original, which with `keep` also stays where the two hardly differ.

    Raises UserError where the mask does not fit the original.
    """
    masks = fitted_masks(mask, (original.shape[2], original.shape[1]), "mask")
    if masks.shape[1:] != original.shape[1:3]:
        raise UserError(
            f"The mask is {masks.shape[2]}x{masks.shape[1]} but the original is {original.shape[2]}x"
            f"{original.shape[1]}; give a mask of the original's proportions."
        )
    (masks,) = same_length(len(original), mask=masks)
    whole = path.canvas
    untouched = path.windows is None and whole.source == whole.inner == whole.padded
    result = original.clone()
    for index, region in enumerate(interruptible(masks)):
        alpha = torch.from_numpy(feather(region, width, width))[..., None]
        if not alpha.any():
            continue
        canvas = path.at(index)
        x0, y0, x1, y1 = canvas.region
        if untouched:
            frame = generated[index, ..., :3].cpu()
        else:
            frame = image_tensor(_restored(generated, index, canvas))[0]
        share = alpha[y0:y1, x0:x1]
        base = result[index, y0:y1, x0:x1, :3].cpu()
        # Not lerp: this leaves every bit of the original where alpha is 0.
        result[index, y0:y1, x0:x1, :3] = torch.where(share > 0, base + share * (frame - base), base)
        if keep:
            pasted, before = (each[index, ..., :3].float().cpu().numpy() for each in (result, original))
            kept = kept_scene(pasted, before, region, alpha[..., 0].numpy() > 0)
            result[index, ..., :3] = torch.from_numpy(kept)
    return result


def keyed_images(generated: Tensor, original: Tensor, path: CanvasPath, reference: Reference) -> Tensor:
    """The character of the generated frames in front of the original: without the colour that AnyCharV
    Conditioning put behind it, and where that shows, every bit is the original's.

    Raises UserError where the reference has no mask.
    """
    key = scene_key(*split_reference(reference.picture, reference.mask))
    result = original.clone()
    for index, scene in enumerate(rgb_frames(original, "original")):
        keyed = key_onto(_restored(generated, index, path.at(index)), scene, key)
        changed = torch.from_numpy((keyed != scene).any(axis=-1))[..., None]
        result[index, ..., :3] = torch.where(changed, image_tensor(keyed)[0], original[index, ..., :3].cpu())
    return result


def handed_path(path: CanvasPath, frames: int, source: Size, generated: Size) -> CanvasPath:
    """AnyCharV Conditioning's canvas for `frames` frames of other sizes (width, height): the generated ones may
    have been enlarged since, and the originals may be a larger copy of the scene.

    Raises UserError where it follows a person through another number of frames.
    """
    before, windows = path.canvas, path.windows
    width, height = (
        max(1, round(side * shown / padded))
        for side, shown, padded in zip(before.inner, generated, before.padded, strict=True)
    )
    canvas = Canvas(source, (width, height), generated)
    if windows is None:
        return CanvasPath(canvas)
    if len(windows) != frames:
        raise UserError(
            f"The canvas follows a person through {len(windows)} frames but original has {frames}: wire in the "
            "scene given to AnyCharV Conditioning."
        )
    return CanvasPath(canvas, windows * np.tile(np.divide(source, before.source), 2))


def assumed_canvas(source: Size, padded: Size) -> Canvas:
    """The likeliest canvas by which frames of `source` (width, height) became pictures of `padded`; logged.

    Either they were only padded, by less than 8 pixels, or scaled so that one side fills the canvas. Both may be
    possible: 513x513 becomes 520x520 by padding, and by scaling where 520x520 was asked for.
    """
    if all(0 <= p - s < 8 for p, s in zip(padded, source, strict=True)):
        canvas = Canvas(source, source, padded)
    else:
        scale = min(p / s for p, s in zip(padded, source, strict=True))
        width, height = (min(p, max(1, round(s * scale))) for p, s in zip(padded, source, strict=True))
        canvas = Canvas(source, (width, height), padded)
    if source != padded:
        logging.warning(
            "AnyCharV Composite: no canvas is wired in from AnyCharV Conditioning, so it is assumed that frames "
            "of %dx%d were scaled to %dx%d and padded to %dx%d; if the character is off its place, wire it in.",
            *canvas.source,
            *canvas.inner,
            *canvas.padded,
        )
    return canvas


def _restored(generated: Tensor, index: int, canvas: Canvas) -> np.ndarray:
    return canvas.restore(image_uint8(generated[index : index + 1, ..., :3], "generated")[0])
