"""Batch transforms one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class BatchTransform(Protocol):
    """Maps a batch of images (B, C, H, W[, D]) and, where there is one, its label map (B, 1, H, W[, D])."""

    def __call__(
        self, image: Tensor, label: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]: ...


class BatchCompose:
    """Applies ``transforms`` in order, all drawing from the one generator.

    Args:
        transforms: see :class:`BatchTransform`.
    """

    def __init__(self, transforms: Sequence[BatchTransform]) -> None:
        for transform in transforms:
            if not callable(transform):
                raise TypeError(f"a batch transform must be callable, got {type(transform).__name__}: {transform!r}")
        self.transforms = tuple(transforms)

    def __call__(
        self, image: Tensor, label: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Image and label after all transforms; both on their device and of their dtype and shape."""
        for transform in self.transforms:
            image, label = transform(image, label, generator)
        return image, label
