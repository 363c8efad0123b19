"""Rounds of a participant without a federation around it, and what their tests compare."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fcl.federation import Participant, TrainReport


def run_round(participant: Participant, number: int = 0, total: int = 6) -> TrainReport:
    """Train round ``number`` of ``total`` from the participant's own weights."""
    participant.begin_round(number, total, participant.weights())
    return participant.train(lambda: False)


def copies(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state of ``module``, which goes on changing."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Whether two states are equal to the last bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
