"""Gaussian noise that nobody outside the site can predict."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

# (shape, standard deviation) -> float64 tensor of that shape, on the CPU.
NoiseSource = Callable[[Sequence[int], float], Tensor]


def os_normal(shape: Sequence[int], std: float) -> Tensor:
    """Independent normal numbers from the operating system's entropy (``os.urandom``).

    A seeded generator would void the guarantee: job seeds are known to the server, and torch's CPU generator has only
    2**32 seeds to try. So there is no state to save, and a resumed run does not repeat its noise. The numbers are the
    inverse normal distribution of 53 random bits, in double precision; whoever adds them rounds the sum to single
    precision, which hides the gaps between doubles that attacks on floating-point noise look at.

    Args:
        shape: of the result.
        std: standard deviation.

    Returns:
        float64 tensor on the CPU.
    """
    count = math.prod(shape)
    bits = np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(11)
    # Half a step off the ends, where the inverse distribution is infinite.
    uniform = (bits.astype(np.float64) + 0.5) * 2.0**-53
    # The largest 53-bit number plus a half rounds to 2**53, i.e. to one.
    return torch.from_numpy(ndtri(np.minimum(uniform, 1 - 2.0**-53)) * std).reshape(*shape)
