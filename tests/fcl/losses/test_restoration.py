"""RestorationLoss against loops over patches and voxels."""

from __future__ import annotations

import pytest
import torch

from fcl.losses import RestorationLoss
from fcl.losses.restoration import standardised_patches


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("shape", "patch"), [((2, 1, 8, 12), 4), ((1, 2, 4, 4, 8), 2)])
def test_patches_are_standardised_one_by_one(shape, patch):
    image = images(*shape)
    result = standardised_patches(image, patch)
    blocks = image
    for axis in range(2, image.ndim):
        blocks = blocks.unfold(axis, patch, patch)
    got = result
    for axis in range(2, image.ndim):
        got = got.unfold(axis, patch, patch)
    within = tuple(range(-(image.ndim - 2), 0))
    expected = (blocks - blocks.mean(dim=within, keepdim=True)) / blocks.std(dim=within, keepdim=True, correction=0)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_a_patch_size_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"sides \(8, 12\) are no multiples of the patch size 8"):
        standardised_patches(images(1, 1, 8, 12), 8)


@pytest.mark.parametrize("where", ["corrupted", "everywhere"])
def test_equals_the_mean_over_the_voxels_that_count(where):
    restored, image = images(2, 1, 6, 6, seed=1), images(2, 1, 6, 6)
    mask = images(2, 1, 6, 6, seed=2) > 0.5
    values = [
        float(restored[i] - image[i]) ** 2
        for i in [tuple(index) for index in torch.nonzero(torch.ones_like(mask)).tolist()]
        if where == "everywhere" or mask[i]
    ]
    loss = RestorationLoss(where)(restored, image, mask)
    assert loss.item() == pytest.approx(sum(values) / len(values), rel=1e-5)


def test_gradient_reaches_what_counts_only():
    restored, image = images(1, 1, 4, 4, seed=1).requires_grad_(True), images(1, 1, 4, 4)
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[..., :2, :2] = True
    RestorationLoss()(restored, image, mask).backward()
    assert bool((restored.grad[mask] != 0).all())
    assert bool((restored.grad[~mask] == 0).all())


def test_nothing_corrupted_gives_zero():
    image = images(1, 1, 4, 4)
    assert RestorationLoss()(image + 1, image, torch.zeros_like(image, dtype=torch.bool)).item() == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"), [({"where": "all"}, "where must be"), ({"patch_size": 1}, "patch_size")]
)
def test_refuses_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        RestorationLoss(**arguments)
