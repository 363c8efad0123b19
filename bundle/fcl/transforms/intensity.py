"""Random changes of grey values, sharpness and noise of a batch.

Letters: B batch, C image channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fcl.transforms.ranges import (
    Range,
    between,
    between_factors,
    factor_range,
    magnitude_range,
    probability,
    symmetric_range,
)


class BatchRandIntensity:
    """Gamma, contrast, brightness, blur and noise, in this order, each sample in its own way. Labels pass through.

    Made for images normalised to about 0..1. The defaults change nothing: name in the config what is wanted.

    Args:
        prob: of gamma, of contrast and of brightness, each on its own, per sample.
        brightness: grey values added, ``r`` for (-r, r) or (low, high).
        contrast: factors of the distance to the image's mean, even in the logarithm.
        gamma: exponents, even in the logarithm; values below 0 become 0 where one is applied.
        noise_std: standard deviation of Gaussian noise in grey values, ``s`` for (0, s) or (low, high).
        noise_prob: of noise, per sample.
        blur_sigma: standard deviation of a Gaussian blur in voxels, ``s`` for (0, s) or (low, high).
        blur_prob: of blur, per sample.
        blur_dims: spatial axes that blur runs along, the first so many; 2 does not mix the slices of a slab, whose
            distance is a multiple of a pixel's side. None: all.

    Raises:
        ValueError: for values out of range.
    """

    def __init__(
        self,
        prob: float = 1.0,
        brightness: Range = 0.0,
        contrast: Sequence[float] = (1.0, 1.0),
        gamma: Sequence[float] = (1.0, 1.0),
        noise_std: Range = (0.0, 0.05),
        noise_prob: float = 0.0,
        blur_sigma: Range = (0.5, 1.0),
        blur_prob: float = 0.0,
        blur_dims: int | None = None,
    ) -> None:
        self.prob = probability(prob, "prob")
        self.brightness = symmetric_range(brightness, "brightness")
        self.contrast = factor_range(contrast, "contrast")
        self.gamma = factor_range(gamma, "gamma")
        self.noise_std = magnitude_range(noise_std, "noise_std")
        self.noise_prob = probability(noise_prob, "noise_prob")
        self.blur_sigma = magnitude_range(blur_sigma, "blur_sigma")
        self.blur_prob = probability(blur_prob, "blur_prob")
        if blur_dims is not None and blur_dims < 1:
            raise ValueError(f"blur_dims must be at least 1, or null for all axes, got {blur_dims}")
        self.blur_dims = blur_dims

    @torch.no_grad()
    def __call__(
        self, image: Tensor, label: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The changed batch, and the label as given.

        Args:
            image: floating point, about 0..1.
            label: anything.
            generator: on the image's device; the device's own by default.

        Shape:
            image: (B, C, H, W[, D]).
        """
        if image.ndim < 3 or not image.is_floating_point():
            raise ValueError(f"expected a floating-point batch, got {image.dtype} of shape {tuple(image.shape)}")
        drawn = torch.rand(10, len(image), generator=generator, device=image.device)
        gates, values = drawn[:5], drawn[5:]
        result = image.clone()
        # The dear steps touch only the samples they were drawn for.
        rows = _chosen(gates[0], self.prob if self.gamma != (1.0, 1.0) else 0.0)
        if len(rows):
            result[rows] = result[rows].clamp(min=0.0) ** _per_sample(
                between_factors(values[0][rows], self.gamma), image
            )
        rows = _chosen(gates[1], self.prob if self.contrast != (1.0, 1.0) else 0.0)
        if len(rows):
            factor = _per_sample(between_factors(values[1][rows], self.contrast), image)
            mean = result[rows].mean(dim=tuple(range(1, image.ndim)), keepdim=True)
            result[rows] = torch.lerp(mean, result[rows], factor)
        result += _per_sample(between(values[2], self.brightness) * (gates[2] < self.prob), image)
        rows = _chosen(gates[3], self.blur_prob)
        if len(rows):
            result[rows] = _blur(result[rows], between(values[3][rows], self.blur_sigma), self.blur_dims)
        rows = _chosen(gates[4], self.noise_prob)
        if len(rows):
            noise = torch.randn(result[rows].shape, generator=generator, device=image.device, dtype=image.dtype)
            result[rows] += _per_sample(between(values[4][rows], self.noise_std), image) * noise
        return result, label


def _chosen(gate: Tensor, prob: float) -> Tensor:
    return (gate < prob).nonzero()[:, 0]


def _per_sample(values: Tensor, image: Tensor) -> Tensor:
    return values.to(image.dtype).view(-1, *[1] * (image.ndim - 1))


def _blur(image: Tensor, sigma: Tensor, dims: int | None) -> Tensor:
    """Gaussian blur along the first ``dims`` axes, with its own ``sigma`` (B,) in voxels per sample.

    One dense matrix per axis and sample: at slice sizes faster than a convolution whose kernel differs by sample, and
    the border is renormalised instead of padded.
    """
    variance = sigma.to(image.dtype).clamp(min=1e-3).view(-1, 1) ** 2
    for axis in range(2, image.ndim)[:dims]:
        steps = torch.arange(image.shape[axis], device=image.device)
        kernel = torch.exp(steps**2 / (-2.0 * variance))
        weights = kernel[:, (steps[:, None] - steps[None, :]).abs()]
        weights = weights / weights.sum(dim=2, keepdim=True)
        lines = image.movedim(axis, 1).flatten(2)
        image = (weights @ lines).unflatten(2, image.movedim(axis, 1).shape[2:]).movedim(1, axis)
    return image
