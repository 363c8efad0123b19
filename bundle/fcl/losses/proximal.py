"""Pull towards weights that were given, as FedProx (Li et al., MLSys 2020) has it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class ProximalTerms(NamedTuple):
    """What :class:`ProximalLoss` gives.

    Attributes:
        loss: scalar.
        divergence: L2 distance of the weights from the reference, scalar.
    """

    loss: Tensor
    divergence: Tensor


class ProximalLoss(nn.Module):
    """``mu / 2 * |w - w_global|^2`` over all tensors together (Li et al. 2020, equation 2).

    Args:
        mu: strength; 0 is plain federated averaging. The paper tries 0.001 to 1: the more the sites differ and the
            longer they train in a round, the larger.

    Raises:
        ValueError: on a negative or infinite ``mu``.
    """

    def __init__(self, mu: float = 0.01) -> None:
        super().__init__()
        if not 0.0 <= mu < float("inf"):
            raise ValueError(f"mu must be 0 or more, got {mu!r}.")
        self.mu = mu

    def forward(self, weights: Iterable[Tensor], reference: Iterable[Tensor]) -> ProximalTerms:
        """The terms; gradients reach ``weights`` only.

        Args:
            weights: what is trained.
            reference: as many tensors of the same shapes, in the same order.
        """
        pairs = zip(weights, reference, strict=True)
        square = torch.stack([(own.float() - other.detach().float()).square().sum() for own, other in pairs]).sum()
        return ProximalTerms(0.5 * self.mu * square, square.detach().sqrt())
