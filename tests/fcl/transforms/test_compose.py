from __future__ import annotations

import pytest
import torch

from fcl.transforms import BatchCompose, BatchRandIntensity, BatchRandSpatial

BOTH = [
    BatchRandSpatial(rotate_range=1.0, flip_prob=0.5, elastic_prob=0.5),
    BatchRandIntensity(brightness=0.1, noise_prob=0.5),
]


def test_transforms_run_in_order_on_image_and_label():
    def double(image, label, generator):
        return image * 2, label + 1

    def increment(image, label, generator):
        return image + 1, label * 10

    image, label = BatchCompose([double, increment])(torch.ones(1), torch.ones(1))
    assert (image.item(), label.item()) == (3.0, 20.0)


def test_all_draw_from_the_one_generator_in_turn():
    image, label = torch.rand(4, 1, 10, 10), torch.randint(0, 3, (4, 1, 10, 10))
    composed = BatchCompose(BOTH)(image, label, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    by_hand = BOTH[1](*BOTH[0](image, label, generator), generator)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(composed, by_hand, strict=True))


def test_state_of_the_generator_continues_a_run_bit_for_bit():
    augment, image, generator = BatchCompose(BOTH), torch.rand(4, 1, 10, 10), torch.Generator().manual_seed(0)
    augment(image, None, generator)
    state = generator.get_state()
    second, _ = augment(image, None, generator)
    resumed = torch.Generator()
    resumed.set_state(state)
    assert torch.equal(second, augment(image, None, resumed)[0])


def test_no_transforms_pass_everything_through():
    image = torch.rand(1, 1, 2, 2)
    assert BatchCompose([])(image) == (image, None)


def test_what_is_no_transform_is_refused():
    with pytest.raises(TypeError, match="must be callable, got dict"):
        BatchCompose([{"_target_": "typo"}])
