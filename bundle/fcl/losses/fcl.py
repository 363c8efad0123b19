"""The contrastive loss of FCL: local and remote term (Wu et al., MICCAI 2021, equations for L_local, L_remote and
their sum).

Letters: B queries, D feature length, M local bank rows, K drawn features.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from fcl.config import as_switch
from fcl.losses.contrast import cosines, masked_lse, masked_mean, mean_over_positives

Denominator = Literal["exclude_same_partition", "literal"]


class FCLTerms(NamedTuple):
    """The loss and its detached parts, each a scalar; the last two are monitors (mean cosine similarities)."""

    loss: Tensor
    local: Tensor
    remote: Tensor
    instance: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor


class FCLLoss(nn.Module):
    """``L_q = l(q, Lambda(q), Q') + l(q, P(q), Q')``: remote and local term with equal weights (Wu et al. 2021).

    ``P(q)`` are the site's own features of the same partition from other volumes, ``Lambda(q)`` (global structural
    matching) the members of the drawn set ``Q'`` with the same partition. All sums are log-sum-exp in float32.

    Args:
        temperature: divides the cosine similarities. The paper does not publish its value; 0.1 is our default.
        denominator: ``"literal"`` sums over all of ``Q'`` as the equation is printed, so that features of the query's
            own partition also repel it, which keeps the features spread; ``"exclude_same_partition"`` (what the
            paper's figure 2 draws) leaves those out, and can collapse early in training.
        structural_matching: whether the remote term is part of the loss. From the command line ``true`` or ``false``.
        position_threshold: local positives by the distance of their positions along the volume, below this share of its
            extent, instead of by partition (Zeng et al., "PCL", MICCAI 2021; their code takes 0.35 on ACDC). The remote
            term keeps partitions: positions of other sites' slices do not travel. None is the paper's loss.
        instance_weight: weight of a third term ``l(q, {k}, Q')`` whose one positive is the slice's own second view
            (ours; 0 is the paper's loss). It is MoCo's loss over the same bank but for one thing: the bank holds ``k``
            already, and where ``Q'`` has drawn it, ``k`` repels as well, which MoCo's queue leaves out.

    Raises:
        ValueError: on a temperature that is not positive, an unknown ``denominator``, a ``structural_matching`` that is
            neither true nor false, a threshold outside 0..1 or a negative weight.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        denominator: Denominator = "literal",
        structural_matching: bool | str = True,
        instance_weight: float = 0.0,
        position_threshold: float | None = None,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature!r}.")
        if denominator not in ("exclude_same_partition", "literal"):
            raise ValueError(f"denominator must be 'exclude_same_partition' or 'literal', got {denominator!r}.")
        if not instance_weight >= 0:
            raise ValueError(f"instance_weight must not be negative, got {instance_weight!r}.")
        if position_threshold is not None and not 0 < position_threshold <= 1:
            raise ValueError(
                f"position_threshold is a share of the volume's extent, so it must lie in 0..1, or be null for "
                f"partitions; got {position_threshold!r}."
            )
        self.temperature = float(temperature)
        self.denominator = denominator
        self.structural_matching = as_switch(structural_matching, "structural_matching")
        self.instance_weight = float(instance_weight)
        self.position_threshold = position_threshold

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
        position_B: Tensor | None = None,
        local_position_M: Tensor | None = None,
    ) -> FCLTerms:
        """Compare queries with the bank.

        Args:
            q_BD: unit-norm queries from the main encoder; the only argument that gets a gradient.
            k_BD: features of the queries' own second views, from the momentum encoder.
            partition_B, volume_B: partition and volume of each query (int64).
            local_MD: unit-norm local features from the momentum encoder, with partition and volume of each.
            drawn_KD: ``Q'``, drawn from local and remote features, with the partition of each.
            position_B, local_position_M: of queries and local features along their volumes, in [0, 1); needed with a
                ``position_threshold`` only.

        Returns:
            :class:`FCLTerms`.

        Raises:
            ValueError: with a ``position_threshold`` and no positions.
        """
        local_BM = cosines(q_BD, local_MD.detach())
        drawn_BK = cosines(q_BD, drawn_KD.detach())
        own_B1 = (q_BD.float() * k_BD.detach().float()).sum(dim=1, keepdim=True)

        same_partition_BK = partition_B[:, None] == drawn_partition_K[None, :]
        is_local_BM = partition_B[:, None] == local_partition_M[None, :]
        if self.position_threshold is not None:
            if position_B is None or local_position_M is None:
                raise ValueError("position_threshold needs the positions of queries and local features, got none.")
            is_local_BM = (position_B[:, None] - local_position_M[None, :]).abs() < self.position_threshold
        is_local_BM &= volume_B[:, None] != local_volume_M[None, :]

        logits_BK = drawn_BK / self.temperature
        if self.denominator == "exclude_same_partition":
            negative_lse_B = masked_lse(logits_BK, ~same_partition_BK)
        else:
            negative_lse_B = torch.logsumexp(logits_BK, dim=1)

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
            positive = masked_mean(local_BM, is_local_BM)
            negative = masked_mean(drawn_BK, ~same_partition_BK)
        return FCLTerms(loss, local.detach(), remote.detach(), instance.detach(), positive, negative)
