"""Features of the last batches, for methods that contrast with a queue.

Letters: B batch, D feature length, L length.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class FeatureQueue:
    """First in, first out; every feature with the row of its slice, which tells a query's own ones apart.

    Args:
        length: features kept at most; 0 keeps none.

    Raises:
        ValueError: on a negative length.
    """

    def __init__(self, length: int) -> None:
        if length < 0:
            raise ValueError(f"a queue's length must not be negative, got {length!r}.")
        self.length = length
        self.features = torch.empty(0, 0)
        self.rows = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def content(self, like_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Features (L, D) and rows (L,), on the device of ``like_BD`` and of its length; L is 0 at the start."""
        if not len(self):
            return like_BD.new_empty(0, like_BD.shape[1]), self.rows.to(like_BD.device)
        return self.features.to(like_BD.device), self.rows.to(like_BD.device)

    def push(self, features_BD: Tensor, row_B: Tensor) -> None:
        """Add a batch; the oldest make room."""
        if not self.length:
            return
        held_LD, held_L = self.content(features_BD)
        self.features = torch.cat([held_LD, features_BD.detach().float()])[-self.length :]
        self.rows = torch.cat([held_L, row_B])[-self.length :]

    def clear(self) -> None:
        """Forget all, e.g. when another network will make the features."""
        self.features, self.rows = torch.empty(0, 0), torch.empty(0, dtype=torch.int64)

    def state_dict(self) -> dict[str, Tensor]:
        return {"features": self.features.cpu().clone(), "rows": self.rows.cpu().clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.features, self.rows = state["features"].clone(), state["rows"].clone()
