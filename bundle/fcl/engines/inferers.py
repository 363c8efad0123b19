"""Inferers for MONAI's engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer, SliceInferer, SlidingWindowInferer
from torch import Tensor


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


def volume_inferer(spatial_size: Sequence[int], slab_depth: int | None) -> Inferer:
    """How a network for slices, or for slabs of them, goes through a volume (B, C, H, W, D).

    32 slices are one batch: batch normalisation without running statistics (``track_running_stats: false``) takes
    those of the volume at hand, if it has no more.

    Args:
        spatial_size: height and width that the network was trained with.
        slab_depth: slices that a 3-D network was trained with; its window slides by half of them. None: slice by slice.
    """
    if slab_depth is None:
        return SliceInferer(roi_size=spatial_size, sw_batch_size=32, spatial_dim=2)
    return SlidingWindowInferer(
        roi_size=[*spatial_size, slab_depth],
        sw_batch_size=8,
        overlap=(0.0, 0.0, 0.5),
        mode="gaussian",
        padding_mode="replicate",
    )
