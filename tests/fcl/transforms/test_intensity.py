from __future__ import annotations

import pytest
import torch
from scipy.ndimage import gaussian_filter

from fcl.transforms import BatchRandIntensity

IMAGE = torch.rand(4, 2, 20, 18, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_defaults_change_nothing():
    label = torch.ones(4, 1, 20, 18, dtype=torch.int64)
    changed, same = BatchRandIntensity()(IMAGE, label)
    assert torch.equal(changed, IMAGE)
    assert same is label


@pytest.mark.parametrize("image", [IMAGE, torch.rand(2, 1, 5, 6, 4)])
@pytest.mark.parametrize(
    ("arguments", "formula"),
    [
        ({"brightness": (0.1, 0.1)}, lambda x, mean: x + 0.1),
        ({"contrast": (1.5, 1.5)}, lambda x, mean: mean + 1.5 * (x - mean)),
        ({"gamma": (2.0, 2.0)}, lambda x, mean: x.clamp(min=0) ** 2),
    ],
)
def test_each_change_equals_its_formula(image, arguments, formula):
    mean = image.flatten(1).mean(dim=1).view(-1, *[1] * (image.ndim - 1))
    changed, _ = BatchRandIntensity(**arguments)(image)
    torch.testing.assert_close(changed, formula(image, mean))


def test_gamma_comes_before_contrast_and_brightness():
    both, _ = BatchRandIntensity(gamma=(0.5, 0.5), contrast=(2.0, 2.0), brightness=(0.3, 0.3))(IMAGE)
    step, _ = BatchRandIntensity(gamma=(0.5, 0.5))(IMAGE)
    step, _ = BatchRandIntensity(contrast=(2.0, 2.0))(step)
    torch.testing.assert_close(both, step + 0.3)


@pytest.mark.parametrize("shape", [(2, 1, 30, 40), (1, 2, 20, 22, 24)])
@pytest.mark.parametrize("sigma", [0.6, 1.5])
def test_blur_equals_scipys_away_from_the_border(shape, sigma):
    image = torch.rand(shape, generator=generator())
    blurred, _ = BatchRandIntensity(blur_prob=1.0, blur_sigma=(sigma, sigma))(image)
    inner = (slice(8, -8),) * (len(shape) - 2)
    for sample in range(shape[0]):
        for channel in range(shape[1]):
            expected = torch.from_numpy(gaussian_filter(image[sample, channel].numpy(), sigma, truncate=8))
            torch.testing.assert_close(blurred[sample, channel][inner], expected[inner], atol=1e-4, rtol=0)


def test_blur_of_a_slab_does_not_mix_its_slices():
    image = torch.rand(3, 1, 30, 32, 4, generator=generator())
    blurred, _ = BatchRandIntensity(blur_prob=1.0, blur_sigma=(1.5, 1.5), blur_dims=2)(image)
    for sample in range(3):
        expected = torch.from_numpy(gaussian_filter(image[sample, 0].numpy(), (1.5, 1.5, 0), truncate=8))
        torch.testing.assert_close(blurred[sample, 0, 8:-8, 8:-8], expected[8:-8, 8:-8], atol=1e-4, rtol=0)


def test_blur_keeps_flat_images_flat_up_to_the_border():
    blurred, _ = BatchRandIntensity(blur_prob=1.0, blur_sigma=(0.0, 4.0))(torch.ones(8, 1, 9, 11))
    torch.testing.assert_close(blurred, torch.ones_like(blurred))


def test_every_sample_is_blurred_by_its_own_sigma():
    image = torch.zeros(32, 1, 21, 21)
    image[:, :, 10, 10] = 1.0
    blurred, _ = BatchRandIntensity(blur_prob=0.5, blur_sigma=(0.5, 2.0))(image, None, generator())
    peaks = blurred[:, 0, 10, 10]
    untouched = peaks == 1.0
    assert 5 < int(untouched.sum()) < 27
    assert len(peaks[~untouched].unique()) == int((~untouched).sum())


def test_noise_has_the_standard_deviation_asked_for():
    noisy, _ = BatchRandIntensity(noise_prob=1.0, noise_std=(0.05, 0.05))(
        torch.zeros(2, 1, 200, 200), None, generator()
    )
    assert noisy.std(dim=(1, 2, 3)).tolist() == pytest.approx([0.05, 0.05], rel=0.02)
    assert noisy.mean(dim=(1, 2, 3)).tolist() == pytest.approx([0.0, 0.0], abs=1e-3)


@pytest.mark.parametrize(
    "arguments",
    [
        {"prob": 0.3, "brightness": 0.2},
        {"prob": 0.3, "contrast": (0.5, 2.0)},
        {"prob": 0.3, "gamma": (0.5, 2.0)},
        {"noise_prob": 0.3},
        {"blur_prob": 0.3},
    ],
)
def test_probabilities_hold_per_sample(arguments):
    image = torch.rand(2000, 1, 3, 3, generator=generator())
    changed, _ = BatchRandIntensity(**arguments)(image, None, generator())
    share = (changed != image).flatten(1).any(dim=1).float().mean()
    assert float(share) == pytest.approx(0.3, abs=0.04)


FULL = {
    "prob": 0.7,
    "brightness": 0.1,
    "contrast": (0.8, 1.2),
    "gamma": (0.7, 1.5),
    "noise_prob": 0.5,
    "blur_prob": 0.5,
}


def test_one_seed_gives_one_result():
    transform = BatchRandIntensity(**FULL)
    first, _ = transform(IMAGE, None, generator(1))
    assert torch.equal(first, transform(IMAGE, None, generator(1))[0])
    assert not torch.equal(first, transform(IMAGE, None, generator(2))[0])
    torch.manual_seed(3)
    drawn, _ = transform(IMAGE)
    torch.manual_seed(3)
    assert torch.equal(drawn, transform(IMAGE)[0])


def test_the_input_is_left_alone():
    image = IMAGE.clone()
    BatchRandIntensity(**FULL)(image)
    assert torch.equal(image, IMAGE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_and_shape_come_back_as_they_came(dtype):
    changed, _ = BatchRandIntensity(**FULL)(IMAGE.to(dtype), None, generator())
    assert changed.dtype == dtype
    assert changed.shape == IMAGE.shape
    assert torch.isfinite(changed).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prob": -1}, "prob is a probability"),
        ({"brightness": (1, 0)}, "brightness must have low <= high"),
        ({"contrast": (-0.2, 0.2)}, "contrast holds factors"),
        ({"gamma": (0, 1)}, "gamma holds factors"),
        ({"noise_std": (-1, 1)}, "noise_std must not be negative"),
        ({"noise_prob": 2}, "noise_prob is a probability"),
        ({"blur_sigma": (-1, 1)}, "blur_sigma must not be negative"),
        ({"blur_prob": 2}, "blur_prob is a probability"),
        ({"blur_dims": 0}, "blur_dims must be at least 1, or null for all axes, got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BatchRandIntensity(**arguments)


@pytest.mark.parametrize("image", [torch.rand(4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.uint8)])
def test_bad_batches_are_refused(image):
    with pytest.raises(ValueError, match="expected a floating-point batch"):
        BatchRandIntensity()(image)
