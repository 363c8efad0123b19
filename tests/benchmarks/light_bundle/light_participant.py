"""A participant that sends what the real one sends, and trains nothing: many fit into one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fcl.federation import FeatureSet, TrainReport
from fcl.memory import FeatureBank
from fcl.networks import ContrastiveNetwork, ProjectionHead, UNetEncoder

D, S, SLICES = 128, 4, 512


@cache
def _weights() -> dict[str, Tensor]:
    """Those of pretrain.json, shared by all sites of a process: none changes them."""
    torch.manual_seed(0)
    network = ContrastiveNetwork(UNetEncoder(norm=["instance", {"affine": True}]), ProjectionHead(256, batch_norm=True))
    return {name: value for name, value in network.state_dict().items() if value.is_floating_point()}


class LightParticipant:
    """Random features and updates in the shapes of pretrain.json, and the real feature bank.

    Args:
        seed: of the site.
    """

    shares_features = True

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        rows = torch.arange(SLICES)
        self._bank = FeatureBank(rows % S, rows // 8, D, S)
        self._bank.update(rows, normalize(torch.randn(SLICES, D, generator=self._generator), dim=1))
        self._global: Mapping[str, Tensor] = {}

    def describe(self) -> dict[str, int | float | str]:
        return {"slices": SLICES, "volumes": SLICES // 8, "feature_length": D, "partitions": S}

    def weights(self) -> dict[str, Tensor]:
        return dict(_weights())

    def begin_round(self, round_number: int, total_rounds: int, weights: Mapping[str, Tensor]) -> None:
        self._global = weights
        self._bank.expire(round_number)

    def publish(self, kind: str) -> FeatureSet:
        return self._bank.snapshot(generator=self._generator)

    def receive(self, site: str, features: FeatureSet, round_number: int) -> None:
        self._bank.set_remote(site, features, round_number)

    def train(self, should_stop: Callable[[], bool]) -> TrainReport:
        self._bank.draw(1024, self._generator)
        moved = {
            name: value + 1e-3 * torch.randn(value.shape, generator=self._generator)
            for name, value in self._global.items()
        }
        return TrainReport(moved, SLICES, {"loss": 1.0})

    def validate(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        return
