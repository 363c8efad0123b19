"""The contrastive loss of FCL: local and remote term (Wu et al., MICCAI 2021, equations for L_local, L_remote and
their sum).

Letters: B queries, D feature length, M local bank rows, K drawn features.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

Denominator = Literal["exclude_same_partition", "literal"]


class FCLTerms(NamedTuple):
    """The loss and its detached parts, each a scalar; the last two are monitors (mean cosine similarities)."""

    loss: Tensor
    local: Tensor
    remote: Tensor
    instance: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor


def mean_over_positives(logits_BP: Tensor, is_positive_BP: Tensor, negative_lse_B: Tensor) -> Tensor:
    """``l(q, P, Q')`` of the paper, averaged over the queries that have a positive.

    For one query: ``-1/|P| sum_{p in P} log(exp(s_p) / (exp(s_p) + sum_n exp(s_n)))``, which is the mean of
    ``softplus(logsumexp_n s_n - s_p)``.

    Args:
        logits_BP: similarities divided by the temperature, float32.
        is_positive_BP: bool mask of the positives of each query.
        negative_lse_B: log-sum-exp over the negatives' logits; hugely negative where a query has none.

    Returns:
        Scalar; 0 (still attached to the graph) when no query has a positive.
    """
    per_pair_BP = nn.functional.softplus(negative_lse_B[:, None] - logits_BP)
    count_B = is_positive_BP.sum(dim=1)
    per_query_B = per_pair_BP.masked_fill(~is_positive_BP, 0.0).sum(dim=1) / count_B.clamp(min=1)
    return per_query_B.sum() / (count_B > 0).sum().clamp(min=1)


class FCLLoss(nn.Module):
    """``L_q = l(q, Lambda(q), Q') + l(q, P(q), Q')``: remote and local term with equal weights (Wu et al. 2021).

    ``P(q)`` are the site's own features of the same partition from other volumes, ``Lambda(q)`` (global structural
    matching) the members of the drawn set ``Q'`` with the same partition. All sums are log-sum-exp in float32.

    Args:
        temperature: divides the cosine similarities. The paper does not publish its value; 0.1 is our default.
        denominator: ``"literal"`` sums over all of ``Q'`` as the equation is printed, so that features of the query's
            own
            partition also repel it, which keeps the features spread; ``"exclude_same_partition"`` (what the paper's
            figure 2 draws) leaves those out, and can collapse early in training.
        structural_matching: whether the remote term is part of the loss.
        instance_weight: weight of a third term ``l(q, {k}, Q')`` whose one positive is the slice's own second view
            (ours, MoCo's loss over the same bank; 0 is the paper's loss).

    Raises:
        ValueError: on a temperature that is not positive, an unknown ``denominator`` or a negative weight.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        denominator: Denominator = "literal",
        structural_matching: bool = True,
        instance_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature!r}.")
        if denominator not in ("exclude_same_partition", "literal"):
            raise ValueError(f"denominator must be 'exclude_same_partition' or 'literal', got {denominator!r}.")
        if not instance_weight >= 0:
            raise ValueError(f"instance_weight must not be negative, got {instance_weight!r}.")
        self.temperature = float(temperature)
        self.denominator = denominator
        self.structural_matching = structural_matching
        self.instance_weight = float(instance_weight)

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
    ) -> FCLTerms:
        """Compare queries with the bank.

        Args:
            q_BD: unit-norm queries from the main encoder; the only argument that gets a gradient.
            k_BD: features of the queries' own second views, from the momentum encoder.
            partition_B, volume_B: partition and volume of each query (int64).
            local_MD: unit-norm local features from the momentum encoder, with partition and volume of each.
            drawn_KD: ``Q'``, drawn from local and remote features, with the partition of each.

        Returns:
            :class:`FCLTerms`.
        """
        with torch.autocast(device_type=q_BD.device.type, enabled=False):
            q_BD = q_BD.float()
            local_BM = q_BD @ local_MD.detach().float().T
            drawn_BK = q_BD @ drawn_KD.detach().float().T
            own_B1 = (q_BD * k_BD.detach().float()).sum(dim=1, keepdim=True)

        same_partition_BK = partition_B[:, None] == drawn_partition_K[None, :]
        is_local_BM = partition_B[:, None] == local_partition_M[None, :]
        is_local_BM &= volume_B[:, None] != local_volume_M[None, :]

        logits_BK = drawn_BK / self.temperature
        negatives_BK = logits_BK
        if self.denominator == "exclude_same_partition":
            # Finite, so that a query with no negative at all gets a zero gradient instead of NaN.
            negatives_BK = logits_BK.masked_fill(same_partition_BK, -1e9)
        negative_lse_B = torch.logsumexp(negatives_BK, dim=1)

        local = mean_over_positives(local_BM / self.temperature, is_local_BM, negative_lse_B)
        remote = local.new_zeros(())
        if self.structural_matching:
            remote = mean_over_positives(logits_BK, same_partition_BK, negative_lse_B)
        instance = local.new_zeros(())
        if self.instance_weight:
            all_lse_B = torch.logsumexp(logits_BK, dim=1)
            instance = mean_over_positives(
                own_B1 / self.temperature, torch.ones_like(own_B1, dtype=torch.bool), all_lse_B
            )
        loss = local + remote + self.instance_weight * instance
        with torch.no_grad():
            positive = _masked_mean(local_BM, is_local_BM)
            negative = _masked_mean(drawn_BK, ~same_partition_BK)
        return FCLTerms(loss, local.detach(), remote.detach(), instance.detach(), positive, negative)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)
