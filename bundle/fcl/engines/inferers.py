"""Inferers for MONAI's engines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer, SliceInferer, SlidingWindowInferer
from torch import Tensor

_MOST = 32  # slices of a batch


class AutocastInferer(Inferer):
    """Runs another inferer under autocast on any device, and returns float32.

    MONAI's own ``amp`` switch autocasts on CUDA only.

    Args:
        dtype: see :func:`fcl.config.autocast_dtype`; None leaves float32.
        inferer: what runs the network; default: one plain call.
    """

    def __init__(self, dtype: torch.dtype | None, inferer: Inferer | None = None) -> None:
        super().__init__()
        self.dtype = dtype
        self.inferer = inferer or SimpleInferer()

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Outputs of the network, float32."""
        with torch.autocast(inputs.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            outputs = self.inferer(inputs, network, *args, **kwargs)
        return outputs.float()


def slices_at_once(depth: int) -> int:
    """Slices of a batch that divides a volume of ``depth`` slices into equal batches of 32 at most, as far as it goes.

    Batch normalisation without running statistics (``track_running_stats: false``) takes those of the batch: what 32
    would leave over, perhaps a single slice, would be normalised by next to nothing.
    """
    return math.ceil(depth / math.ceil(depth / _MOST))


class EqualSliceInferer(SliceInferer):
    """``SliceInferer`` that gives the network a volume's slices in equal batches (:func:`slices_at_once`).

    Args:
        roi_size: height and width that the network was trained with.
    """

    def __init__(self, roi_size: Sequence[int]) -> None:
        super().__init__(roi_size=roi_size, spatial_dim=2)

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Any:
        """Outputs of the network for a volume (B, C, H, W, D)."""
        self.sw_batch_size = slices_at_once(inputs.shape[-1])
        return super().__call__(inputs, network, *args, **kwargs)


def volume_inferer(spatial_size: Sequence[int], slab_depth: int | None) -> Inferer:
    """How a network for slices, or for slabs of them, goes through a volume (B, C, H, W, D).

    Args:
        spatial_size: height and width that the network was trained with.
        slab_depth: slices that a 3-D network was trained with; its window slides by half of them. None: slice by slice.
    """
    if slab_depth is None:
        return EqualSliceInferer(spatial_size)
    return SlidingWindowInferer(
        roi_size=[*spatial_size, slab_depth],
        sw_batch_size=8,
        overlap=(0.0, 0.0, 0.5),
        mode="gaussian",
        padding_mode="replicate",
    )
