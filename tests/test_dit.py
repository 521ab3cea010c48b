"""The identities of AnimateAnywhere's networks: I1, I3 to I6 and I12 of its facts, on random weights."""

from __future__ import annotations

import pytest
import torch
from dit_nets import REAL, TINY, randomised, tiny_dit
from torch import Tensor

from anycharv_core.errors import UserError
from anycharv_core.models.config import DiTConfig
from anycharv_core.models.dit import DiT, grid_of
from anycharv_core.models.dit_branches import ControlDiT, ReferenceDiT, copy_trunk
from anycharv_core.models.dit_layers import MotionLearner, rope_of
from anycharv_core.models.slots import layout

CFG = DiTConfig.from_dict(TINY)
RANK = 4


def _noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X = _noise(2, 4, 8, 4, 6)  # two slots of 2 x 3 tokens
T = torch.tensor([999, 321])
TEXT = _noise(1, 3, 12, seed=2)
DIT = tiny_dit()


def _reference(seed: int = 4) -> list[Tensor]:
    net = randomised(ReferenceDiT(CFG, 2), 3)
    picture = _noise(1, 4, 4, 6, seed=seed)
    return net(picture, picture / 0.7, TEXT)


def _close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((one - other).abs().max() <= tolerance)


@pytest.mark.parametrize("sides", [(4, 6), (6, 4)])
def test_it_is_diffusers_transformer(sides: tuple[int, int]) -> None:
    from diffusers import CogVideoXTransformer3DModel
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    oracle = CogVideoXTransformer3DModel(**TINY)
    oracle.load_state_dict(DIT.state_dict())
    x = _noise(2, 4, 8, *sides)
    grid = (sides[0] // 2, sides[1] // 2)
    rope = get_3d_rotary_pos_embed(16, None, grid, 2, grid_type="slice", max_size=(16, 16))
    with torch.no_grad():
        wanted = oracle(x, TEXT.expand(2, -1, -1), T, ofs=torch.tensor([2.0]), image_rotary_emb=rope).sample
    made = DIT(x, T, TEXT)
    assert made.shape == (2, 4, 4, *sides)
    assert wanted.abs().max() > 0.5
    assert _close(made, wanted)
    assert all(_close(own, other, 1e-6) for own, other in zip(rope_of(CFG, (2, *grid)), rope, strict=True))


def test_at_full_size_it_has_the_released_weights() -> None:
    from diffusers import CogVideoXTransformer3DModel

    cfg = DiTConfig.from_dict(REAL)
    with torch.device("meta"):
        dit = DiT(cfg)
        oracle = CogVideoXTransformer3DModel(**REAL).state_dict()
        nets = (dit, ControlDiT(cfg, 18), ReferenceDiT(cfg, 18), MotionLearner(cfg, 128))
    assert [sum(p.numel() for p in net.parameters()) for net in nets] == [
        *(5_571_594_880, 2_565_218_816, 2_395_294_208, 132_120_576)
    ]
    own = dit.state_dict()
    assert len(own) == 1028
    assert {key: value.shape for key, value in own.items()} == {key: v.shape for key, v in oracle.items()}


def test_untrained_control_and_learner_change_nothing() -> None:
    control = ControlDiT(CFG, 2)
    copy_trunk(DIT, control)
    learner = MotionLearner(CFG, RANK)
    with torch.no_grad():
        made = DIT(X, T, TEXT, control=control(X, T, TEXT), learner=learner)
    assert torch.equal(made, DIT(X, T, TEXT))


def test_trained_control_and_learner_change_it() -> None:
    control = randomised(ControlDiT(CFG, 2), 5)
    learner = randomised(MotionLearner(CFG, RANK), 6)
    plain = DIT(X, T, TEXT)
    assert not _close(DIT(X, T, TEXT, control=control(X, T, TEXT)), plain, 1e-2)
    assert not _close(DIT(X, T, TEXT, learner=learner), plain, 1e-2)


def test_rows_without_conditions_are_the_base() -> None:
    control, learner = randomised(ControlDiT(CFG, 2), 5), randomised(MotionLearner(CFG, RANK), 6)
    features = [each[1:] for each in control(X, T, TEXT)]
    bank = DIT.project_bank(_reference(), learner)
    mixed = DIT(X, T, TEXT, control=features, bank=bank, learner=learner, plain_rows=1)
    assert _close(mixed[:1], DIT(X[:1], T[:1], TEXT, learner=learner))
    assert _close(mixed[1:], DIT(X[1:], T[1:], TEXT, control=features, bank=bank, learner=learner))
    assert not _close(mixed[1:], DIT(X[1:], T[1:], TEXT, learner=learner), 1e-2)
    plain = DIT(X, T, TEXT, control=[each[:0] for each in features], bank=bank, plain_rows=2)
    assert torch.equal(plain, DIT(X, T, TEXT))


def test_another_picture_changes_the_result() -> None:
    one, other = (DIT(X, T, TEXT, bank=DIT.project_bank(_reference(seed))) for seed in (4, 5))
    assert not _close(one, other, 1e-3)


def test_only_differences_of_times_count() -> None:
    grid, later = grid_of(X), 5
    tokens = _reference()
    bank, moved = DIT.project_bank(tokens), []
    for block, each in zip(DIT.blocks(), tokens, strict=False):
        flat = each.flatten(1, 2)
        rope = rope_of(CFG, (1, *each.shape[1:3]), first=later - 1)
        moved.append((block.attn1.keys(flat, rope, None), block.attn1.values(flat, None)))
    assert not _close(bank[0][0], moved[0][0], 1e-2)
    # The text is not turned, and so would see on what times the video lies: it is left out.
    nothing = TEXT[:, :0]
    made, still = (
        DIT(X, T, nothing, bank=each, rope=rope_of(CFG, grid, first=first))
        for each, first in ((moved, later), (bank, 0))
    )
    assert _close(made, still)


def test_branches_begin_with_the_weights_of_the_base() -> None:
    base = DIT.state_dict()
    for branch in (ControlDiT(CFG, 2), ReferenceDiT(CFG, 2)):
        copy_trunk(DIT, branch)
        for key, value in branch.state_dict().items():
            assert torch.equal(value, torch.zeros_like(value) if key.startswith("zero.") else base[key]), key


def test_what_a_reference_never_reads_gets_no_gradient() -> None:
    net = ReferenceDiT(CFG, 2)
    picture = _noise(1, 4, 4, 6)
    sum(each.sum() for each in net(picture, picture, TEXT)).backward()
    idle = {p for module in net.idle_modules() for p in module.parameters()}
    assert idle
    assert all((p.grad is None) == (p in idle) for p in net.parameters())


@pytest.mark.parametrize("plain", [0, 1, 2])
def test_the_attention_map_is_that_of_the_block(plain: int) -> None:
    learner = randomised(MotionLearner(CFG, RANK), 6)
    bank = DIT.project_bank(_reference(), learner)
    _, kept = DIT.trace(X, T, TEXT, bank=bank, learner=learner, plain_rows=plain, blocks=(1, 3))
    queries = torch.tensor([[0, 11], [7, 3]])
    for index, hidden in kept.items():
        seen: list[tuple[Tensor, ...]] = []

        def watch(q: Tensor, k: Tensor, v: Tensor, heads: int, seen: list[tuple[Tensor, ...]] = seen) -> Tensor:
            q, k = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k))
            seen.append(tuple((q @ k.mT / 4).softmax(-1)))
            return v[:, :1].expand(-1, q.shape[2], -1)

        rope, time = rope_of(CFG, grid_of(X)), DIT.embed_time(T, X.dtype)
        own = bank[index] if index < len(bank) else None
        DIT.blocks()[index](hidden, time, 3, rope, watch, learner.of(index), own, plain)
        rows = [row for call in seen for row in call]
        made = DIT.attention_map(
            index, hidden, T, queries, grid_of(X), bank=bank, learner=learner, plain_rows=plain
        )
        for row, places, own_map in zip(rows, queries, made, strict=True):
            assert _close(own_map, row[:, 3 + places, 3:15], 1e-5)


