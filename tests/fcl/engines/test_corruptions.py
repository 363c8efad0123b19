"""Corruptions touch what they say and nothing else, by the generator they are given."""

from __future__ import annotations

import pytest
import torch

from fcl.engines import HiddenPatches, Holes, Swaps

CASES = [Holes(3, (0.1, 0.4)), Swaps(5, 4), HiddenPatches(4, 0.6)]


def images():
    return torch.rand(6, 1, 16, 24, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("corruption", CASES)
def test_only_the_masked_voxels_change_and_the_input_does_not(corruption):
    image = images()
    corrupted, where = corruption(image, torch.Generator().manual_seed(1))
    assert torch.equal(image, images())
    assert where.shape == (6, 1, 16, 24)
    assert where.dtype == torch.bool
    assert torch.equal(corrupted[~where], image[~where])
    assert not torch.equal(corrupted, image)


@pytest.mark.parametrize("corruption", CASES)
def test_equal_generators_give_equal_corruptions(corruption):
    first, second, other = (corruption(images(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[1], other[1])


def test_swaps_keep_every_intensity():
    image = images()
    corrupted, _ = Swaps(8, 5)(image, torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        corrupted.flatten(1).sort(dim=1).values, image.flatten(1).sort(dim=1).values, rtol=0, atol=0
    )


def test_holes_hold_the_mean():
    image = images()
    corrupted, where = Holes(1, (0.5, 0.5))(image, torch.Generator().manual_seed(1))
    for b in range(len(image)):
        inside = corrupted[b][where[b]]
        assert torch.equal(inside, torch.full_like(inside, float(image[b].mean())))
        assert int(where[b].sum()) == pytest.approx(8 * 12, abs=24)


@pytest.mark.parametrize(("share", "hidden"), [(0.01, 1), (0.5, 12), (0.6, 14), (0.99, 23)])
def test_a_fixed_number_of_whole_patches_is_hidden_in_every_image(share, hidden):
    corrupted, where = HiddenPatches(4, share)(images(), torch.Generator().manual_seed(1))
    patches = where.unfold(2, 4, 4).unfold(3, 4, 4).flatten(4)
    assert torch.equal(patches.all(dim=4), patches.any(dim=4))
    assert patches.all(dim=4).sum(dim=(1, 2, 3)).tolist() == [hidden] * 6
    assert bool((corrupted[where] == 0).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Holes(0), "count must be at least 1"),
        (lambda: Holes(1, (0.5, 0.2)), "0 < low <= high <= 1"),
        (lambda: Swaps(1, 0), "count and side"),
        (lambda: HiddenPatches(4, 1.0), "share must lie between 0 and 1"),
        (lambda: HiddenPatches(7)(images(), torch.Generator()), "16 x 24 are no multiples of the patch size 7"),
        (lambda: Swaps(1, 17)(images(), torch.Generator()), "patches of 17 do not fit"),
        (
            lambda: Holes()(images()[..., None], torch.Generator()),
            r"got shape \(6, 1, 16, 24, 1\): set spatial_dims to 2",
        ),
    ],
)
def test_refuses_what_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()
