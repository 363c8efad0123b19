"""Corruptions that a network learns to undo. Letters: B batch, H, W sides; all are 2-D.

Each maps images (B, C, H, W) and a generator to the corrupted images and a mask (B, 1, H, W) of what it touched.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Corruption(Protocol):
    """See the module."""

    def __call__(self, image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]: ...


class Holes:
    """Sets rectangles to the image's mean (Pathak et al., "Context encoders", CVPR 2016).

    Args:
        count: rectangles of an image; they may overlap.
        side: smallest and largest side, as shares of the image's.

    Raises:
        ValueError: on no rectangle, or sides outside 0..1.
    """

    def __init__(self, count: int = 4, side: tuple[float, float] = (0.15, 0.3)) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count!r}.")
        low, high = side
        if not 0 < low <= high <= 1:
            raise ValueError(f"side must be two shares of the image's with 0 < low <= high <= 1, got {list(side)!r}.")
        self.count = count
        self.side = (low, high)

    def __call__(self, image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        batch, height, width = _sides(image)
        drawn = torch.rand(4, batch, self.count, 1, generator=generator, device=image.device)
        low, high = self.side
        inside = []
        for axis, length in enumerate((height, width)):
            sides = low + (high - low) * drawn[axis]
            starts = drawn[2 + axis] * (1 - sides)
            place = (torch.arange(length, device=image.device) + 0.5) / length
            inside.append((place >= starts) & (place < starts + sides))
        rows, columns = inside
        where = (rows[..., :, None] & columns[..., None, :]).any(dim=1)[:, None]
        return torch.where(where, image.mean(dim=(2, 3), keepdim=True), image), where


class Swaps:
    """Exchanges pairs of patches of an image, again and again (Chen et al., "Context restoration", MedIA 2019).

    Args:
        count: exchanges.
        side: of a patch, in voxels.

    Raises:
        ValueError: on fewer than one exchange, or a patch below 1 voxel.
    """

    def __init__(self, count: int = 10, side: int = 8) -> None:
        if count < 1 or side < 1:
            raise ValueError(f"count and side must be at least 1, got {count!r} and {side!r}.")
        self.count = count
        self.side = side

    def __call__(self, image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        batch, height, width = _sides(image)
        if min(height, width) < self.side:
            raise ValueError(f"patches of {self.side} do not fit into images of {height} x {width}.")
        swapped = image.clone()
        where = torch.zeros(batch, 1, height, width, dtype=torch.bool, device=image.device)
        within = torch.arange(self.side, device=image.device)
        for _ in range(self.count):
            drawn = torch.rand(2, 2, batch, generator=generator, device=image.device)
            rows = (drawn[:, 0] * (height - self.side + 1)).long()[..., None, None] + within[:, None]
            columns = (drawn[:, 1] * (width - self.side + 1)).long()[..., None, None] + within
            apart = ((rows[0] - rows[1]).abs() >= self.side) | ((columns[0] - columns[1]).abs() >= self.side)
            chosen = torch.nonzero(apart.flatten(1).any(dim=1))[:, 0]  # patches that overlap would tear
            if not len(chosen):
                continue
            one, other = ((chosen[:, None, None], slice(None), rows[i, chosen], columns[i, chosen]) for i in (0, 1))
            first = swapped[one].clone()
            swapped[one] = swapped[other]
            swapped[other] = first
            where[one] = True
            where[other] = True
        return swapped, where


class HiddenPatches:
    """Sets a share of the patches of a grid to zero (masked-image modelling).

    Args:
        patch_size: side of a patch in voxels; a multiple of the encoder's coarsest voxel where maps are masked too.
        share: of the patches.

    Raises:
        ValueError: on a patch below 1 voxel or a share outside 0..1.
    """

    def __init__(self, patch_size: int = 16, share: float = 0.6) -> None:
        if patch_size < 1:
            raise ValueError(f"patch_size must be at least 1, got {patch_size!r}.")
        if not 0 < share < 1:
            raise ValueError(f"share must lie between 0 and 1, got {share!r}.")
        self.patch_size = patch_size
        self.share = share

    def __call__(self, image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        batch, height, width = _sides(image)
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"images of {height} x {width} are no multiples of the patch size {self.patch_size}.")
        grid = (height // self.patch_size, width // self.patch_size)
        count = grid[0] * grid[1]
        hidden = max(1, min(count - 1, round(self.share * count)))
        order = torch.rand(batch, count, generator=generator, device=image.device).argsort(dim=1)
        where = (order < hidden).view(batch, 1, *grid)
        where = where.repeat_interleave(self.patch_size, dim=2).repeat_interleave(self.patch_size, dim=3)
        return image.masked_fill(where, 0.0), where


def _sides(image: Tensor) -> tuple[int, int, int]:
    """B, H and W."""
    if image.ndim != 4:
        raise ValueError(
            f"slices (B, C, H, W) can be corrupted, got shape {tuple(image.shape)}: set spatial_dims to 2 and "
            "slab_depth to null"
        )
    return image.shape[0], image.shape[2], image.shape[3]
