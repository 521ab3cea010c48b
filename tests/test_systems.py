"""What a system answers about itself."""

from __future__ import annotations

import pytest
import torch

from anycharv_core import UserError
from anycharv_core.systems import SYSTEMS, System, system_of
from tests.conftest import UNET


@pytest.mark.parametrize(("name", "channels"), [("anycharv", 9), ("animate_anyone", 4)])
def test_the_channels_of_the_denoising_unet_tell_the_system(name: str, channels: int) -> None:
    system = system_of(UNET | {"in_channels": channels})
    assert system is SYSTEMS[name] and system.in_channels(4) == channels
    noisy, scene, mask = torch.zeros(2, 4, 3, 3), torch.ones(2, 4, 3, 3), torch.full((2, 1, 3, 3), 2.0)
    made = system.unet_input(noisy, scene, mask)
    assert [made[0, i, 0, 0].item() for i in range(channels)] == [0, 0, 0, 0, 1, 1, 1, 1, 2][:channels]


@pytest.mark.parametrize(
    "blocks", [{"reference_blocks": "mid_up"}, {"object_blending": {"channels": 1, "kernel": 3, "bias": -2}}]
)
def test_blocks_of_its_own_tell_animate_anyone_2(blocks: dict) -> None:
    assert system_of(UNET | blocks | {"in_channels": 9}) is SYSTEMS["animate_anyone_2"]


def test_a_unet_of_no_system_is_refused() -> None:
    with pytest.raises(UserError, match="takes 5 channels"):
        system_of(UNET | {"in_channels": 5})


@pytest.mark.parametrize("system", SYSTEMS.values())
def test_every_system_has_both_recipes_and_its_own_command(system: System) -> None:
    assert {"default", "official"} <= set(system.recipes)
    with pytest.raises(UserError, match="no recipe 'other'; use one of 'default', 'official'"):
        system.recipe("other")
    system.check_command(system.command, "model")
    with pytest.raises(UserError, match=f"of {system.title}, which .* use 'anycharv {system.command}'"):
        system.check_command("another", "model")
