"""The VGG loss (AnimateAnywhere, equation 6)."""

from pathlib import Path

import pytest
import torch
from tiny_vgg import write_vgg

from anycharv_core.errors import UserError
from training.perceptual import Perceptual


@pytest.fixture(scope="module")
def perceptual(tmp_path_factory: pytest.TempPathFactory) -> Perceptual:
    return Perceptual(write_vgg(tmp_path_factory.mktemp("vgg") / "vgg16.pth"))


def test_equal_pictures_are_no_distance_apart_and_hands_count_twice(perceptual: Perceptual) -> None:
    made, truth = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    none, all_over, some = torch.zeros(2, 1, 32, 32), torch.ones(2, 1, 32, 32), torch.zeros(2, 1, 32, 32)
    some[:, :, :9, 3:20] = 1
    assert (perceptual(truth, truth, some) == 0).all()
    plain = perceptual(made, truth, none)
    assert plain.shape == (2,) and (plain > 0).all()
    torch.testing.assert_close(perceptual(made, truth, all_over), 2 * plain)
    assert (perceptual(made, truth, some) > plain).all()
    made.requires_grad_()
    perceptual(made, truth, some).sum().backward()
    assert made.grad is not None and made.grad.abs().sum() > 0


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(UserError, match=r"does not hold torchvision's VGG16"):
        Perceptual(path)
