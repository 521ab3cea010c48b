"""A SAM2 video model small enough to run in milliseconds, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

IMAGE_SIZE = 64


def tiny_config(image_size: int = IMAGE_SIZE, **changes: Any) -> Any:
    """A `Sam2VideoConfig` for pictures of `image_size` pixels (a multiple of 32), about 0.1 M weights.

    Every size that transformers keeps twice is worked out from `image_size` here: its own defaults only
    fit 1024 pixels.
    """
    from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VisionConfig

    patch, width = 16, 128  # less than 128 and transformers does not split object pointers into memories of 64
    grid = image_size // patch
    channels = [8, 16, 32, 64]
    backbone = Sam2HieraDetConfig(
        hidden_size=channels[0],
        num_attention_heads=1,
        image_size=[image_size, image_size],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=channels,
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 4, 4, 2],
        window_positional_embedding_background_size=[4, 4],
        global_attention_blocks=[3],  # not one of those that pool, the first of a stage
        mlp_ratio=2.0,
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=channels[::-1],
        backbone_feature_sizes=[[grid * scale] * 2 for scale in (4, 2, 1)],
        fpn_hidden_size=width,
    )
    settings = {
        "image_size": image_size,
        "vision_config": vision,
        "prompt_encoder_config": {
            "hidden_size": width,
            "image_size": image_size,
            "patch_size": patch,
            "mask_input_channels": 8,
        },
        "mask_decoder_config": {
            "hidden_size": width,
            "mlp_dim": 64,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 32,
        },
        "memory_attention_hidden_size": width,
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 64,
        "memory_attention_rope_feat_sizes": [grid, grid],
        "memory_encoder_hidden_size": width,
        "memory_encoder_output_channels": 64,  # the only number memory attention takes
        "mask_downsampler_embed_dim": width,
        "memory_fuser_num_layers": 1,
        "memory_fuser_embed_dim": width,
        "memory_fuser_intermediate_dim": 64,
    }
    return Sam2VideoConfig(**settings | changes)


def save_tiny(folder: Path, score: float = 5.0, **changes: Any) -> Path:
    """Save a tiny model as `Sam2VideoModel.save_pretrained` does, and return its folder.

    It finds the person in every frame where `score` is high and in none where it is low.
    """
    import torch
    from transformers import Sam2VideoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Sam2VideoModel(tiny_config(**changes))
        # As made, the parts hardly depend on their input.
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.data.mul_(4)
    torch.nn.init.constant_(model.mask_decoder.pred_obj_score_head.proj_out.bias, score)
    model.save_pretrained(folder)
    return folder
