"""Prediction of a target network's features, without negatives (Grill et al., "BYOL", NeurIPS 2020, equation 2).

Letters: B batch, D feature length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fcl.losses.contrast import cosines, masked_mean, mean_of_items


class PredictionTerms(NamedTuple):
    """The loss, its detached parts, and monitors: mean cosine similarity to the own target and to all others."""

    loss: Tensor
    own: Tensor
    across: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor


class PredictionLoss(nn.Module):
    """``2 - 2 cos(prediction, target)``, for the slice's own target and, weighted, for those of its partition.

    The second part is our reconstruction of what FCLOpt (Wu et al., MedIA 2022) compares: same-partition slices of
    other volumes are positives, and nothing repels.

    Args:
        across_weight: share of the second part in the loss, 0 to 1; 0 is BYOL.

    Raises:
        ValueError: on a share outside 0..1.
    """

    def __init__(self, across_weight: float = 0.0) -> None:
        super().__init__()
        if not 0 <= across_weight <= 1:
            raise ValueError(f"across_weight is a share of the loss, so it must lie in 0..1; got {across_weight!r}.")
        self.across_weight = float(across_weight)

    def forward(
        self, prediction_BD: Tensor, target_BD: Tensor, partition_B: Tensor, volume_B: Tensor
    ) -> PredictionTerms:
        """Compare predictions from one view with the target network's features of the other.

        Args:
            prediction_BD: unit-norm; the only argument that gets a gradient.
            target_BD: unit-norm features of the target network.
            partition_B, volume_B: of each slice (int64).
        """
        similarity_BB = cosines(prediction_BD, target_BD.detach())
        own_BB = torch.eye(len(similarity_BB), dtype=torch.bool, device=similarity_BB.device)
        own = 2.0 - 2.0 * similarity_BB.diagonal().mean()
        loss, across = own, own.new_zeros(())
        if self.across_weight:
            across_BB = (partition_B[:, None] == partition_B) & (volume_B[:, None] != volume_B)
            across = mean_of_items(2.0 - 2.0 * similarity_BB, across_BB)
            loss = (1.0 - self.across_weight) * own + self.across_weight * across
        with torch.no_grad():
            positive, negative = masked_mean(similarity_BB, own_BB), masked_mean(similarity_BB, ~own_BB)
        return PredictionTerms(loss, own.detach(), across.detach(), positive, negative)
