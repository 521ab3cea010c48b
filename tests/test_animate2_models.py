"""Identities of Animate Anyone 2's networks, which hold whatever their weights."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from anycharv_core import UserError
from anycharv_core.models import (
    BlendingConfig,
    DenoisingUNet,
    MotionConfig,
    ObjectGuider,
    PoseGuider,
    PoseGuiderConfig,
    ReferenceNet,
    UNetConfig,
)
from anycharv_core.systems.animate_anyone import SD15

TOKEN, FRAMES, SIZE = 12, 2, 9  # an odd size, so that levels round
CFG = UNetConfig(
    in_channels=9,
    out_channels=4,
    block_out_channels=(32, 64, 64),
    down_attention=(True, True, False),
    up_attention=(False, True, True),
    layers_per_block=1,
    heads=(4, 4, 4),
    cross_attention_dim=TOKEN,
    motion=MotionConfig(heads=4, max_len=6, mid_block=True),
    reference_blocks="mid_up",
)
GUIDER = PoseGuiderConfig(32, block_out_channels=(8, 16, 32))


def made(cfg: UNetConfig = CFG) -> DenoisingUNet:
    torch.manual_seed(0)
    return DenoisingUNet(cfg).requires_grad_(False)


def blended(base: DenoisingUNet, bias: float = 0.0, trained: bool = False) -> DenoisingUNet:
    """The base network with blendings, fresh or with random weights."""
    unet = DenoisingUNet(replace(base.cfg, object_blending=BlendingConfig(bias))).requires_grad_(False)
    unet.load_state_dict(base.state_dict(), strict=False)
    for each in unet.blendings() if trained else ():
        torch.nn.init.normal_(each.conv.weight)
    return unet


@pytest.fixture(scope="module")
def base() -> DenoisingUNet:
    return made()


def inputs(rows: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(rows, 9, SIZE, SIZE, generator=g),
        "t": torch.full((1,), 500),
        "image_embeds": torch.randn(rows, TOKEN, generator=g),
        "pose": torch.randn(rows, 32, SIZE, SIZE, generator=g),
    }


def objects_of(rows: int) -> list[Tensor]:
    torch.manual_seed(2)
    with torch.no_grad():
        return ObjectGuider(4, CFG.block_out_channels)(torch.randn(rows, 4, SIZE, SIZE))


def run(unet: DenoisingUNet, rows: int = FRAMES, **conditions: object) -> Tensor:
    return unet(**inputs(rows), bank=None, frames=FRAMES, **conditions)


def test_the_published_size_has_the_papers_parameters() -> None:
    sd15 = SD15 | {"in_channels": 9, "object_blending": {"channels": 1}, "reference_blocks": "mid_up"}
    with torch.device("meta"):
        assert sum(p.numel() for p in ObjectGuider(4, (320, 640, 1280, 1280)).parameters()) == 23_976_640
        unet = DenoisingUNet(UNetConfig.from_dict(sd15))
        guider = PoseGuider(PoseGuiderConfig(320, block_out_channels=(16, 32, 96, 256), depth_modulation=True))
    assert sum(p.numel() for n, p in unet.named_parameters() if ".blendings." in n) == 144_010
    assert len(unet.blendings()) == 10 == len(unet.reading_blocks()) and len(unet.spatial_blocks()) == 16
    modulation = guider.depth_modulation
    assert modulation is not None and sum(p.numel() for p in modulation.depth.parameters()) == 348_592
    assert sum(p.numel() for p in modulation.temporal_conv.parameters()) == 1_769_728


def test_without_objects_the_network_is_the_one_without_the_branch(base: DenoisingUNet) -> None:
    assert torch.equal(run(blended(base, trained=True)), run(base))


def test_rows_without_an_object_do_not_notice_those_with_one(base: DenoisingUNet) -> None:
    unet, rows = blended(base, trained=True), 2 * FRAMES
    some = torch.tensor([0.0, 0.0, 1.0, 1.0]).reshape(-1, 1, 1, 1)
    mixed = run(unet, rows, objects=objects_of(rows), holds=some)
    none = run(unet, rows, objects=objects_of(rows), holds=torch.zeros_like(some))
    assert torch.equal(mixed[:FRAMES], none[:FRAMES]) and torch.equal(none, run(base, rows))
    assert not torch.equal(mixed[FRAMES:], none[FRAMES:])


def test_a_fresh_gate_is_half_open_and_one_of_minus_infinity_is_shut(base: DenoisingUNet) -> None:
    unet, ones = blended(base), torch.ones(FRAMES, 1, 1, 1)
    fresh = unet.blendings()[0]
    objects = objects_of(FRAMES)
    assert (fresh.alpha(torch.randn_like(objects[fresh.level]), objects[fresh.level]) == 0.5).all()
    assert not torch.equal(run(unet, objects=objects, holds=ones), run(base))
    for each in unet.blendings():
        each.conv.bias.fill_(-math.inf)
    assert torch.equal(run(unet, objects=objects, holds=ones), run(base))


def test_fresh_depth_modules_change_nothing_and_old_files_load() -> None:
    torch.manual_seed(0)
    plain = PoseGuider(GUIDER)
    fresh = PoseGuider(replace(GUIDER, depth_modulation=True))
    lacking = fresh.load_state_dict(plain.state_dict(), strict=False)
    assert not lacking.unexpected_keys and all(key.startswith("depth_modulation.") for key in lacking.missing_keys)
    pose, depth = torch.rand(4, 3, 16, 20), torch.rand(4, 1, 16, 20)
    with torch.no_grad():
        assert torch.equal(fresh(pose, depth, frames=4), plain(pose)) and torch.equal(fresh(pose), plain(pose))


def test_the_convolution_over_time_keeps_to_its_video() -> None:
    torch.manual_seed(0)
    guider = PoseGuider(replace(GUIDER, depth_modulation=True)).requires_grad_(False)
    for weight in guider.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    pose, depth = torch.rand(2, 3, 3, 16, 20), torch.rand(2, 3, 1, 16, 20)
    other = torch.stack([pose[0], torch.rand_like(pose[1])])
    first, second = (guider(each.flatten(0, 1), depth.flatten(0, 1), frames=3) for each in (pose, other))
    assert torch.equal(first[:3], second[:3]) and not torch.equal(first[3:], second[3:])
    still = guider(pose[0, :1].repeat(3, 1, 1, 1), depth[0, :1].repeat(3, 1, 1, 1), frames=3)
    assert torch.equal(still, still[:1].expand_as(still))
    alone = guider(pose[0], depth[0])
    assert not torch.equal(alone, first[:3])  # frame-wise, nothing is mixed
    assert torch.equal(guider(pose[0].flip(0), depth[0].flip(0)).flip(0), alone)
    assert not torch.equal(guider(pose[0]), alone)


def test_the_reference_is_read_in_the_middle_and_on_the_way_up_alone(base: DenoisingUNet) -> None:
    torch.manual_seed(3)
    plain = replace(CFG, motion=None, reference_blocks="all", in_channels=4)
    reference = ReferenceNet(plain).requires_grad_(False)
    embed = torch.randn(1, TOKEN)
    banks = [base.project_bank(reference(torch.randn(1, 4, SIZE, SIZE), embed)) for _ in range(2)]
    assert len(banks[0]) == 5 and len(base.spatial_blocks()) == 7
    skips: list[list[Tensor]] = []
    handles = [
        stage.register_forward_hook(lambda _, __, result: skips[-1].append(result[0]))
        for stage in base.down_blocks
    ]
    results = []
    for bank in banks:
        skips.append([])
        results.append(base(**inputs(FRAMES), bank=bank, frames=FRAMES))
    for handle in handles:
        handle.remove()
    assert all(map(torch.equal, *skips)) and not torch.equal(*results)


def test_a_reference_network_has_no_blending() -> None:
    with pytest.raises(UserError, match="object blending"):
        ReferenceNet(replace(CFG, motion=None, object_blending=BlendingConfig()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference_blocks": "down"}, "'all', 'mid_up'"),
        ({"object_blending": {"channels": 320}}, "channels"),
        ({"object_blending": {"bias": "low"}}, "a number"),
    ],
)
def test_configs_that_ask_for_something_else_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        UNetConfig.from_dict(SD15 | change)
    with pytest.raises(UserError, match="not divisible"):
        PoseGuiderConfig.from_dict(
            {"conditioning_embedding_channels": 8, "block_out_channels": [8, 16], "depth_modulation": True}
        )
