"""One site's side of federated fine-tuning: a U-Net that segments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.utils import is_scalar
from torch import Tensor

from fcl.config import as_switch
from fcl.engines.batches import AugmentBatch
from fcl.engines.checkpoints import RandomState, loss_scale
from fcl.engines.schedule import WarmupCosine
from fcl.engines.variant import Variants
from fcl.federation import FeatureKind, FeatureSet, TrainReport
from fcl.networks import LoadReport, load_pretrained, write_weights
from fcl.networks.federated import NormStats, federated_weights, load_federated_weights


class SegmentationParticipant:
    """Hosts a MONAI ``SupervisedTrainer`` for the life of a federation (see :class:`fcl.federation.Participant`).

    A round is one epoch of the trainer's loader; the learning rate follows the schedule over all rounds.

    Args:
        trainer: its network, optimizer and loader are this site's; ``max_epochs``, iteration and epoch are set from the
            round number. Its ``prepare_batch`` augments.
        evaluator: runs over the validation volumes; each scalar metric of it is reported.
        schedule: learning-rate schedule attached to the trainer.
        norm_stats: what of the normalisation layers is averaged, see :func:`fcl.networks.federated.federated_names`.
        keep_optimizer: whether the optimizer's moments live on from round to round, or start afresh in each. From the
            command line ``true`` or ``false``.
        variants: those attached to the trainer, whose state is kept with the rest; None for none.
        own_checkpoint: file of this site's network as each round begins, the average and what stays local; after the
            last round, the site's finished model. None writes none.
        card: what that file says of itself.

    Raises:
        TypeError: when ``prepare_batch`` is not an :class:`AugmentBatch`.
        ValueError: on a ``keep_optimizer`` that is neither true nor false.
    """

    shares_features = False

    def __init__(
        self,
        trainer: SupervisedTrainer,
        evaluator: SupervisedEvaluator,
        schedule: WarmupCosine,
        norm_stats: NormStats = "average",
        keep_optimizer: bool | str = True,
        variants: Variants | None = None,
        own_checkpoint: str | Path | None = None,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(trainer.prepare_batch, AugmentBatch):
            raise TypeError(
                f"the trainer's prepare_batch must be an AugmentBatch, whose random numbers can be saved; "
                f"got {type(trainer.prepare_batch).__name__}."
            )
        self.trainer = trainer
        self.evaluator = evaluator
        self.schedule = schedule
        self.norm_stats = norm_stats
        self.keep_optimizer = as_switch(keep_optimizer, "keep_optimizer")
        self.variants = variants or Variants()
        self.own_checkpoint = own_checkpoint
        self.card = dict(card or {})
        self.loader: Any = trainer.data_loader
        self._state = {
            "network": trainer.network,
            "optimizer": trainer.optimizer,
            "loader": self.loader,
            "augmentation": trainer.prepare_batch,
            "variants": self.variants,
            "random": RandomState(trainer.state.device),
            **loss_scale(trainer),
        }
        self._should_stop: Callable[[], bool] = lambda: False
        self._round_number = 0
        trainer.add_event_handler(Events.ITERATION_STARTED, self._stop_if_asked)

    def describe(self) -> dict[str, int | float | str]:
        return {
            "slices": len(self.loader.dataset),
            "volumes": len(self.loader.dataset.volume_infos),
            "validation_volumes": len(self._validation_data),
        }

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> LoadReport:
        """Put a pre-trained encoder, and the decoder blocks that a method trained, into the network.

        Raises:
            fcl.networks.CheckpointError: when it is of another architecture.
        """
        return load_pretrained(self.trainer.network, weights)

    def weights(self) -> dict[str, Tensor]:
        return federated_weights(self.trainer.network, self.norm_stats)

    def begin_round(self, round_number: int, total_rounds: int, weights: Mapping[str, Tensor]) -> None:
        self._round_number = round_number
        load_federated_weights(self.trainer.network, weights, self.norm_stats)
        if not self.keep_optimizer:
            self.trainer.optimizer.state.clear()
        self.variants.begin_round(weights)
        if self.own_checkpoint is not None:
            write_weights(self.own_checkpoint, self.trainer.network.state_dict(), {**self.card, "rounds": round_number})
        self.schedule.begin_round(self.trainer, round_number, total_rounds, len(self.loader))

    def publish(self, kind: FeatureKind) -> FeatureSet:
        self._refuse_features()

    def receive(self, site: str, features: FeatureSet, round_number: int) -> None:
        self._refuse_features()

    def train(self, should_stop: Callable[[], bool]) -> TrainReport:
        self._should_stop = should_stop
        self.trainer.run()
        return TrainReport(self.weights(), len(self.loader.dataset), _finite_scalars(self.trainer.state.metrics))

    def validate(self) -> dict[str, float]:
        """``mean_dice`` (volumes, then classes, averaged), the Dice of each class, and ``count`` volumes."""
        volumes = len(self._validation_data)
        if not volumes:
            return {}
        self.evaluator.run(self._round_number + 1)
        return {**_finite_scalars(self.evaluator.state.metrics), "count": float(volumes)}

    def state_dict(self) -> dict[str, Any]:
        return {name: holder.state_dict() for name, holder in self._state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, holder in self._state.items():
            holder.load_state_dict(state[name])

    @property
    def _validation_data(self) -> Any:
        return self.evaluator.data_loader

    def _refuse_features(self) -> NoReturn:
        raise RuntimeError(
            "fine-tuning has no features to exchange: set the job's exchange to none, or run a pre-training config."
        )

    def _stop_if_asked(self, engine: Engine) -> None:
        if self._should_stop():
            engine.terminate()


def _finite_scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What can be averaged over sites: a class that no volume shows has a NaN Dice, which would spoil the mean."""
    scalars = {name: float(value) for name, value in metrics.items() if is_scalar(value)}
    return {name: value for name, value in scalars.items() if math.isfinite(value)}
