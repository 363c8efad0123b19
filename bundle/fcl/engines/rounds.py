"""What becomes of a site's networks when a round brings the average of all sites: one strategy each.

Letters as in ``docs/methods.md``: theta a network, xi its momentum network, m the momentum, E the steps of a round.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fcl.engines.pretrain_trainer import PretrainTrainer

Weights = dict[str, Tensor]


class Average:
    """The site goes on with the average; its momentum network becomes a copy of it."""

    def start(self, trainer: PretrainTrainer, own: Weights) -> None:
        """Training begins; the network holds the average already.

        Args:
            trainer: of the site.
            own: the federated tensors as the site's last round left them.
        """
        trainer.sync_momentum_network()

    def finish(self, trainer: PretrainTrainer) -> dict[str, float]:
        """Training is over; gives what is worth logging."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""


class AverageKeepingMomentum(Average):
    """The site goes on with the average, and its momentum network as its last round left it: at first a copy too."""

    def __init__(self) -> None:
        self.begun = False

    def start(self, trainer: PretrainTrainer, own: Weights) -> None:
        # Before its first round the site has random weights of its own, which tell nothing about the average.
        if not self.begun:
            trainer.sync_momentum_network()
            self.begun = True

    def state_dict(self) -> dict[str, Any]:
        return {"begun": self.begun}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.begun = bool(state["begun"])


class DivergenceMixing(Average):
    """The further the average is from the site's own network, the more of its own a site keeps (FedEMA).

    ``theta_k <- mu theta_k + (1 - mu) theta_g`` with ``mu = min(lambda |theta_g - theta_k|, 1)``; lambda is set in the
    first round with an own network such that mu is ``tau`` there (Zhuang et al., ICLR 2022, equations 1 and 2 and the
    autoscaler). The distance is that of the encoder, mu also mixes what stands on it. The momentum network stays the
    site's.

    Args:
        tau: mu in that round, 0..1.
        distance_of: tensors whose names begin so make up the distance.

    Raises:
        ValueError: on ``tau`` outside 0..1.
    """

    def __init__(self, tau: float = 0.7, distance_of: str = "encoder.") -> None:
        if not 0 <= tau <= 1:
            raise ValueError(f"tau must lie in [0, 1], got {tau!r}.")
        self.tau = tau
        self.distance_of = distance_of
        self.scale: float | None = None
        self.rounds = 0
        self._logged: dict[str, float] = {}

    def start(self, trainer: PretrainTrainer, own: Weights) -> None:
        self.rounds += 1
        if self.rounds == 1:  # nothing of its own yet
            trainer.sync_momentum_network()
            self._logged = {}
            return
        state = trainer.network.state_dict()
        distance = _norm({name: own[name] - state[name].cpu() for name in own if name.startswith(self.distance_of)})
        if self.scale is None and distance > 0:
            self.scale = self.tau / distance
        mu = min((self.scale or 0.0) * distance, 1.0)
        trainer.network.load_state_dict(
            {name: own[name].to(value).lerp(value, 1.0 - mu) if name in own else value for name, value in state.items()}
        )
        self._logged = {"divergence": distance, "kept_share": mu}

    def finish(self, trainer: PretrainTrainer) -> dict[str, float]:
        return self._logged

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.scale, "rounds": self.rounds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.scale, self.rounds = state["scale"], int(state["rounds"])


