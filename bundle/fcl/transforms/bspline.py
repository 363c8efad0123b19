"""Smooth maps of an image given at few control points: uniform cubic B-splines.

After Rueckert et al., IEEE TMI 18(8), 1999, equations 1 to 3. Control points that are mapped linearly map the whole
image linearly, so the same points carry an affine map and a deformation.

Letters: B batch, n spatial dimensions.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

# Displaced points do not fold space as long as none moves further than spacing / K along an axis (Choi and Lee,
# Graphical Models 62, 2000).
_FOLDING = {2: 2.046392675, 3: 2.479472335}


def largest_magnitude(spatial_dims: int, spacing: float) -> float:
    """Furthest that control points ``spacing`` voxels apart may move, in voxels, before space can fold."""
    return spacing / _FOLDING[spatial_dims]


def control_points(size: Sequence[int], spacing: float, device: torch.device | str = "cpu") -> Tensor:
    """Places of the control points, in voxels from the image's centre, axes in tensor order.

    Args:
        size: voxels of the image per axis.
        spacing: voxels between control points; they reach beyond the image by up to two.

    Shape:
        result: (points per axis ..., n).
    """
    axes = [
        torch.arange(-1, _count(length, spacing) - 1, device=device) * spacing - (length - 1) / 2 for length in size
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def evaluate(control: Tensor, size: Sequence[int], spacing: float) -> Tensor:
    """Values at every voxel from those at the control points.

    Args:
        control: values at :func:`control_points`, n of them at each.
        size: voxels of the image per axis.
        spacing: voxels between control points.

    Shape:
        control: (B, points per axis ..., n); result: (B, *size, n).
    """
    batch, components = control.shape[0], control.shape[-1]
    field = control.movedim(-1, 1)
    for axis in range(len(size) - 1, 0, -1):
        basis = _basis(size[axis], spacing, control.device)
        field = (field.transpose(axis + 2, -1) @ basis.T).transpose(axis + 2, -1)
    # The first axis last, by one product whose result already has the components innermost, as grid_sample wants them.
    field = field.movedim(1, -1).flatten(2)
    return (_basis(size[0], spacing, control.device) @ field).reshape(batch, *size, components)


def _count(length: int, spacing: float) -> int:
    return int((length - 1) / spacing) + 4


@functools.lru_cache(maxsize=64)
def _basis(length: int, spacing: float, device: torch.device) -> Tensor:
    """(length, control points) weights; every row is non-negative and adds up to 1."""
    position = torch.arange(length, dtype=torch.float64) / spacing
    cell = position.floor()
    u = position - cell
    weights = torch.stack(((1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3), dim=1) / 6
    columns = cell.long()[:, None] + torch.arange(4)
    basis = torch.zeros(length, _count(length, spacing), dtype=torch.float64)
    return basis.scatter_(1, columns, weights).to(device, torch.float32)
