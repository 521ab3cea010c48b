"""Trains the puppet segmenter: a small SAM 2 video model (arXiv:2408.00714) as transformers saves it.

    python -m training.preprocessors.segmenter --data DIR --state DIR --out puppet_segmenter

DIR of --data is what `training.preprocessors.data` wrote. Two phases: `frames` learns a mask from a box,
`clips` to carry it through frames without one, people vanishing and coming back included.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VideoModel, Sam2VisionConfig

from anycharv_core.files import check_owned, owned_folder
from anycharv_core.puppets.crowd import SITUATIONS
from training.preprocessors.data import Clips, repaint
from training.preprocessors.train import COMMON, Batch, Course, command

SIDE, PATCH, WIDTH = 192, 16, 128
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CORNERS = (2, 3)  # SAM 2's point labels of a box
SEED = 3
# Parts that boxes and memory never reach.
UNUSED = "mask_embed.", "mask_downsample.", "iou_", "no_memory_positional"
PHASES = {
    "frames": (1, COMMON(steps=2100, batch=8, lr=1e-3, ema=0.995, grad_clip=1.0)),
    "clips": (6, COMMON(steps=600, batch=2, lr=5e-4, ema=0.99, grad_clip=1.0)),
}


def config() -> Sam2VideoConfig:
    """1 M weights. The width is the least that transformers' object pointers allow; the mask decoder's single
    mask is used throughout, so that nothing has to choose among several."""
    grid, channels = SIDE // PATCH, [16, 32, 64, 96]
    backbone = Sam2HieraDetConfig(
        hidden_size=channels[0],
        num_attention_heads=1,
        image_size=[SIDE, SIDE],
        blocks_per_stage=[1, 1, 3, 1],
        embed_dim_per_stage=channels,
        num_attention_heads_per_stage=[1, 2, 2, 4],
        window_size_per_stage=[4, 4, 6, 6],
        window_positional_embedding_background_size=[4, 4],
        global_attention_blocks=[3, 4],
        mlp_ratio=2.0,
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=channels[::-1],
        backbone_feature_sizes=[[grid * scale] * 2 for scale in (4, 2, 1)],
        fpn_hidden_size=WIDTH,
    )
    # It follows worse than the puppet detector finds: see preprocess/segment.py.
    own: dict[str, Any] = {"prompt_every": 1}
    return Sam2VideoConfig(
        **own,
        image_size=SIDE,
        vision_config=vision,
        prompt_encoder_config={
            "hidden_size": WIDTH,
            "image_size": SIDE,
            "patch_size": PATCH,
            "mask_input_channels": 8,
        },
        mask_decoder_config={
            "hidden_size": WIDTH,
            "mlp_dim": 128,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": 32,
            "dynamic_multimask_via_stability": False,
        },
        multimask_output_in_sam=False,
        memory_attention_hidden_size=WIDTH,
        memory_attention_num_layers=2,
        memory_attention_feed_forward_hidden_size=128,
        memory_attention_rope_feat_sizes=[grid, grid],
        memory_attention_dropout=0.0,
        memory_attention_rope_dropout=0.0,
        memory_encoder_hidden_size=WIDTH,
        memory_encoder_output_channels=64,
        mask_downsampler_embed_dim=WIDTH,
        memory_fuser_num_layers=1,
        memory_fuser_embed_dim=WIDTH,
        memory_fuser_intermediate_dim=128,
        memory_fuser_layer_scale_init_value=0.1,
    )


def new_model() -> Sam2VideoModel:
    """Untrained, in evaluation mode: transformers' training mode returns no object score."""
    torch.manual_seed(SEED)
    model = Sam2VideoModel(config()).eval()
    # Where the object score is negative the model blanks the mask, which would then get no gradient.
    torch.nn.init.constant_(model.mask_decoder.pred_obj_score_head.proj_out.bias, 3.0)
    return model


