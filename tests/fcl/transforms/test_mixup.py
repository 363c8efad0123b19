from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss
from monai.networks import one_hot
from monai.transforms import MixUp

from fcl.transforms import BatchCompose, BatchMixUp, BatchRandIntensity


def batch(size: int = 6, spatial: tuple[int, ...] = (4, 5), classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.rand(size, 1, *spatial), torch.randint(0, classes, (size, 1, *spatial))


@pytest.mark.parametrize(("size", "spatial"), [(6, (4, 5)), (1, (4, 5)), (3, (4, 5, 2))])
@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_it_equals_that_of_monai(alpha: float, size: int, spatial: tuple[int, ...]) -> None:
    image, label = batch(size, spatial)
    ours = BatchMixUp(alpha, 3)(image, label, torch.Generator().manual_seed(5))
    draw = np.random.RandomState(int(torch.randint(2**32, (1,), generator=torch.Generator().manual_seed(5))))
    monai = MixUp(size, alpha)
    monai._params = (torch.from_numpy(draw.beta(alpha, alpha, size)).float(), draw.permutation(size), [])
    theirs = monai(image, one_hot(label, 3), randomize=False)
    for own, other in zip(ours, theirs, strict=True):
        assert torch.allclose(own, other, atol=1e-6)


def test_soft_labels_are_shares_of_the_classes_and_move_with_the_image() -> None:
    image = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 2, 2)
    label = image.long()
    mixed, soft = BatchMixUp(1.0, 5)(image, label, torch.Generator().manual_seed(1))
    assert soft.shape == (5, 5, 2, 2)
    assert torch.allclose(soft.sum(dim=1), torch.ones(5, 2, 2))
    # Classes stand for the grey values here: the expected class is the mixed grey value.
    assert torch.allclose((soft * torch.arange(5.0).view(1, 5, 1, 1)).sum(dim=1, keepdim=True), mixed, atol=1e-6)
    assert not torch.allclose(mixed, image)


def test_small_alpha_leaves_slices_whole() -> None:
    image, label = batch(64)
    _, soft = BatchMixUp(1e-3, 3)(image, label, torch.Generator().manual_seed(0))
    assert ((soft < 1e-6) | (soft > 1 - 1e-6)).float().mean() > 0.95


def test_same_generator_state_same_batch_and_none_for_no_label() -> None:
    image, label = batch()
    transform = BatchCompose([BatchRandIntensity(brightness=0.2), BatchMixUp(0.4, 3)])
    first, again, other = (transform(image, label, torch.Generator().manual_seed(seed)) for seed in (2, 2, 3))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    alone, nothing = transform(image, None, torch.Generator().manual_seed(2))
    assert torch.equal(alone, first[0])
    assert nothing is None


def test_with_squared_prediction_the_loss_is_least_at_the_soft_label() -> None:
    torch.manual_seed(0)
    soft = torch.rand(2, 3, 4, 4).softmax(dim=1)
    logits = soft.log().requires_grad_()
    loss = DiceCELoss(include_background=False, softmax=True, batch=True, squared_pred=True)
    (gradient,) = torch.autograd.grad(loss(logits, soft), logits)
    assert gradient.abs().max() < 1e-6
    plain = DiceCELoss(include_background=False, softmax=True, batch=True)
    (gradient,) = torch.autograd.grad(plain(logits, soft), logits)
    assert gradient.abs().max() > 1e-4


@pytest.mark.parametrize(("alpha", "classes"), [(0.0, 3), (-1.0, 3), (float("nan"), 3), (0.2, 1)])
def test_wrong_values_are_refused(alpha: float, classes: int) -> None:
    with pytest.raises(ValueError, match="alpha must be above 0 and num_classes at least 2"):
        BatchMixUp(alpha, classes)
