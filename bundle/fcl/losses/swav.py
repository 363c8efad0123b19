"""Swapped prediction of cluster assignments (Caron et al., "SwAV", NeurIPS 2020, equations 1 to 5).

Letters: B batch, L queue length, P prototypes, Q = B + L items.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class AssignmentTerms(NamedTuple):
    """The loss and its detached monitor: entropy of the mean prediction (log P at even use, 0 at collapse), in nats."""

    loss: Tensor
    prototype_entropy: Tensor


@torch.no_grad()
def even_assignments(scores_QP: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Soft codes that use all prototypes equally: Sinkhorn-Knopp on ``exp(scores / epsilon)``, in logarithms.

    Args:
        scores_QP: cosine similarities of items and prototypes.
        epsilon: smoothness of the codes.
        iterations: alternations between columns (prototypes) and rows (items).

    Returns:
        (Q, P), rows sum to 1.
    """
    log_QP = scores_QP.float() / epsilon
    items, prototypes = log_QP.shape
    for _ in range(iterations):
        log_QP = log_QP - torch.logsumexp(log_QP, dim=0, keepdim=True) - math.log(prototypes)
        log_QP = log_QP - torch.logsumexp(log_QP, dim=1, keepdim=True) - math.log(items)
    return (log_QP + math.log(items)).exp()


class SwappedAssignmentLoss(nn.Module):
    """Each view predicts the code of the other: mean cross-entropy of softmax(scores / t) against the other's code.

    Args:
        temperature: of the softmax.
        epsilon: of the codes, see :func:`even_assignments`.
        iterations: of Sinkhorn-Knopp.

    Raises:
        ValueError: on a temperature, epsilon or number of iterations that is not positive.
    """

    def __init__(self, temperature: float = 0.1, epsilon: float = 0.05, iterations: int = 3) -> None:
        super().__init__()
        if not (temperature > 0 and epsilon > 0 and iterations > 0):
            raise ValueError(
                f"temperature, epsilon and iterations must be positive, got {temperature!r}, {epsilon!r}, "
                f"{iterations!r}."
            )
        self.temperature = float(temperature)
        self.epsilon = float(epsilon)
        self.iterations = int(iterations)

    def forward(self, first_BP: Tensor, second_BP: Tensor, queued_LP: Tensor) -> AssignmentTerms:
        """Compare the scores of two views.

        Args:
            first_BP, second_BP: cosine similarities of the two views with the prototypes.
            queued_LP: scores of earlier features, which help to spread the codes of a small batch; may be empty.
        """
        scores = (first_BP.float(), second_BP.float())
        batch = len(first_BP)
        codes = [
            even_assignments(torch.cat([view_BP.detach(), queued_LP.detach()]), self.epsilon, self.iterations)[:batch]
            for view_BP in scores
        ]
        predicted = [nn.functional.log_softmax(view_BP / self.temperature, dim=1) for view_BP in scores]
        loss = -0.5 * ((codes[1] * predicted[0]).sum(dim=1) + (codes[0] * predicted[1]).sum(dim=1)).mean()
        mean_P = torch.cat([prediction.detach().exp() for prediction in predicted]).mean(dim=0)
        return AssignmentTerms(loss, torch.special.entr(mean_P).sum())
