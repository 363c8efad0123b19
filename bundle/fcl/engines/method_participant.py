"""One site's side of federated pre-training with a method that exchanges weights only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from fcl.engines.hosting import HostedTraining
from fcl.engines.method import Method
from fcl.engines.monitors import PartitionKNN
from fcl.engines.pretrain_trainer import PretrainTrainer
from fcl.engines.rounds import Average
from fcl.engines.schedule import WarmupCosine
from fcl.federation import FeatureKind, FeatureSet, TrainReport
from fcl.networks import LoadReport, load_weights, write_weights
from fcl.networks.federated import NormStats, federated_weights, load_federated_weights


class MethodParticipant(HostedTraining[Method]):
    """Hosts a trainer of any method for the life of a federation (see :class:`fcl.federation.Participant`).

    Args:
        trainer, schedule, monitor: see :class:`fcl.engines.hosting.HostedTraining`.
        federated: tensors whose names begin with one of these leave the site and are averaged; None: all of the
            network. An empty list federates nothing: every site keeps an encoder of its own.
        at_round_start: what becomes of the networks when the average arrives (:mod:`fcl.engines.rounds`).
        norm_stats: whether running statistics of batch normalisation are averaged or stay local.
        own_checkpoint: file of this site's own network, written after each round; None writes none.
        card: what that file says of itself.

    Raises:
        ValueError: when a prefix in ``federated`` fits no tensor of the network.
    """

    shares_features = False

    def __init__(
        self,
        trainer: PretrainTrainer,
        schedule: WarmupCosine,
        monitor: PartitionKNN,
        federated: Sequence[str] | None = None,
        at_round_start: Average | None = None,
        norm_stats: NormStats = "average",
        own_checkpoint: str | Path | None = None,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(trainer, schedule, monitor)
        self.federated = None if federated is None else tuple(federated)
        self.at_round_start = at_round_start or Average()
        self.norm_stats = norm_stats
        self.own_checkpoint = own_checkpoint
        self.card = dict(card or {})
        names = federated_weights(trainer.network, norm_stats)
        unknown = [prefix for prefix in self.federated or () if not any(name.startswith(prefix) for name in names)]
        if unknown:
            parts = sorted({name.split(".", 1)[0] for name in names})
            raise ValueError(f"federated names {', '.join(unknown)}, but the network's parts are {', '.join(parts)}.")
        self._before: dict[str, Tensor] | None = None

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> LoadReport:
        """Put a pre-trained encoder (names that begin ``encoder.``) into the network.

        Raises:
            fcl.networks.CheckpointError: when it is of another architecture.
        """
        network: Any = self.trainer.network
        if hasattr(network, "load_encoder"):  # it wants to know that it has one
            report: LoadReport = network.load_encoder(weights)
        else:
            report = load_weights(network.encoder, weights, prefix="encoder.")
        self.trainer.sync_momentum_network()
        return report

    def weights(self) -> dict[str, Tensor]:
        everything = federated_weights(self.trainer.network, self.norm_stats)
        if self.federated is None:
            return everything
        return {name: value for name, value in everything.items() if name.startswith(self.federated)}

    def begin_round(self, round_number: int, total_rounds: int, weights: Mapping[str, Tensor]) -> None:
        trainer, own = self.trainer, self.weights()
        if self._before is None:  # else the last round was begun and never trained in: these are not the site's own
            self._before = own
        kept = {} if self.federated is None else federated_weights(trainer.network, self.norm_stats)
        kept = {name: value for name, value in kept.items() if name not in own}
        load_federated_weights(trainer.network, {**kept, **weights}, self.norm_stats)
        self.schedule.begin_round(self.trainer, round_number, total_rounds, len(self.loader))

    def publish(self, kind: FeatureKind) -> FeatureSet:
        self._refuse_features()

    def receive(self, site: str, features: FeatureSet, round_number: int) -> None:
        self._refuse_features()

    def train(self, should_stop: Callable[[], bool]) -> TrainReport:
        trainer = self.trainer
        self.at_round_start.start(trainer, self._before if self._before is not None else self.weights())
        self._before = None
        trainer.method.begin_round()
        metrics = self.run(should_stop) | self.at_round_start.finish(trainer)
        if self.own_checkpoint is not None:
            write_weights(
                self.own_checkpoint, trainer.network.state_dict(), {**self.card, "rounds": trainer.state.epoch}
            )
        return TrainReport(self.weights(), len(self.loader.dataset), metrics)

    def state_dict(self) -> dict[str, Any]:
        return {**self.training_state(), "rounds": self.at_round_start.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.at_round_start.load_state_dict(state["rounds"])
        self.restore(state)

    def _refuse_features(self) -> NoReturn:
        raise RuntimeError(
            f"the method {type(self.trainer.method).__name__} has no features to exchange: set the job's exchange to "
            "none, or take a method that shares them (fcl, fedca)."
        )
