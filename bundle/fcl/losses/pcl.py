"""Positional contrastive learning (Zeng et al., MICCAI 2021).

Letters: V views, B batch, D feature length, N = V * B items.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fcl.losses.contrast import cosines, masked_lse, masked_mean


class PositionTerms(NamedTuple):
    """The loss, its detached monitors (mean cosine similarities) and the mean number of positives of an item."""

    loss: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor
    positives: Tensor


class PositionContrastLoss(nn.Module):
    """Slices attract whose positions along their volumes differ by less than a threshold; no partition border matters.

    For one item, over its positives P and all other items A of the batch (the supervised contrastive form):
    ``-1/|P| sum_{p in P} log(exp(s_p) / sum_{a in A} exp(s_a))``. A slice's own second view is always a positive.

    Args:
        threshold: in shares of the volume's extent along the slice axis, 0 to 1. The authors' code takes 0.35 for
            ACDC, and 0.1 for volumes with many slices; 0 leaves a slice's own views only.
        temperature: divides the cosine similarities.

    Raises:
        ValueError: on a temperature that is not positive or a threshold outside 0..1.
    """

    def __init__(self, threshold: float = 0.35, temperature: float = 0.1) -> None:
        super().__init__()
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is a share of the volume's extent, so it must lie in 0..1; got {threshold!r}.")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature!r}.")
        self.threshold = float(threshold)
        self.temperature = float(temperature)

    def forward(self, views_VBD: Tensor, partition_B: Tensor, volume_B: Tensor, position_B: Tensor) -> PositionTerms:
        """Compare all views of a batch with one another; every item is a query once.

        Args:
            views_VBD: unit-norm features, two or more views of the same slices.
            partition_B, volume_B: not used.
            position_B: of each slice along its volume, in [0, 1).
        """
        views, batch = views_VBD.shape[:2]
        items_ND = views_VBD.flatten(0, 1)
        similarity_NN = cosines(items_ND, items_ND)
        logits_NN = similarity_NN / self.temperature
        slice_N = torch.arange(batch, device=items_ND.device).repeat(views)
        position_N = position_B.repeat(views)
        other_NN = ~torch.eye(len(items_ND), dtype=torch.bool, device=items_ND.device)
        near_NN = (position_N[:, None] - position_N).abs() < self.threshold
        positive_NN = (near_NN | (slice_N[:, None] == slice_N)) & other_NN
        all_lse_N = masked_lse(logits_NN, other_NN)
        per_pair_NN = (all_lse_N[:, None] - logits_NN).masked_fill(~positive_NN, 0.0)
        count_N = positive_NN.sum(dim=1)
        loss = (per_pair_NN.sum(dim=1) / count_N).mean()
        with torch.no_grad():
            positive = masked_mean(similarity_NN, positive_NN)
            negative = masked_mean(similarity_NN, other_NN & ~positive_NN)
        return PositionTerms(loss, positive, negative, count_N.float().mean())
