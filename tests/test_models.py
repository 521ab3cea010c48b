"""Identities the networks must obey whatever their weights."""

import weakref

import pytest
import torch

from anycharv_core import UserError
from anycharv_core.models import (
    DenoisingUNet,
    MotionConfig,
    PatchCodec,
    PoseGuider,
    PoseGuiderConfig,
    ReferenceNet,
    UNetConfig,
    layers,
)
from anycharv_core.models.layers import sdpa

FRAMES, SIZE, TOKEN = 3, 8, 12


def config(motion: bool, in_channels: int) -> UNetConfig:
    return UNetConfig(
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(32, 64),
        down_attention=(True, False),
        up_attention=(False, True),
        layers_per_block=1,
        heads=(4, 4),
        cross_attention_dim=TOKEN,
        motion=MotionConfig(heads=4, max_len=6, mid_block=True) if motion else None,
    )


@pytest.fixture(scope="module")
def unet() -> DenoisingUNet:
    torch.manual_seed(0)
    return DenoisingUNet(config(True, 9)).requires_grad_(False)


@pytest.fixture(scope="module")
def reference() -> ReferenceNet:
    torch.manual_seed(1)
    return ReferenceNet(config(False, 4)).requires_grad_(False)


def inputs(rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(rows, 9, SIZE, SIZE, generator=g),
        "t": torch.full((1,), 500),
        "image_embeds": torch.randn(rows, TOKEN, generator=g),
        "pose": torch.randn(rows, 32, SIZE, SIZE, generator=g),
    }


def bank_of(unet: DenoisingUNet, reference: ReferenceNet, seed: int) -> list:
    g = torch.Generator().manual_seed(seed)
    tokens = reference(torch.randn(1, 4, SIZE, SIZE, generator=g), torch.randn(1, TOKEN, generator=g))
    return unet.project_bank(tokens)


def test_cross_attention_over_one_token_is_constant(unet: DenoisingUNet) -> None:
    attention = unet.spatial_blocks()[0].attn2
    x, token = torch.randn(2, 16, 32), torch.randn(2, TOKEN)
    q, k, v = attention.to_q(x), attention.to_k(token[:, None]), attention.to_v(token[:, None])
    q, k, v = (y.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for y in (q, k, v))
    full = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    constant = attention.of_one_token(token)[:, None].expand(-1, 16, -1)
    torch.testing.assert_close(attention.to_out[0](full), constant)


def test_zero_token_leaves_only_the_bias(unet: DenoisingUNet) -> None:
    attention = unet.spatial_blocks()[0].attn2
    assert torch.equal(attention.of_one_token(torch.zeros(1, TOKEN))[0], attention.to_out[0].bias)


def test_unconditional_rows_ignore_the_bank(unet: DenoisingUNet, reference: ReferenceNet) -> None:
    args, plain = inputs(2 * FRAMES), FRAMES
    first, second = (
        unet(**args, bank=bank_of(unet, reference, seed), frames=FRAMES, plain_rows=plain) for seed in (1, 2)
    )
    assert torch.equal(first[:plain], second[:plain])
    assert (first[plain:] - second[plain:]).abs().max() > 1e-3
    alone = unet(**{k: v[:plain] if len(v) > 1 else v for k, v in args.items()}, bank=None, frames=FRAMES)
    torch.testing.assert_close(first[:plain], alone, atol=1e-5, rtol=1e-5)


def test_a_bank_serves_each_clip_its_own_reference(unet: DenoisingUNet, reference: ReferenceNet) -> None:
    banks = [bank_of(unet, reference, seed) for seed in (1, 2)]
    layers = zip(*banks, strict=True)
    both = [tuple(torch.cat(pair) for pair in zip(*layer, strict=True)) for layer in layers]
    args = inputs(2 * FRAMES)
    together = unet(**args, bank=both, frames=FRAMES)
    second = {k: v[FRAMES:] if len(v) > 1 else v for k, v in args.items()}
    alone = unet(**second, bank=banks[1], frames=FRAMES)
    torch.testing.assert_close(together[FRAMES:], alone, atol=1e-5, rtol=1e-5)


def test_only_motion_modules_mix_frames(unet: DenoisingUNet) -> None:
    args = inputs(FRAMES)
    changed = args | {"x": args["x"].clone()}
    changed["x"][0] += 1

    def effect_on_last_frame(motion: bool) -> float:
        a, b = (unet(**given, bank=None, frames=FRAMES, motion=motion) for given in (args, changed))
        return (a[-1] - b[-1]).abs().max().item()

    assert effect_on_last_frame(motion=False) < 1e-5
    assert effect_on_last_frame(motion=True) > 1e-4


def test_only_a_reference_net_keeps_its_tokens(unet: DenoisingUNet, reference: ReferenceNet) -> None:
    made: list[weakref.ref] = []
    kept: list[int] = []

    def count(*_: object) -> None:
        kept.append(sum(ref() is not None for ref in made))

    hooks = [
        block.norm1.register_forward_hook(lambda *call: made.append(weakref.ref(call[2])))
        for block in (*unet.spatial_blocks(), *reference.spatial_blocks())
    ]
    hooks.append(unet.conv_norm_out.register_forward_pre_hook(count))
    tokens = reference(torch.randn(1, 4, SIZE, SIZE), torch.randn(1, TOKEN))
    assert [ref() for ref in made] == tokens
    del tokens
    unet(**inputs(FRAMES), bank=bank_of(unet, reference, 1), frames=FRAMES)
    for hook in hooks:
        hook.remove()
    assert len(made) == 3 * len(unet.spatial_blocks()) and kept == [0]


