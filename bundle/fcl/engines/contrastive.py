"""Methods that compare views of whole slices: SimCLR, MoCo, BYOL, SwAV and their kin, one step each.

Letters: V views, B batch, D feature length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fcl.config import as_switch
from fcl.engines.method import Method, Step, Terms, feature_monitors, logged
from fcl.memory.queue import FeatureQueue


class ViewContrast(Method):
    """Views of a batch against one another: SimCLR, Chaitanya's global contrast, PCL, by the loss.

    Args:
        loss_function: ``(views_VBD, partition_B, volume_B, position_B)`` to a named tuple with ``loss``, e.g.
            :class:`fcl.losses.GlobalContrastLoss`.
        augmented_views: how many.
        with_original: whether the slice as it is becomes one view more, the first. From the command line ``true`` or
            ``false``.

    Raises:
        ValueError: when that makes fewer than two views, or on a ``with_original`` that is neither true nor false.
    """

    def __init__(self, loss_function: nn.Module, augmented_views: int = 2, with_original: bool | str = False) -> None:
        self.with_original = as_switch(with_original, "with_original")
        if augmented_views < 1 or augmented_views + self.with_original < 2:
            raise ValueError(
                f"two views or more are needed: got augmented_views {augmented_views!r}, with_original {with_original}."
            )
        self.loss_function = loss_function
        self.augmented_views = augmented_views

    def __call__(self, step: Step) -> Terms:
        views = [step.image] if self.with_original else []
        views += [step.augment(step.image) for _ in range(self.augmented_views)]
        # One pass, so that a normalisation over the batch sees all views alike.
        features_VBD = step.run(step.network, torch.cat(views)).unflatten(0, (len(views), -1))
        terms = self.loss_function(features_VBD, step.partition, step.volume, step.position)
        return {**logged(terms), **feature_monitors(features_VBD[0], features_VBD[1])}


class _Queued(Method):
    """A method that keeps features of the last batches."""

    def __init__(self, length: int) -> None:
        self.queue = FeatureQueue(length)

    def begin_round(self) -> None:
        # Its features were made by a network of before the average.
        self.queue.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"queue": self.queue.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.queue.load_state_dict(state["queue"])


class QueueContrast(_Queued):
    """View 1 against the momentum network's view 2 and a queue of such features (He et al., "MoCo", CVPR 2020).

    Args:
        loss_function: :class:`fcl.losses.QueueContrastLoss`.
        queue_length: features of the last batches to keep; those of a query's own slice are no negatives.
    """

    needs_momentum_network = True

    def __init__(self, loss_function: nn.Module, queue_length: int = 1024) -> None:
        super().__init__(queue_length)
        self.loss_function = loss_function

    def __call__(self, step: Step) -> Terms:
        view1, view2 = step.augment(step.image), step.augment(step.image)
        q_BD = step.run(step.network, view1)
        k_BD = step.run_target(view2)
        queue_LD, row_L = self.queue.content(k_BD)
        self.counts = len(queue_LD) > 0  # without negatives the loss is 0 whatever the features
        terms = self.loss_function(q_BD, k_BD, queue_LD, step.row[:, None] != row_L)
        self.queue.push(k_BD, step.row)
        return {**logged(terms), **feature_monitors(k_BD, q_BD)}


class Prediction(Method):
    """Predicts the momentum network's features of the other view, both ways (Grill et al., "BYOL", NeurIPS 2020).

    Args:
        loss_function: :class:`fcl.losses.PredictionLoss`.
    """

    needs_momentum_network = True
    network_methods = ("predict",)

    def __init__(self, loss_function: nn.Module) -> None:
        self.loss_function = loss_function

    def __call__(self, step: Step) -> Terms:
        network: Any = step.network
        views = [step.augment(step.image), step.augment(step.image)]
        predicted = [step.run(network.predict, view) for view in views]
        targets = [step.run_target(view) for view in views]
        both = [
            logged(self.loss_function(prediction_BD, target_BD, step.partition, step.volume))
            for prediction_BD, target_BD in zip(predicted, reversed(targets), strict=True)
        ]
        terms = {name: (both[0][name] + both[1][name]) / 2 for name in both[0]}
        return {**terms, **feature_monitors(targets[0], targets[1])}


class SwappedAssignment(_Queued):
    """Each view predicts which prototypes the other is assigned to (Caron et al., "SwAV", NeurIPS 2020).

    The prototypes are part of the network, so that sites average them as any weight. Two views of full size; the
    paper's smaller crops beside them are left out.

    Args:
        loss_function: :class:`fcl.losses.SwappedAssignmentLoss`.
        queue_length: earlier features that take part in the assignment, which a small batch needs.
    """

    network_methods = ("scores",)

    def __init__(self, loss_function: nn.Module, queue_length: int = 256) -> None:
        super().__init__(queue_length)
        self.loss_function = loss_function

    def __call__(self, step: Step) -> Terms:
        network: Any = step.network
        views = torch.cat([step.augment(step.image), step.augment(step.image)])
        first_BD, second_BD = step.run(network, views).chunk(2)
        queue_LD, _ = self.queue.content(first_BD.detach())
        with torch.no_grad():
            queued_LP = network.scores(queue_LD)
        terms = self.loss_function(network.scores(first_BD), network.scores(second_BD), queued_LP)
        self.queue.push(first_BD, step.row)
        return {**logged(terms), **feature_monitors(first_BD.detach(), second_BD.detach())}


class RegionContrast(Method):
    """Regions of a map against one another, on top of a frozen encoder (Chaitanya et al., NeurIPS 2020, section 3.2).

    The augmentation must not move anything: a region is the same place in both views.

    Args:
        loss_function: :class:`fcl.losses.LocalContrastLoss`.
    """

    network_methods = ("load_encoder",)

    def __init__(self, loss_function: nn.Module) -> None:
        self.loss_function = loss_function
        self._has_encoder = False

    def __call__(self, step: Step) -> Terms:
        network: Any = step.network
        self._has_encoder |= network.has_encoder
        if not self._has_encoder:
            raise ValueError(
                "local contrast trains a decoder on top of a pre-trained encoder, and none was given: set "
                "--network_def::pretrained <encoder.pt>, or in a federation the job's --pretrained."
            )
        views = torch.cat([step.augment(step.image), step.augment(step.image)])
        features_VBRD: Tensor = step.run(network, views).unflatten(0, (2, -1))
        terms = self.loss_function(features_VBRD, step.partition, step.volume)
        first, second = features_VBRD.detach().flatten(1, 2)
        return {**logged(terms), **feature_monitors(first, second)}

    def state_dict(self) -> dict[str, Any]:
        # A restored network holds the encoder of earlier steps, and cannot tell it from a random one.
        return {"has_encoder": self._has_encoder}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._has_encoder = bool(state["has_encoder"])
