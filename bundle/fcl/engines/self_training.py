"""Self-training: the network's own predictions on scans without annotation, as labels to train on.

Letters: N unlabelled slices (or slabs).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from torch import Tensor

from fcl.data import SliceLoader
from fcl.engines.pseudo_labels import pseudo_labels
from fcl.engines.unlabelled_variant import UnlabelledVariant
from fcl.engines.variant import Terms


class SelfTraining(UnlabelledVariant):
    """Trains on pseudo-labels beside the annotated slices, and renews them now and then (Bai et al., MICCAI 2017).

    A pseudo-label is the class with the highest score, by the network as an epoch finds it (in a federation: the
    global one). Every step then adds the trainer's own loss on a batch of unlabelled slices, augmented like the others.
    Before the first labels, training is supervised. Bai et al. refine labels with a conditional random field and train
    to the end between renewals; here the labels are taken as they are.

    Args:
        slices: as in the base class.
        start: epochs (rounds) of supervised training before the first pseudo-labels.
        interval: epochs (rounds) from one renewal to the next, at least; a site that rests in the round when its labels
            fall due renews them in the next one that it takes part in.
        weight: of the loss on pseudo-labels.

    Raises:
        ValueError: on a negative ``start``, an ``interval`` below 1 or a ``weight`` that is not above 0.
    """

    logs = ("kept_share",)

    def __init__(self, slices: SliceLoader | None, start: int, interval: int, weight: float = 1.0) -> None:
        if start < 0 or interval < 1 or not 0.0 < weight < float("inf"):
            raise ValueError(
                "start must be 0 or more, interval at least 1 and weight above 0; "
                f"got {start!r}, {interval!r} and {weight!r}."
            )
        super().__init__(slices)
        self.start = start
        self.interval = interval
        self.weight = weight
        self.labels: Tensor | None = None  # (N, H, W[, D]) uint8
        self._renewed: int | None = None  # epoch that the labels are of
        self._kept = 0.0

    def begin_epoch(self, engine: SupervisedTrainer) -> None:
        epoch = engine.state.epoch
        # Counted from this site's own last labels: it may have joined late, and need not take part in every round.
        if epoch > self.start and (self._renewed is None or epoch - self._renewed >= self.interval):
            self._renewed = epoch
            before, self.labels = self.labels, pseudo_labels(engine.network, self.slices.dataset, engine)
            self._kept = 0.0 if before is None else float((before == self.labels).float().mean())

    def __call__(self, engine: SupervisedTrainer) -> Terms:
        prediction = engine.state.output["pred"]
        kept = prediction.new_tensor(self._kept)
        if self.labels is None:
            return {"loss": prediction.new_zeros(()), "kept_share": kept}
        batch = next(iter(self.slices))
        batch["label"] = self.labels[batch["row"]].unsqueeze(1).long()
        image, label = engine.prepare_batch(batch, engine.state.device, engine.non_blocking, **engine.to_kwargs)
        loss = engine.loss_function(engine.inferer(image, engine.network), label).mean()
        return {"loss": self.weight * loss, "kept_share": kept}

    def state_dict(self) -> dict[str, Any]:
        """Label maps are large and simple: they are kept compressed."""
        state: dict[str, Any] = {
            "slices": self.slices.state_dict(),
            "renewed": self._renewed,
            "kept": self._kept,
            "shape": [],
            "labels": None,
        }
        if self.labels is not None:
            packed = bytearray(zlib.compress(self.labels.numpy().tobytes()))
            state |= {"shape": list(self.labels.shape), "labels": torch.frombuffer(packed, dtype=torch.uint8)}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.slices.load_state_dict(state["slices"])
        self._renewed, self._kept = state["renewed"], float(state["kept"])
        self.labels = None
        if state["labels"] is not None:
            content = bytearray(zlib.decompress(state["labels"].numpy().tobytes()))
            self.labels = torch.frombuffer(content, dtype=torch.uint8).reshape(state["shape"])
