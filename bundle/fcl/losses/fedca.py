"""Contrast with a dictionary of all sites, and alignment to a common network (Zhang et al., "FedCA", 2020).

Letters: B batch, D feature length, K drawn features, M local bank rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fcl.losses.contrast import cosines, mean_over_positives


class DictionaryTerms(NamedTuple):
    """The loss and its detached parts; the last two are monitors (mean cosine similarities)."""

    loss: Tensor
    contrast: Tensor
    aligning: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor


class DictionaryAlignmentLoss(nn.Module):
    """``contrast + alignment_weight * |q - k|^2``: the dictionary repels, the common network's feature attracts.

    FedCA shares each site's features as a dictionary of negatives, and ties the sites' feature spaces by a public data
    set that one base network has embedded. There is none here: the common network of the round (``k`` from a momentum
    encoder of momentum 1, which becomes the average as a round begins and stands still in it) embeds the site's own
    slices instead. That replacement is ours. A training at one site brings no average, and would align to the random
    weights that it began with.

    ``q`` is compared with what the bank holds, where ``k`` already is: if ``k`` is among the drawn features, it stands
    in the denominator of ``contrast`` twice, as the positive and as one that repels.

    Args:
        temperature: divides the cosine similarities.
        alignment_weight: of the second term.

    Raises:
        ValueError: on a temperature that is not positive or a negative weight.
    """

    def __init__(self, temperature: float = 0.1, alignment_weight: float = 1.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature!r}.")
        if not alignment_weight >= 0:
            raise ValueError(f"alignment_weight must not be negative, got {alignment_weight!r}.")
        self.temperature = float(temperature)
        self.alignment_weight = float(alignment_weight)

    def forward(
        self,
        q_BD: Tensor,
        k_BD: Tensor,
        partition_B: Tensor,
        volume_B: Tensor,
        local_MD: Tensor,
        local_partition_M: Tensor,
        local_volume_M: Tensor,
        drawn_KD: Tensor,
        drawn_partition_K: Tensor,
    ) -> DictionaryTerms:
        """As :meth:`fcl.losses.FCLLoss.forward`; partitions, volumes and the local rows are not used."""
        own_B = (q_BD.float() * k_BD.detach().float()).sum(dim=1, keepdim=True)
        drawn_BK = cosines(q_BD, drawn_KD.detach())
        negative_lse_B = torch.logsumexp(drawn_BK / self.temperature, dim=1)
        own = torch.ones_like(own_B, dtype=torch.bool)
        contrast = mean_over_positives(own_B / self.temperature, own, negative_lse_B)
        aligning = (2.0 - 2.0 * own_B).mean()  # |q - k|^2 of unit vectors
        loss = contrast + self.alignment_weight * aligning
        return DictionaryTerms(
            loss, contrast.detach(), aligning.detach(), own_B.detach().mean(), drawn_BK.detach().mean()
        )
