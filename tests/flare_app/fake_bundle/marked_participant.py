"""A participant whose features can be recognised in a byte stream: few rows in round 0, megabytes in round 1."""

from __future__ import annotations

import random

import torch
from fake_participant import FakeParticipant, S
from torch import Tensor

from fcl.federation import FeatureSet

LENGTH = 256
ROWS = {0: 16, 1: 4096}


def marker(round_number: int) -> Tensor:
    """The unit row (LENGTH,) that all features of a round are: +-1/16 in an order that only this round has."""
    signs = random.Random(f"marker of round {round_number}").choices((-1.0, 1.0), k=LENGTH)
    return torch.tensor(signs) / LENGTH**0.5


class MarkedParticipant(FakeParticipant):
    """Publishes :func:`marker` in place of features; does not use what it receives."""

    def describe(self) -> dict[str, int | float | str]:
        return {**super().describe(), "feature_length": LENGTH}

    def publish(self, kind: str) -> FeatureSet:
        rows = ROWS[self.round]
        return FeatureSet(marker(self.round).expand(rows, -1).clone(), torch.arange(rows) % S, volumes=2)

    def receive(self, site: str, features: FeatureSet, round_number: int) -> None:
        self._note(f"{len(features)} rows of {site}, round {round_number}")