def test_checkpointing_gives_the_same_gradients() -> None:
    net, learner = tiny_dit(), randomised(MotionLearner(CFG, RANK), 6).requires_grad_(True)
    grads = []
    for net.checkpointing in (False, True):
        learner.zero_grad()
        made, kept = net.trace(X, T, TEXT, learner=learner, blocks=(2,))
        seen = net.attention_map(2, kept[2], T, torch.tensor([[0], [5]]), grid_of(X), learner=learner)
        (made.square().sum() + seen.square().sum()).backward()
        grads.append([p.grad.clone() for p in learner.parameters() if p.grad is not None])
    assert len(grads[0]) == len(list(learner.parameters()))
    assert all(map(torch.equal, *grads))


def test_other_models_are_refused() -> None:
    with pytest.raises(UserError, match="CogVideoX-5b-I2V"):
        DiTConfig.from_dict({key: value for key, value in TINY.items() if key != "patch_size_t"})
    with pytest.raises(UserError, match="image-to-video"):
        DiTConfig.from_dict(TINY | {"in_channels": 4})
    with pytest.raises(UserError, match="use_rotary_positional_embeddings"):
        DiTConfig.from_dict(TINY | {"use_rotary_positional_embeddings": False})
    with pytest.raises(UserError, match="256 pixels"):
        rope_of(CFG, (1, 4, 17))


def test_frames_lie_in_slots_of_eight() -> None:
    assert [layout(frames)[:2] for frames in (8, 9, 48, 49, 81)] == [(2, 0), (3, 1), (12, 0), (13, 1), (21, 1)]
    assert layout(17).slots == (range(0, 1), range(1, 9), range(9, 17))
    assert layout(16).slots == (range(0, 8), range(8, 16))
    for frames, nearest in ((12, "9 and 16"), (47, "41 and 48"), (77, "73 and 80")):
        with pytest.raises(UserError, match=nearest):
            layout(frames)
