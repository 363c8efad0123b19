"""Inferers for MONAI's engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer
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
