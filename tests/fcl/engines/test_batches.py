from __future__ import annotations

import torch

from fcl.engines import AugmentBatch

BATCH = {"image": torch.rand(2, 1, 8, 8), "label": torch.randint(0, 3, (2, 1, 8, 8))}


def noise(image, label, generator):
    return image + torch.rand(image.shape, generator=generator), label


def test_without_augmentation_the_batch_passes_through() -> None:
    image, label = AugmentBatch(None)(BATCH, "cpu")
    assert torch.equal(image, BATCH["image"])
    assert torch.equal(label, BATCH["label"])


def test_augmentation_is_seeded_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second = (AugmentBatch(noise, seed=3)(BATCH, "cpu")[0] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, AugmentBatch(noise, seed=4)(BATCH, "cpu")[0])
    assert torch.equal(before, torch.get_rng_state())


def test_random_numbers_continue_from_a_saved_state() -> None:
    batches = AugmentBatch(noise)
    batches(BATCH, "cpu")
    state = batches.state_dict()
    expected = batches(BATCH, "cpu")[0]
    other = AugmentBatch(noise, seed=9)
    other.load_state_dict(state)
    assert torch.equal(other(BATCH, "cpu")[0], expected)


def test_a_batch_without_label_is_augmented_alike() -> None:
    image, label = AugmentBatch(noise, seed=3)({"image": BATCH["image"]}, "cpu")
    assert label is None
    assert torch.equal(image, AugmentBatch(noise, seed=3)(BATCH, "cpu")[0])
