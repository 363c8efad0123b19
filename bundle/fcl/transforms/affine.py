"""Batches of rotations and shears, axes in tensor order.

Letters: B batch, n spatial dimensions (2 or 3).
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotation(angles: Tensor) -> Tensor:
    """Rotation matrices, with the signs and order of MONAI's ``create_rotate``.

    Args:
        angles: radians; in 2-D one, in 3-D one about each axis, the first axis' rotation applied last.

    Shape:
        angles: (B, 1) or (B, 3); result: (B, 2, 2) or (B, 3, 3).
    """
    if angles.shape[1] == 1:
        return _plane(angles[:, 0], 2, 0, 1)
    first, second, third = (_plane(angles[:, axis], 3, *plane) for axis, plane in enumerate(((1, 2), (2, 0), (0, 1))))
    return first @ second @ third


def _plane(angle: Tensor, dims: int, i: int, j: int) -> Tensor:
    matrix = torch.eye(dims, dtype=angle.dtype, device=angle.device).repeat(len(angle), 1, 1)
    cos, sin = angle.cos(), angle.sin()
    matrix[:, i, i], matrix[:, i, j] = cos, -sin
    matrix[:, j, i], matrix[:, j, j] = sin, cos
    return matrix


def shearing(coefficients: Tensor, dims: int) -> Tensor:
    """Volume-preserving shears, with the order of MONAI's ``create_shear``: one pair of axes after the other.

    Shape:
        coefficients: (B, n (n - 1)); result: (B, n, n).
    """
    matrix = torch.eye(dims, dtype=coefficients.dtype, device=coefficients.device).repeat(len(coefficients), 1, 1)
    pairs = [(i, j) for i in range(dims) for j in range(dims) if i != j]
    for index, (i, j) in enumerate(pairs):
        matrix[:, i] += coefficients[:, index, None] * matrix[:, j]
    return matrix