def draw(length: int, clips: Clips, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
    """`length` frames uint8 [T,3,S,S] with one person's masks uint8 [T,S,S] 0/1 and the box float32 [2,2] in the
    first frame; None where nobody large enough is in it."""
    index = int(rng.integers(len(clips.frames)))
    if length > 1 and SITUATIONS[index % len(SITUATIONS)] == "cuts":
        return None
    start = int(rng.integers(clips.frames.shape[1] - length + 1))
    times = range(start, start + length)
    if rng.random() < 0.5:
        times = times[::-1]
    # The same window of all frames, stretched to a square as the segmenter's input is.
    size = clips.frames.shape[2]
    w, h = (int(size * (1 if rng.random() < 0.4 else rng.uniform(0.5, 1))) for _ in range(2))
    x, y = rng.integers(size - w + 1), rng.integers(size - h + 1)
    flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
    labels = [clips.labels[index, t, y : y + h, x : x + w][:, flip] for t in times]
    seen = [p for p in np.unique(labels[0]) if p and (labels[0] == p).sum() > 80]
    if not seen:
        return None
    person = rng.choice(seen)
    strip = np.concatenate([clips.frames[index, t, y : y + h, x : x + w][:, flip] for t in times])
    frames = [
        cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        for frame in np.split(repaint(strip, rng), length)
    ]
    masks = [
        cv2.resize((label == person) * np.uint8(255), (SIDE, SIDE), interpolation=cv2.INTER_AREA) > 127
        for label in labels
    ]
    ys, xs = np.nonzero(labels[0] == person)
    box = np.array([[xs.min(), ys.min()], [xs.max() + 1, ys.max() + 1]], np.float32)
    box += rng.normal(0, 0.04, (2, 2)) * (box[1] - box[0])
    return {
        "frames": np.stack(frames).transpose(0, 3, 1, 2),
        "masks": np.stack(masks).astype(np.uint8),
        "boxes": (box * (SIDE / w, SIDE / h)).astype(np.float32),
    }


def unroll(model: Any, frames: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """What the forward of a `Sam2VideoModel` computes frame by frame, for many clips at once and with gradients.

    frames [B,T,3,S,S] normalised, boxes [B,2,2] in pixels of the first frame. Returns mask logits [B,T,S,S]
    and object score logits [B,T].
    """
    count, length = frames.shape[:2]
    features = model.get_image_features(frames.transpose(0, 1).flatten(0, 1), return_dict=True)
    all_levels = [level.split(count, dim=1) for level in features.fpn_hidden_states]
    places = features.fpn_position_encoding[-1].split(count, dim=1)
    sizes = model.backbone_feature_sizes
    memory: dict[int, dict[str, Tensor]] = {}
    masks, scores = [], []
    for t in range(length):
        levels = [level[t] for level in all_levels]
        maps = [level.permute(1, 2, 0).unflatten(2, tuple(s)) for level, s in zip(levels, sizes, strict=True)]
        if t == 0:
            prompt: Any = boxes[:, None], torch.tensor(CORNERS).expand(count, 1, 2)
            maps[-1] = maps[-1] + model.no_memory_embedding[0, 0][:, None, None]
        else:
            prompt = None, None
            maps[-1] = _remember(model, levels[-1], places[t], memory, t)
        out = model._single_frame_forward(
            image_embeddings=maps, input_points=prompt[0], input_labels=prompt[1], multimask_output=False
        )
        if t + 1 < length:
            stored, place = model._encode_new_memory(
                levels[-1], out.high_res_masks, out.object_score_logits, is_mask_from_pts=t == 0
            )
            memory[t] = {
                "maskmem_features": stored,
                "maskmem_pos_enc": place,
                "object_pointer": out.object_pointer[:, 0],
            }
        masks.append(out.high_res_masks[:, 0])
        scores.append(out.object_score_logits[:, 0, 0])
    return torch.stack(masks, dim=1), torch.stack(scores, dim=1)


def _remember(
    model: Sam2VideoModel, level: Tensor, place: Tensor, memory: dict[int, dict[str, Tensor]], t: int
) -> Tensor:
    """Features [B,C,g,g] of frame t that have attended to the frames before it, the first one being prompted."""
    recent = range(max(1, t - model.num_maskmem + 1), t)
    entries = [(0, memory[0]), *((t - s, memory[s]) for s in recent)]
    stored, places = model._build_memory_attention_inputs(entries, level.device)
    pointers, pointer_places = model._process_object_pointers(
        [t, *(t - s for s in range(t - 1, 0, -1))],
        [memory[s]["object_pointer"] for s in (0, *range(t - 1, 0, -1))],
        model.config.max_object_pointers_in_encoder,
        level.shape[1],
        model.hidden_dim,
        level.device,
    )
    attended = model.memory_attention(
        current_vision_features=level,
        current_vision_position_embeddings=place,
        memory=torch.cat([*stored, pointers]).to(level.dtype),
        memory_posision_embeddings=torch.cat([*places, pointer_places]),
        num_object_pointer_tokens=len(pointers),
    )
    return attended[0].transpose(1, 2).unflatten(2, tuple(model.backbone_feature_sizes[-1]))


def loss(model: Sam2VideoModel, batch: Batch) -> dict[str, Tensor]:
    """Cross-entropy and Dice of the mask where the person shows, cross-entropy of whether they do."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    logits, score = unroll(model, (batch["frames"].float() / 255 - mean) / std, batch["boxes"])
    truth = batch["masks"].float()
    area = truth.sum((2, 3))
    shown = (area > 0).float()
    # Where the model took the person for gone it blanked the mask, and only the score can learn.
    taught = shown * (score > 0)
    pixels = F.binary_cross_entropy_with_logits(logits.clamp(-20, 20), truth, reduction="none").sum((2, 3))
    made = logits.sigmoid()
    dice = 1 - (2 * (made * truth).sum((2, 3)) + 1) / (made.sum((2, 3)) + area + 1)
    total = taught.sum().clamp(min=1)
    # Per pixel of the person, so that small people count as much as large ones.
    edge = (taught * pixels / area.clamp(min=100)).sum() / total
    dice = (taught * dice).sum() / total
    known = F.binary_cross_entropy_with_logits(score, shown)
    hard = logits.detach() > 0
    both, either = (hard & (truth > 0)).sum((2, 3)), (hard | (truth > 0)).sum((2, 3))
    iou = (shown * both / either.clamp(min=1)).sum() / shown.sum()
    return {"loss": edge + dice + 0.5 * known, "edge": edge, "dice": dice, "known": known, "iou": iou}


def make(course: Course, out: Path) -> None:
    """Trains both phases, each in a folder of its own, and writes the model."""
    check_owned(out)
    model = new_model()
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(not any(word in key for word in UNUSED))
    for name, (length, phase) in PHASES.items():
        replace(course, state=course.state / name).train(model, loss, partial(draw, length), phase, SEED, length)
    with owned_folder(out) as tmp:
        model.half().save_pretrained(tmp)


def main(argv: Sequence[str] | None = None) -> int:
    return command("segmenter", __doc__, make, argv)


if __name__ == "__main__":
    sys.exit(main())