class PredictedMomentum(Average):
    """Every site predicts the sites' average momentum network, which then never travels (our reading of FCLOpt).

    Were the momentum networks averaged as well, each round would bring
    ``xi' = m^E xi + (1 - m^E) theta + s (theta' - theta)`` with ``s = 1 - m (1 - m^E) / (E (1 - m))``, exactly if every
    site's theta moved evenly through the round; theta' is the average that arrives anyway. The prediction's error at
    this site is known here: the distance of its own momentum network from the same formula with its own theta'. When
    the distance that the last two rounds let expect reaches ``max_distance``, the site adds its own error to the
    prediction, standing in for the average one. After rounds without this site, E is the steps of all since its last
    one began: the others' momentum networks followed through them. Derivation and limits: ``docs/methods.md``.

    Args:
        max_distance: relative to how far the momentum network moved in the round; 0 always corrects.

    Raises:
        ValueError: on a negative ``max_distance``.
    """

    def __init__(self, max_distance: float = 0.2) -> None:
        if not max_distance >= 0:
            raise ValueError(f"max_distance must not be negative, got {max_distance!r}.")
        self.max_distance = max_distance
        self._theta: Weights = {}  # average that the last round began with
        self._xi: Weights = {}  # momentum network that it began with
        self._error: Weights = {}  # at its end: own momentum network minus the formula for it
        self._distances: list[float] = []
        self._begin = 0  # iteration at which it began
        self._corrected = 0.0

    @property
    def expected_distance(self) -> float:
        """Of the coming round: the last two distances, continued in a straight line; 0 before there is any."""
        if not self._distances:
            return 0.0
        last = self._distances[-1]
        return max(0.0, 2 * last - self._distances[-2]) if len(self._distances) > 1 else last

    def start(self, trainer: PretrainTrainer, own: Weights) -> None:
        average = _parameters(trainer.network)
        momentum_network = _momentum_network(trainer)
        self._corrected = 0.0
        if not self._theta:
            trainer.sync_momentum_network()
        else:
            predicted = _predicted(self._xi, self._theta, average, trainer.momentum, self._steps(trainer))
            if self.expected_distance >= self.max_distance:
                predicted = {name: value + self._error[name] for name, value in predicted.items()}
                self._corrected = 1.0
            momentum_network.load_state_dict({**momentum_network.state_dict(), **predicted})
        self._theta, self._xi = average, _parameters(momentum_network)
        self._begin = trainer.state.iteration

    def finish(self, trainer: PretrainTrainer) -> dict[str, float]:
        own, momentum = _parameters(trainer.network), _parameters(_momentum_network(trainer))
        predicted = _predicted(self._xi, self._theta, own, trainer.momentum, self._steps(trainer))
        self._error = {name: momentum[name] - predicted[name] for name in momentum}
        moved = _norm({name: momentum[name] - self._xi[name] for name in momentum})
        distance = _norm(self._error) / max(moved, 1e-12)
        expected = self.expected_distance
        self._distances = [*self._distances[-1:], distance]
        return {
            "target_distance": distance,
            "target_distance_expected": expected,
            "target_corrected": self._corrected,
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "theta": self._theta,
            "xi": self._xi,
            "error": self._error,
            "distances": list(self._distances),
            "begin": self._begin,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._theta, self._xi, self._error = dict(state["theta"]), dict(state["xi"]), dict(state["error"])
        self._distances, self._begin = list(state["distances"]), int(state["begin"])

    def _steps(self, trainer: PretrainTrainer) -> int:
        return max(1, trainer.state.iteration - self._begin)


def momentum_factors(momentum: float, steps: int) -> tuple[float, float]:
    """``m^E`` and ``s`` of :class:`PredictedMomentum`; both are 0 and 1 when the momentum network is a mere copy."""
    kept = momentum**steps
    if momentum == 1.0:
        return 1.0, 0.0
    return kept, 1.0 - momentum * (1.0 - kept) / (steps * (1.0 - momentum))


def _predicted(xi: Weights, theta: Weights, new_theta: Weights, momentum: float, steps: int) -> Weights:
    kept, share = momentum_factors(momentum, steps)
    return {name: kept * xi[name] + (1.0 - kept) * theta[name] + share * (new_theta[name] - theta[name]) for name in xi}


def _parameters(network: nn.Module) -> Weights:
    return {name: value.detach().to("cpu", copy=True) for name, value in network.named_parameters()}


def _momentum_network(trainer: PretrainTrainer) -> nn.Module:
    if trainer.momentum_network is None:
        raise ValueError("a predicted momentum network needs one: set momentum_network to '$copy.deepcopy(@network)'.")
    return trainer.momentum_network


def _norm(tensors: Mapping[str, Tensor]) -> float:
    if not tensors:
        return 0.0
    return float(torch.stack([tensor.double().square().sum() for tensor in tensors.values()]).sum().sqrt())
