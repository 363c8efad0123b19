"""Federated fine-tuning whose weights are differentially private by patient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines import IterationEvents, SupervisedEvaluator, SupervisedTrainer
from monai.utils import CommonKeys

from fcl.engines import SegmentationParticipant, Variants, WarmupCosine
from fcl.engines.checkpoints import loss_scale
from fcl.federation import TrainReport, WeightPrivacy
from fcl.networks.federated import NormStats
from fcl.privacy.accounting import PrivacyLedger
from fcl.privacy.dp_sgd import AugmentPatients, PatientBatches, PatientOptimizer


class PrivateSegmentationParticipant(SegmentationParticipant):
    """A :class:`fcl.engines.SegmentationParticipant` that trains by :mod:`fcl.privacy.dp_sgd` and keeps account.

    Covered are the weights that this site sends, over all rounds. Not covered are the number of slices, which weighs
    the site in the average, and validation scores (of other patients); the training loss is not reported, since it is
    no noised number. Weights that the site got before (pre-training with the same patients) are outside it as well.

    Args:
        trainer: with a :class:`PatientBatches` loader, an :class:`AugmentPatients` that prepares its batches and a
            :class:`PatientOptimizer`.
        evaluator, schedule, norm_stats, keep_optimizer, own_checkpoint, card: as in the parent class.
        variants: must be empty. They bring gradients that no patient's clipping sees.
        delta: of (epsilon, delta); well below 1 / patients.
        epsilon_budget: the site refuses a round that would pass it; None sets no end.
        ledger: file that keeps account over jobs, see :class:`PrivacyLedger`.

    Raises:
        TypeError: when one of these is of another kind.
        ValueError: when there are variants, or the loss is scaled (float16).
    """

    def __init__(
        self,
        trainer: SupervisedTrainer,
        evaluator: SupervisedEvaluator,
        schedule: WarmupCosine,
        norm_stats: NormStats = "average",
        keep_optimizer: bool = True,
        delta: float = 1e-5,
        epsilon_budget: float | None = None,
        ledger: str | Path | None = None,
        variants: Variants | None = None,
        own_checkpoint: str | Path | None = None,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(trainer, evaluator, schedule, norm_stats, keep_optimizer, variants, own_checkpoint, card)
        if self.variants.parts:
            raise ValueError(
                f"DP-SGD clips the gradients of the annotated slices only; what {', '.join(self.variants.parts)} would "
                "add to them is not private: leave that overlay of configs/finetuning out"
            )
        parts = (self.loader, trainer.prepare_batch, trainer.optimizer)
        if not all(map(isinstance, parts, (PatientBatches, AugmentPatients, PatientOptimizer))):
            raise TypeError(
                "DP-SGD needs PatientBatches, AugmentPatients and a PatientOptimizer, got "
                f"{', '.join(type(part).__name__ for part in parts)}: use configs/privacy/dp_sgd.json"
            )
        if loss_scale(trainer):
            raise ValueError(
                "DP-SGD takes every step, and a scaled loss leaves some out by what the gradients are: set precision "
                "to fp32 or bf16"
            )
        optimizer = trainer.optimizer
        self.weight_privacy = WeightPrivacy(
            optimizer.noise_multiplier, self.loader.sample_rate, optimizer.max_grad_norm, epsilon_budget, delta
        )
        self.ledger = PrivacyLedger(self.loader.patients, delta, "weights", ledger)
        self._state["privacy"] = self.ledger
        self._loss_checked = False
        trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, self._check_loss)
        trainer.add_event_handler(
            IterationEvents.BACKWARD_COMPLETED,
            lambda engine: engine.optimizer.group(engine.state.batch["patient"]),
        )

    def train(self, should_stop: Callable[[], bool]) -> TrainReport:
        """As the parent's; metrics are ``dp_epsilon`` (spent so far, this round included) and ``dp_delta``.

        Raises:
            RuntimeError: when the round would pass the budget: nothing is trained, nothing is returned.
        """
        noise, rate, budget = (
            getattr(self.weight_privacy, name) for name in ("noise_multiplier", "sample_rate", "epsilon_budget")
        )
        # Before training: a crash half-way, or a stop, must not leave steps uncounted.
        if not self.ledger.spend(noise, rate, len(self.loader), budget):
            raise RuntimeError(
                f"another round of {len(self.loader)} steps would take epsilon beyond the budget of "
                f"{budget:g}; spent are {self.ledger.epsilon():.4g}. This site trains no further"
            )
        report = super().train(should_stop)
        return replace(report, metrics={"dp_epsilon": self.ledger.epsilon(), "dp_delta": self.ledger.delta})

    def _check_loss(self, engine: Engine) -> None:
        if not self._loss_checked:
            _refuse_a_loss_that_mixes_slices(engine)
            # Once is enough, and once costs little.
            self._loss_checked = len(engine.state.output[CommonKeys.PRED]) > 1


def _refuse_a_loss_that_mixes_slices(engine: Engine) -> None:
    output, loss = engine.state.output, engine.loss_function
    if output[CommonKeys.LABEL].is_floating_point():
        raise ValueError(
            "labels are soft: mixup blends slices of different patients, whose gradients then cannot be told apart. "
            "Leave it out"
        )
    with torch.no_grad():
        pairs = zip(output[CommonKeys.PRED].split(1), output[CommonKeys.LABEL].split(1), strict=True)
        mean = torch.stack([loss(prediction, label) for prediction, label in pairs]).mean()
    if not torch.allclose(mean, output[CommonKeys.LOSS], rtol=1e-3, atol=1e-5):
        raise ValueError(
            f"the loss of a batch ({output[CommonKeys.LOSS]:.6g}) is not the mean over its slices ({mean:.6g}), so "
            "that no slice has a gradient of its own: set the loss's `batch` to false and its reduction to mean"
        )
