"""InfoNCE against a queue of earlier features (He et al., "MoCo", CVPR 2020, equation 1).

Letters: B batch, D feature length, L queue length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fcl.losses.contrast import cosines, masked_lse, masked_mean, mean_over_positives


class QueueTerms(NamedTuple):
    """The loss and its detached monitors (mean cosine similarities)."""

    loss: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor


class QueueContrastLoss(nn.Module):
    """``-log(exp(q.k/t) / (exp(q.k/t) + sum_{n in queue} exp(q.n/t)))``; only the query gets a gradient.

    Args:
        temperature: divides the cosine similarities.

    Raises:
        ValueError: on a temperature that is not positive.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature!r}.")
        self.temperature = float(temperature)

    def forward(self, q_BD: Tensor, k_BD: Tensor, queue_LD: Tensor, is_negative_BL: Tensor) -> QueueTerms:
        """Contrast each query with its own key and the queue.

        Args:
            q_BD: unit-norm queries.
            k_BD: unit-norm keys, the second view of each query's slice.
            queue_LD: unit-norm features of earlier batches; may be empty, the loss then is 0.
            is_negative_BL: false where a queued feature is of the query's own slice.
        """
        own_B = (q_BD.float() * k_BD.detach().float()).sum(dim=1, keepdim=True)
        queued_BL = cosines(q_BD, queue_LD.detach())
        # A column that never counts keeps the sum defined while the queue is empty.
        padded_BL = nn.functional.pad(queued_BL / self.temperature, (0, 1))
        negative_lse_B = masked_lse(padded_BL, nn.functional.pad(is_negative_BL, (0, 1), value=False))
        loss = mean_over_positives(own_B / self.temperature, torch.ones_like(own_B, dtype=torch.bool), negative_lse_B)
        with torch.no_grad():
            return QueueTerms(loss, own_B.mean(), masked_mean(queued_BL, is_negative_BL))
