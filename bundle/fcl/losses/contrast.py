"""Contrast of whole slices by groups of positives and negatives: SimCLR (Chen et al., ICML 2020) and the global losses
of Chaitanya et al. (NeurIPS 2020, section 3.1).

Letters: V views, B batch, D feature length, N = V * B items, P candidates for a positive.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from fcl.config import as_switch

Negatives = Literal["other_slices", "other_partitions"]

# Finite, so that an item with no negative at all gets a zero gradient instead of NaN.
NEVER = -1e9


class ContrastTerms(NamedTuple):
    """The loss and its detached parts, each a scalar; the last two are monitors (mean cosine similarities)."""

    loss: Tensor
    own: Tensor
    across: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor


def mean_over_positives(logits_BP: Tensor, is_positive_BP: Tensor, negative_lse_B: Tensor) -> Tensor:
    """Contrast of each item with its positives, averaged over the items that have one.

    For one item: ``-1/|P| sum_{p in P} log(exp(s_p) / (exp(s_p) + sum_n exp(s_n)))``, which is the mean of
    ``softplus(logsumexp_n s_n - s_p)``.

    Args:
        logits_BP: similarities divided by the temperature, float32.
        is_positive_BP: bool mask of the positives of each item.
        negative_lse_B: log-sum-exp over the negatives' logits; hugely negative where an item has none.

    Returns:
        Scalar; 0 (still attached to the graph) when no item has a positive.
    """
    return mean_of_items(nn.functional.softplus(negative_lse_B[:, None] - logits_BP), is_positive_BP)


def mean_of_items(values_BP: Tensor, mask_BP: Tensor) -> Tensor:
    """Mean over the items of each one's mean of what ``mask_BP`` names, items without any left out; 0 without items."""
    count_B = mask_BP.sum(dim=1)
    per_item_B = values_BP.masked_fill(~mask_BP, 0.0).sum(dim=1) / count_B.clamp(min=1)
    return per_item_B.sum() / (count_B > 0).sum().clamp(min=1)


def masked_lse(logits: Tensor, mask: Tensor) -> Tensor:
    """Log-sum-exp over the last axis of what ``mask`` names; hugely negative where it names nothing."""
    return torch.logsumexp(logits.masked_fill(~mask, NEVER), dim=-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of what ``mask`` names; 0 where it names nothing."""
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def cosines(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """Products (N, M) of unit vectors in float32, whatever the autocast: half precision blurs near-equal ones."""
    with torch.autocast(device_type=a_ND.device.type, enabled=False):
        return a_ND.float() @ b_MD.float().T


class GlobalContrastLoss(nn.Module):
    """Pulls together the views of a slice, and with ``across_volumes`` the same place in other volumes.

    =========================================  ==========================================================
    ``negatives="other_slices"``               NT-Xent of SimCLR; ``G^R`` of Chaitanya et al.
    ``negatives="other_partitions"``           ``G^D-``: slices of the same partition do not repel
    the same with ``across_volumes=True``      ``G^D``: and they attract, when they are of another volume
    =========================================  ==========================================================

    Chaitanya et al. draw one slice of another volume for each; the mean over all that the batch offers, as here, is the
    expectation of that.

    Args:
        temperature: divides the cosine similarities.
        negatives: which items repel one.
        across_volumes: whether slices of the same partition of other volumes, under the same view, are positives too.
            From the command line ``true`` or ``false``.

    Raises:
        ValueError: on a temperature that is not positive, other ``negatives``, an ``across_volumes`` that is neither
            true nor false, or slices of another volume asked to attract and repel at once.
    """

    def __init__(
        self, temperature: float = 0.1, negatives: Negatives = "other_slices", across_volumes: bool | str = False
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature!r}.")
        if negatives not in ("other_slices", "other_partitions"):
            raise ValueError(f"negatives must be 'other_slices' or 'other_partitions', got {negatives!r}.")
        self.across_volumes = as_switch(across_volumes, "across_volumes")
        if self.across_volumes and negatives == "other_slices":
            raise ValueError(
                "across_volumes makes slices of the same partition positives, so they cannot be negatives too: "
                "set negatives to 'other_partitions'."
            )
        self.temperature = float(temperature)
        self.negatives = negatives

    def forward(self, views_VBD: Tensor, partition_B: Tensor, volume_B: Tensor, position_B: Tensor) -> ContrastTerms:
        """Compare all views of a batch with one another; every item is a query once.

        Args:
            views_VBD: unit-norm features, two or more views of the same slices.
            partition_B, volume_B: of each slice (int64).
            position_B: not used.
        """
        views, batch = views_VBD.shape[:2]
        items_ND = views_VBD.flatten(0, 1)
        similarity_NN = cosines(items_ND, items_ND)
        logits_NN = similarity_NN / self.temperature

        slice_N = torch.arange(batch, device=items_ND.device).repeat(views)
        view_N = torch.arange(views, device=items_ND.device).repeat_interleave(batch)
        partition_N, volume_N = partition_B.repeat(views), volume_B.repeat(views)
        same_slice_NN = slice_N[:, None] == slice_N
        same_partition_NN = partition_N[:, None] == partition_N
        own_NN = same_slice_NN & (view_N[:, None] != view_N)
        negative_NN = ~same_partition_NN if self.negatives == "other_partitions" else ~same_slice_NN

        negative_lse_N = masked_lse(logits_NN, negative_NN)
        own = mean_over_positives(logits_NN, own_NN, negative_lse_N)
        across = own.new_zeros(())
        if self.across_volumes:
            across_NN = same_partition_NN & (volume_N[:, None] != volume_N) & (view_N[:, None] == view_N)
            across = mean_over_positives(logits_NN, across_NN, negative_lse_N)
        with torch.no_grad():
            positive, negative = masked_mean(similarity_NN, own_NN), masked_mean(similarity_NN, negative_NN)
        return ContrastTerms(own + across, own.detach(), across.detach(), positive, negative)