def test_the_attention_passed_in_is_the_one_called(unet: DenoisingUNet, reference: ReferenceNet) -> None:
    called: list[tuple[int, ...]] = []

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
        called.append((len(q), q.shape[1], k.shape[1], heads))
        return sdpa(q, k, v, heads)

    args, bank = inputs(2 * FRAMES), bank_of(unet, reference, 1)
    plain = unet(**args, bank=bank, frames=FRAMES, plain_rows=FRAMES)
    assert torch.equal(plain, unet(**args, bank=bank, frames=FRAMES, plain_rows=FRAMES, attention=attention))
    spatial = [call for call in called if call[0] == FRAMES]
    temporal = [call for call in called if call[1] == FRAMES]
    assert len(called) == len(spatial) + len(temporal)
    # With and without the bank at every spatial block; two attentions in the motion module of every layer and of
    # the middle.
    assert len(spatial) == 2 * len(unet.spatial_blocks()) and len(temporal) == 2 * 7
    assert sum(keys == 2 * queries for _, queries, keys, _ in spatial) == len(spatial) / 2
    called.clear()
    reference(torch.randn(1, 4, SIZE, SIZE), torch.randn(1, TOKEN), attention=attention)
    assert len(called) == len(reference.spatial_blocks())


def test_more_rows_than_a_card_takes_at_once_are_attended_to_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(3, 7, 5, 8).unbind()
    whole = sdpa(q, k, v, 2)
    monkeypatch.setattr(layers, "MOST_ROWS", 3)
    assert torch.allclose(sdpa(q, k, v, 2), whole, atol=1e-6)


def test_what_the_image_adds_may_be_projected_once(unet: DenoisingUNet, reference: ReferenceNet) -> None:
    args, bank = inputs(2 * FRAMES), bank_of(unet, reference, 1)
    pair = torch.cat([torch.zeros(1, TOKEN), args.pop("image_embeds")[:1]])
    options = {"bank": bank, "frames": FRAMES, "plain_rows": FRAMES}
    expected = unet(**args, image_embeds=pair.repeat_interleave(FRAMES, dim=0), **options)
    torch.testing.assert_close(unet(**args, image_embeds=unet.project_image(pair), **options), expected)
    torch.testing.assert_close(unet(**args, image_embeds=pair, **options), expected)


def test_a_bank_can_be_read_again(unet: DenoisingUNet, reference: ReferenceNet) -> None:
    bank = tuple(bank_of(unet, reference, 1))
    first, second = (unet(**inputs(FRAMES), bank=bank, frames=FRAMES) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", [DenoisingUNet, ReferenceNet])
def test_idle_modules_are_those_without_a_gradient(kind: type) -> None:
    net = kind(config(kind is DenoisingUNet, 9 if kind is DenoisingUNet else 4))
    if kind is DenoisingUNet:
        net(**inputs(FRAMES), bank=None, frames=FRAMES).sum().backward()
    else:
        sum(x.square().sum() for x in net(torch.randn(1, 4, 8, 8), torch.randn(1, TOKEN))).backward()
    idle = {parameter for module in net.idle_modules() for parameter in module.parameters()}
    assert idle == {parameter for parameter in net.parameters() if parameter.grad is None}


def test_odd_latent_sizes_keep_their_size(unet: DenoisingUNet) -> None:
    x = torch.randn(1, 9, 7, 5)
    out = unet(x, torch.zeros(1), torch.zeros(1, TOKEN), torch.zeros(1, 32, 7, 5), bank=None)
    assert out.shape == (1, 4, 7, 5)


def test_too_long_a_window_is_refused(unet: DenoisingUNet) -> None:
    with pytest.raises(UserError, match="at most 6 frames"):
        unet(**inputs(7), bank=None, frames=7)


def test_pose_guider_halves_per_level() -> None:
    guider = PoseGuider(PoseGuiderConfig(embedding_channels=32, block_out_channels=(4, 8, 16)))
    assert guider(torch.rand(2, 3, 32, 24)).shape == (2, 32, 8, 6)


def test_operations_are_the_only_source_of_weights() -> None:
    made = []

    class Recorder:
        def __getattr__(self, name: str):
            def build(*args, **kwargs):
                made.append(getattr(torch.nn, name)(*args, **kwargs))
                return made[-1]

            return build

    net = DenoisingUNet(config(True, 9), Recorder())
    from_operations = {id(p) for module in made for p in module.parameters()}
    assert {id(p) for p in net.parameters()} == from_operations


def test_unsupported_settings_are_named() -> None:
    with pytest.raises(UserError, match="resnet_time_scale_shift='scale_shift'"):
        UNetConfig.from_dict({"resnet_time_scale_shift": "scale_shift"})
    with pytest.raises(UserError, match="block_out_channels"):
        UNetConfig.from_dict({})


def test_patch_codec_keeps_what_its_components_span() -> None:
    torch.manual_seed(0)
    codec = PatchCodec.from_config({"latent_channels": 6, "block_out_channels": [1, 1, 1]})
    # Pictures made of five fixed patches need five components, whatever their amounts.
    patches = torch.randn(5, 3, 4, 4)
    pictures = torch.nn.functional.conv_transpose2d(torch.randn(40, 5, 4, 4), patches, stride=4)
    codec.fit(pictures, torch.ones(40, 1, 4, 4))
    latents = codec.encode(pictures).latent_dist.mean
    assert latents.shape == (40, 6, 4, 4)
    torch.testing.assert_close(codec.decode(latents).sample, pictures, atol=0.1, rtol=0.02)
    squares = latents.square().mean((0, 2, 3))
    assert (squares[:-1] >= squares[1:] - 1e-6).all()
