"""AnyCharVConditioning: reference, pose, scene and mask -> what any ComfyUI sampler takes."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..anycharv_core.errors import UserError
from ..anycharv_core.inference.finish import grown_mask
from ..anycharv_core.inference.pipeline import Pipeline
from ..anycharv_core.inference.skeletons import PictureSkeletons
from ..anycharv_core.media.camera import CONTEXT
from ..anycharv_core.media.canvas import FRAME, CanvasPath
from ..anycharv_core.media.frames import Source
from ..anycharv_core.media.masks import mask_box
from ..anycharv_core.preprocess.shots import find_cuts
from .backend import node_size
from .clips import backend_of, filled
from .depth import depth_source, object_inputs, object_source
from .pictures import fitted_masks, image_uint8, mask_tensor, rgb_frames, same_length
from .reference import Reference
from .types import (
    CATEGORY,
    CanvasType,
    ReferenceType,
    canvas_input,
    context_input,
    recipe_input,
    size_inputs,
)


class AnyCharVConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnyCharVConditioning",
            display_name="AnyCharV Conditioning",
            category=CATEGORY,
            description="Brings scene, mask and pose to one size and length and encodes them with the reference. "
            "Its LATENT holds one frame per picture, 4D, so that core VAE nodes take it; AnimateAnywhere's is "
            "that of a clip, 5D.",
            search_aliases=["character replacement", "pose to video", "animate anyone", "条件", "角色替换"],
            inputs=[
                io.Model.Input("model", tooltip="From AnyCharV Loader, with or without LoRAs."),
                ReferenceType.Input("reference", tooltip="From AnyCharV Reference Encode."),
                io.Vae.Input("vae", tooltip="The VAE the model works with."),
                io.Image.Input(
                    "scene",
                    optional=True,
                    tooltip="The frames of the driving video. Animate Anyone needs none; where it gets one, "
                    "AnyCharV Composite puts the character in front of it.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where the person is replaced, of the scene's proportions: one per frame, or "
                    "one for all frames. Animate Anyone needs none.",
                ),
                io.Image.Input(
                    "pose", tooltip="Skeletons from AnyCharV Pose Draw, one per frame, of the scene's proportions."
                ),
                *size_inputs(),
                recipe_input(
                    "'official' does as the model's release does: it stretches the reference, and sizes "
                    "AnyCharV's videos by the pose frames."
                ),
                canvas_input(FRAME, " Composite then needs this node's canvas."),
                context_input(),
                *object_inputs(),
                io.Image.Input(
                    "background",
                    optional=True,
                    tooltip="For AnimateAnywhere, which needs it: the picture of a place with nobody in it, where "
                    "the clip begins. Of a batch, the first is taken; its middle is shown. Others take none.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
                io.Latent.Output(),
                CanvasType.Output(
                    display_name="canvas", tooltip="How frames became what is sampled; for AnyCharV Composite."
                ),
                io.Int.Output(display_name="width", tooltip="Width of what is sampled, in pixels."),
                io.Int.Output(display_name="height", tooltip="Height of what is sampled, in pixels."),
                io.Mask.Output(
                    display_name="mask",
                    tooltip="Where AnyCharV Composite is to paste: the mask, and for Animate Anyone 2 the blocks "
                    "that its networks were given in place of it, and what lies around them, where the character "
                    "may reach.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        reference: Reference,
        vae: Any,
        pose: Tensor,
        width: int,
        height: int,
        recipe: str,
        scene: Tensor | None = None,
        mask: Tensor | None = None,
        canvas: str = FRAME,
        context: float = CONTEXT,
        objects: Tensor | None = None,
        depth: Tensor | None = None,
        background: Tensor | None = None,
    ) -> io.NodeOutput:
        backend = backend_of(model, reference.net, vae, reference.clip_vision)
        pipe = Pipeline(backend)
        chosen = pipe.system.recipe(recipe)
        place = None if background is None else image_uint8(background[:1], "background")[0, ..., :3]
        if pipe.system.clips:
            pose = filled(pose)
        frames = None if scene is None else rgb_frames(scene, "scene")
        poses = rgb_frames(pose, "pose")
        if scene is not None and (scene.shape[1] % 2 or scene.shape[2] % 2):
            logging.warning(
                "AnyCharV: The scene is %dx%d, and so will be AnyCharV Composite's frames, but Save Video writes "
                "even sides only: leave even_sides of AnyCharV Composite on, or save pictures.",
                scene.shape[2],
                scene.shape[1],
            )
        shown = pose if scene is None else scene
        full = shown.shape[2], shown.shape[1]
        masks = None if mask is None else fitted_masks(mask, full, "mask")
        if scene is not None:
            masks = masks if masks is None else same_length(len(scene), mask=masks)[0]
            if len(pose) != len(scene):
                raise UserError(
                    f"The scene has {len(scene)} frames but pose has {len(pose)}; give as many of both."
                )
        size = node_size(pipe, chosen, full, (width, height))
        pose_source = Source("pose", poses, 3)
        scene_source = None if frames is None else Source("scene", frames, 3)
        mask_source = None if masks is None else pipe.given_masks(Source("mask", masks, None))
        pipe.system.check_inputs(scene_source, mask_source, pose_source, chosen, place)
        held = None if objects is None else object_source(objects, len(pose), full)
        far = None if depth is None else depth_source(depth, len(pose), full)
        scene_size = None if scene_source is None else scene_source.size
        plan = pipe.plan(chosen, scene_size, pose_source.size, size, (width, height) if width and height else None)
        path = CanvasPath(plan.canvas)
        if pipe.can_follow(chosen, canvas) and frames is not None and mask_source is not None:
            path = pipe.follow(plan, canvas, context, list(map(mask_box, mask_source)), partial(find_cuts, frames))
        if path.windows is None and pose_source.size != plan.drawing:
            logging.info(
                "AnyCharV: pose is %dx%d, where the model knows skeletons drawn at %dx%d: it is scaled, and its "
                "lines with it.",
                *pose_source.size,
                *plan.drawing,
            )
        drawn = Source("pose", PictureSkeletons(pose_source).drawn(plan.drawn_at(path), path), 3)
        made = pipe.prepare(
            plan, reference.picture, scene_source, mask_source, drawn, reference.mask, path, held, far, place
        )
        # The reference is encoded by the VAE it came with.
        reader = Pipeline(backend_of(model, reference.net, reference.vae))
        positive, negative, shape = backend.conditioned(made, reader.reference_tokens(made))
        latents = {"samples": torch.zeros(shape, device=backend.device)}
        if mask_source is not None and pipe.cuts:
            mask = mask_tensor(grown_mask(each, chosen.paste_growth) for each in mask_source)
        return io.NodeOutput(positive, negative, latents, path, *path.canvas.padded, mask)
