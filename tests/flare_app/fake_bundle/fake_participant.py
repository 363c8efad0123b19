"""A participant small enough for tests: a linear map that learns to whiten noise, and a bank of made-up features."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fcl.federation import FeatureSet, TrainReport
from fcl.networks.weights import load_weights

D, S = 8, 4


class FakeParticipant:
    """Trains a linear layer with momentum SGD, so that weights depend on seed, data, peers and state.

    Args:
        fail: what to do wrong, by ``"<site>/<round>"`` or ``"<site>/*"``; more of it comes from ``$FAKE_FAILURES`` as
            JSON. ``raise``, ``nan``, ``shape``, ``huge``, ``features``; ``wait`` before training until the file
            ``<site>_<round>.go`` lies in ``$FAKE_FOLDER``, where ``.waiting`` says that it waits; in round -1
            ``unready``: it cannot be built until that file is there.
    """

    def __init__(
        self,
        site: str,
        seed: int,
        output_dir: str,
        batch_size: int,
        slices: int,
        fail: Mapping[str, str],
        shares_features: bool = True,
    ) -> None:
        self.shares_features = shares_features
        self.site, self.batch_size, self.slices = site, batch_size, slices
        self.fail = {**fail, **json.loads(os.environ.get("FAKE_FAILURES", "{}"))}
        self.network = nn.Linear(D, D)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.05, momentum=0.9)
        self.generator = torch.Generator().manual_seed(seed)
        self.peers: dict[str, FeatureSet] = {}
        self.round = -1
        self.journal = Path(output_dir) / "journal.txt"
        self.journal.parent.mkdir(parents=True, exist_ok=True)
        if self._failure() == "unready" and not self._mark(".go").exists():
            raise FileNotFoundError("/data is not there yet")
        self._note(f"built in {os.getpid()}")

    def describe(self) -> dict[str, int | float | str]:
        counts = {"slices": self.slices, "volumes": 2, "validation_volumes": 2}
        return {**counts, "feature_length": D, "partitions": S}

    def weights(self) -> dict[str, Tensor]:
        return {f"encoder.{name}": tensor.detach().clone() for name, tensor in self.network.state_dict().items()}

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        load_weights(self.network, weights, prefix="encoder.")
        self._note("pretrained")

    def begin_round(self, round_number: int, total_rounds: int, weights: Mapping[str, Tensor]) -> None:
        self.round = round_number
        self.network.load_state_dict({name.removeprefix("encoder."): tensor for name, tensor in weights.items()})
        self._note(f"round {round_number} of {total_rounds}")

    def publish(self, kind: str) -> FeatureSet:
        rows = S if kind == "prototypes" else 16
        noise = torch.randn(rows, D, generator=self.generator)
        if self._failure() == "features":
            noise[0] = float("nan")
        rows_MD = nn.functional.normalize(self.network(noise).detach(), dim=1)
        return FeatureSet(rows_MD, torch.arange(rows) % S, volumes=2)

    def receive(self, site: str, features: FeatureSet, round_number: int) -> None:
        self.peers[site] = features
        self._note(f"{len(features)} rows of {site}, round {round_number}")

    def train(self, should_stop: Callable[[], bool]) -> TrainReport:
        failure = self._failure()
        if failure == "raise":
            raise FileNotFoundError("/data/patient007/secret.nii.gz")
        if failure == "wait":
            self._wait()
        loss = torch.zeros(())
        for _ in range(self.slices // self.batch_size):
            if should_stop():
                break
            x_BD = torch.randn(self.batch_size, D, generator=self.generator) + 0.01 * torch.rand(1)
            keys = [x_BD.flip(1), *(self.peers[site].features[: self.batch_size] for site in sorted(self.peers))]
            loss = torch.stack([(self.network(x_BD) - key[: len(x_BD)]).square().mean() for key in keys]).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        weights = self.weights()
        if failure == "nan":
            weights["encoder.bias"][0] = float("nan")
        if failure == "shape":
            weights["encoder.bias"] = weights["encoder.bias"].expand(2, -1).clone()
        if failure == "huge":
            weights["encoder.weight"] *= 1e6
        return TrainReport(weights, self.slices, {"loss": float(loss.detach())})

    def validate(self) -> dict[str, float]:
        return {"mean_dice": 1.0 / (1.0 + float(self.network.weight.detach().square().sum())), "count": 2.0}

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.generator.get_state(),
            "batch_size": self.batch_size,
            "peers": {site: (entry.features, entry.partition) for site, entry in self.peers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        if state["batch_size"] != self.batch_size:
            raise ValueError(f"the state of /data/patient007 is of batches of {state['batch_size']}")
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["rng"])
        self.peers = {site: FeatureSet(*entry) for site, entry in state["peers"].items()}
        self._note("restored")

    def _failure(self) -> str | None:
        return self.fail.get(f"{self.site}/{self.round}", self.fail.get(f"{self.site}/*"))

    def _mark(self, suffix: str) -> Path:
        return Path(os.environ["FAKE_FOLDER"]) / f"{self.site}_{self.round}{suffix}"

    def _wait(self) -> None:
        self._mark(".waiting").touch()
        for _ in range(6000):
            if self._mark(".go").exists():
                return
            time.sleep(0.1)

    def _note(self, text: str) -> None:
        with self.journal.open("a") as stream:
            stream.write(text + "\n")
