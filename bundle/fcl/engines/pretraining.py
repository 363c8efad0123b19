"""One site's side of federated contrastive pre-training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from fcl.engines.fcl_trainer import FCLTrainer
from fcl.engines.monitors import PartitionKNN
from fcl.engines.schedule import WarmupCosine
from fcl.federation import FeatureKind, FeatureSet, TrainReport
from fcl.networks.federated import NormStats, federated_weights, load_federated_weights


class PretrainParticipant:
    """Hosts an :class:`FCLTrainer` for the life of a federation (see :class:`fcl.federation.Participant`).

    A round is one epoch of the trainer's loader; the learning rate follows the schedule over all rounds.
    At the start of a round the momentum encoder may become a copy of the averaged encoder
    (``momentum_sync="global"``), and the bank's local rows are made afresh with it in one forward pass, so that the
    features which the sites exchange share one space; features from each site's own drifted encoder do not. Both are
    ours, not the paper's.

    Args:
        trainer: its loader is this site's slices; ``max_epochs``, iteration and epoch are set from the round number.
        bank_batches: the same slices in order, un-augmented, to refresh the bank.
        schedule: learning-rate schedule attached to the trainer.
        monitor: measures partition kNN accuracy.
        max_shared_rows: features shown to peers in a round, at most; None shows one per slice.
        norm_stats: whether running statistics of batch normalisation are averaged or stay local; without such buffers
            no matter.
        momentum_sync: ``"global"`` or ``"local"`` (the momentum encoder goes on as it is).
        seed: of the snapshot's shuffle.
    """

    shares_features = True

    def __init__(
        self,
        trainer: FCLTrainer,
        bank_batches: Iterable[dict[str, Tensor]],
        schedule: WarmupCosine,
        monitor: PartitionKNN,
        max_shared_rows: int | None = 512,
        norm_stats: NormStats = "average",
        momentum_sync: Literal["global", "local"] = "global",
        seed: int = 0,
    ) -> None:
        if momentum_sync not in ("global", "local"):
            raise ValueError(f"momentum_sync must be 'global' or 'local', got {momentum_sync!r}.")
        self.trainer = trainer
        self.loader: Any = trainer.data_loader
        self.bank_batches = bank_batches
        self.schedule = schedule
        self.monitor = monitor
        self.max_shared_rows = max_shared_rows
        self.norm_stats = norm_stats
        self.momentum_sync = momentum_sync
        self.generator = torch.Generator().manual_seed(seed)
        self._should_stop: Callable[[], bool] = lambda: False
        trainer.add_event_handler(Events.ITERATION_STARTED, self._stop_if_asked)

    def describe(self) -> dict[str, int | float | str]:
        return {
            "slices": len(self.loader.dataset),
            "volumes": len(self.loader.dataset.volume_infos),
            "feature_length": self.trainer.bank.feature_length,
            "partitions": self.trainer.bank.partitions,
        }

    def weights(self) -> dict[str, Tensor]:
        return federated_weights(self.trainer.network, self.norm_stats)

    def begin_round(self, round_number: int, total_rounds: int, weights: Mapping[str, Tensor]) -> None:
        trainer = self.trainer
        load_federated_weights(trainer.network, weights, self.norm_stats)
        if self.momentum_sync == "global":
            trainer.sync_momentum_network()
        trainer.refresh_bank(self.bank_batches)
        trainer.bank.expire(round_number)
        steps = len(self.loader)
        self.schedule.total_steps = total_rounds * steps
        trainer.state.epoch = round_number
        trainer.state.iteration = round_number * steps
        trainer.state.epoch_length = steps
        trainer.state.max_epochs = round_number + 1

    def publish(self, kind: FeatureKind) -> FeatureSet:
        if kind == "prototypes":
            return self.trainer.bank.prototypes()
        return self.trainer.bank.snapshot(self.max_shared_rows, self.generator)

    def receive(self, site: str, features: FeatureSet, round_number: int) -> None:
        self.trainer.bank.set_remote(site, features, round_number)

    def train(self, should_stop: Callable[[], bool]) -> TrainReport:
        self._should_stop = should_stop
        self.trainer.run()
        metrics = {name: float(value) for name, value in self.trainer.state.metrics.items()}
        metrics["bank_remote_rows"] = float(self.trainer.bank.remote_rows)
        return TrainReport(self.weights(), len(self.loader.dataset), metrics)

    def validate(self) -> dict[str, float]:
        measured = self.monitor.measure()
        return {**measured, "count": float(self.monitor.volumes)} if measured else {}

    def state_dict(self) -> dict[str, Any]:
        trainer = self.trainer
        return {
            "network": trainer.network.state_dict(),
            "momentum_network": trainer.momentum_network.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "bank": trainer.bank.state_dict(),
            "loader": self.loader.state_dict(),
            "trainer_rng": trainer.generator.get_state(),
            "snapshot_rng": self.generator.get_state(),
            "torch_rng": torch.get_rng_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        trainer = self.trainer
        trainer.network.load_state_dict(state["network"])
        trainer.momentum_network.load_state_dict(state["momentum_network"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.bank.load_state_dict(state["bank"])
        self.loader.load_state_dict(state["loader"])
        trainer.generator.set_state(state["trainer_rng"])
        self.generator.set_state(state["snapshot_rng"])
        torch.set_rng_state(state["torch_rng"])

    def _stop_if_asked(self, engine: Engine) -> None:
        if self._should_stop():
            engine.terminate()
