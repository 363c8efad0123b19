"""What every pre-training participant does, whatever its method and whatever it shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from ignite.engine import Engine, Events

from fcl.engines.checkpoints import RandomState
from fcl.engines.method import Method
from fcl.engines.monitors import PartitionKNN
from fcl.engines.pretrain_trainer import PretrainTrainer
from fcl.engines.schedule import WarmupCosine

M = TypeVar("M", bound=Method)


class HostedTraining(Generic[M]):
    """A trainer that lives as long as the federation: a round is one epoch of its loader.

    Args:
        trainer: its loader is this site's slices; ``max_epochs``, iteration and epoch are set from the round number.
        schedule: learning-rate schedule attached to the trainer; it follows all rounds.
        monitor: measures partition kNN accuracy; in a federation when it is asked for, and not by its interval.
    """

    def __init__(self, trainer: PretrainTrainer[M], schedule: WarmupCosine, monitor: PartitionKNN) -> None:
        self.trainer = trainer
        self.loader: Any = trainer.data_loader
        self.schedule = schedule
        self.monitor = monitor
        self._random = RandomState(trainer.state.device)
        self._should_stop: Callable[[], bool] = lambda: False
        trainer.add_event_handler(Events.ITERATION_STARTED, self._stop_if_asked)

    def describe(self) -> dict[str, int | float | str]:
        return {
            "slices": len(self.loader.dataset),
            "volumes": len(self.loader.dataset.volume_infos),
            "validation_volumes": self.monitor.volumes,
        }

    def validate(self) -> dict[str, float]:
        measured = self.monitor.measure()
        return {**measured, "count": float(self.monitor.volumes)} if measured else {}

    def run(self, should_stop: Callable[[], bool]) -> dict[str, float]:
        """Train the round; gives its metrics."""
        self._should_stop = should_stop
        # Among the metrics of training it would tell of patients of whom no validation was asked.
        self.monitor.interval = 0
        self.trainer.run()
        return {name: float(value) for name, value in self.trainer.state.metrics.items()}

    def training_state(self) -> dict[str, Any]:
        """Networks, optimizer, method, loader and random numbers."""
        trainer = self.trainer
        momentum_network = trainer.momentum_network
        return {
            "network": trainer.network.state_dict(),
            "momentum_network": {} if momentum_network is None else momentum_network.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "method": trainer.method.state_dict(),
            "loader": self.loader.state_dict(),
            "trainer_rng": trainer.generator.get_state(),
            "random": self._random.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`training_state`, bit for bit."""
        trainer = self.trainer
        trainer.network.load_state_dict(state["network"])
        if trainer.momentum_network is not None:
            trainer.momentum_network.load_state_dict(state["momentum_network"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.method.load_state_dict(state["method"])
        self.loader.load_state_dict(state["loader"])
        trainer.generator.set_state(state["trainer_rng"])
        self._random.load_state_dict(state["random"])

    def _stop_if_asked(self, engine: Engine) -> None:
        if self._should_stop():
            engine.terminate()
