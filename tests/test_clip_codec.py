"""The codec of clips: frames and latents as CogVideoX's VAE has them, and a linear code that fits what it saw."""

from __future__ import annotations

import pytest
import torch

from anycharv_core.errors import UserError
from anycharv_core.models.clip_codec import ClipCodec
from anycharv_core.models.slots import layout

CONFIG = {"_class_name": "ClipCodec", "latent_channels": 6, "block_out_channels": [4, 8, 8]}


def _clip(frames: int) -> torch.Tensor:
    """Colours that drift: two numbers a patch tell all of it."""
    generator = torch.Generator().manual_seed(frames)
    base, drift = torch.randn(2, 2, 3, 1, 8, 8, generator=generator)
    ramp = torch.arange(frames).reshape(1, 1, -1, 1, 1) % 4 - 1.5
    coarse = (base + 0.1 * ramp * drift)[..., ::4, ::4]
    return coarse.repeat_interleave(4, -1).repeat_interleave(4, -2)


@pytest.mark.parametrize("frames", [1, 8, 9, 16, 17])
def test_it_gives_back_as_many_frames_as_it_got(frames: int) -> None:
    codec = ClipCodec.from_config(CONFIG)
    with torch.no_grad():
        latents = codec.encode(torch.zeros(2, 3, frames, 16, 8)).latent_dist.mode()
        assert latents.shape == (2, 6, layout(frames).latents, 4, 2)
        assert codec.decode(latents).sample.shape == (2, 3, frames, 16, 8)


@pytest.mark.parametrize("frames", [8, 9])
def test_what_it_was_fitted_to_comes_back(frames: int) -> None:
    # Of both signs, so that the mean of every patch is 0: the codec keeps it by channel alone.
    codec, pixels = ClipCodec.from_config(CONFIG), torch.cat([_clip(frames), -_clip(frames)])
    codec.fit(pixels, torch.ones(4, 1, layout(frames).latents, 2, 2))
    with torch.no_grad():
        latents = codec.encode(pixels).latent_dist.mean
        made = codec.decode(latents).sample
    assert (made - pixels).abs().max() < 1e-4
    assert latents.square().mean() == pytest.approx(1, abs=1e-3)


def test_refinement_starts_with_nothing_and_sees_each_frame() -> None:
    codec = ClipCodec.from_config(CONFIG)
    latents = torch.randn(1, 6, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        linear = codec.synthesis(latents)
        assert torch.equal(codec.decode(latents).sample, linear)
        codec.refinement[-1].weight.normal_(generator=torch.Generator().manual_seed(1))
        added = codec.decode(latents).sample - linear
    assert not torch.allclose(added[:, :, 0], added[:, :, 1], atol=1e-3)


def test_another_codecs_config_is_refused() -> None:
    with pytest.raises(UserError, match="latent_channels"):
        ClipCodec.from_config({"block_out_channels": [4]})
    with pytest.raises(UserError, match="temporal_compression_ratio"):
        ClipCodec.from_config(CONFIG | {"temporal_compression_ratio": 8})
