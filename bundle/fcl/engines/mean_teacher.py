"""Mean teacher: a slowly moving copy of the network labels scans without annotation, mixed with annotated ones.

Letters: B batch, H, W, D axes of a slice or slab.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fcl.config import as_switch
from fcl.data import SliceLoader
from fcl.engines.pseudo_labels import pseudo_labels
from fcl.engines.unlabelled_variant import UnlabelledVariant
from fcl.engines.variant import Terms


class MeanTeacher(UnlabelledVariant):
    """Learns from unlabelled slices what a teacher sees in them, a box of each exchanged with an annotated slice.

    The teacher is an exponential moving average of the network (Tarvainen and Valpola, NeurIPS 2017). As an epoch
    begins it labels the unlabelled volumes, whole and as they are, and of each class the largest component may stay.
    The network is shown their slices augmented, as it is every annotated slice. Then a box of such a slice is cut out
    and filled from an annotated slice of the step, or the other way round, in the label as in the image (bidirectional
    copy-paste, Bai et al., CVPR 2023): so what is right and what is guessed meet in every image. Bai et al. label anew
    in every step and weigh guessed voxels down; here labels stand for an epoch, in which the teacher hardly moves, and
    the whole image weighs ``weight``, which grows from 0. In a federation the average of all sites, which has seen what
    all of them know, is the teacher of a round.

    Args:
        slices: as in the base class; of the larger of the two batches, the slices that have no partner are left out.
        start: epochs (rounds) of supervised training first; the teacher begins as a copy of the network then.
        ramp: further epochs over which the weight grows to ``weight``, linearly.
        weight: of the loss on the pasted slices.
        momentum: m of the teacher's weights, ``m * teacher + (1 - m) * network`` in each step, with the network as the
            step before left it. Without effect in a federation, where the teacher stands still and each round brings
            another.
        share: side of the box, as a share of the image's; the same for every axis of the slice.
        largest_component: of each class in a volume keep the largest connected part of what the teacher says. Not for
            structures of several parts. From the command line ``true`` or ``false``.
        seed: of the places of the boxes.

    Raises:
        ValueError: on negative epochs, a ``weight``, ``momentum`` or ``share`` out of its range, or a
            ``largest_component`` that is neither true nor false.
    """

    logs = ("agreement",)

    def __init__(
        self,
        slices: SliceLoader | None,
        start: int,
        ramp: int,
        weight: float = 1.0,
        momentum: float = 0.99,
        share: float = 2.0 / 3.0,
        largest_component: bool | str = False,
        seed: int = 0,
    ) -> None:
        if start < 0 or ramp < 0 or not 0.0 < weight < float("inf"):
            raise ValueError(
                f"start and ramp must be 0 or more and weight above 0; got {start!r}, {ramp!r} and {weight!r}."
            )
        if not 0.0 <= momentum < 1.0 or not 0.0 < share < 1.0:
            raise ValueError(
                f"momentum must be from 0 to below 1 and share between 0 and 1; got {momentum!r} and {share!r}."
            )
        super().__init__(slices)
        self.start = start
        self.ramp = ramp
        self.weight = weight
        self.momentum = momentum
        self.share = share
        self.largest_component = as_switch(largest_component, "largest_component")
        self.generator = torch.Generator().manual_seed(seed)
        self._average = get_ema_multi_avg_fn(momentum)
        self._in_rounds = False
        self.teacher: nn.Module | None = None
        self._kept: dict[str, Tensor] = {}
        self._labels: Tensor | None = None  # (N, H, W[, D]) uint8, of this epoch

    def begin_round(self, weights: Mapping[str, Tensor]) -> None:
        self.teacher, self._kept, self._in_rounds = None, {}, True

    def begin_epoch(self, engine: SupervisedTrainer) -> None:
        # A site that joined late, or again, has missed the epoch in which the others' teachers began.
        if self.teacher is None and (self._kept or engine.state.epoch > self.start):
            self.teacher = copy.deepcopy(engine.network).eval().requires_grad_(False)
            if self._kept:
                self.teacher.load_state_dict(self._kept)
                self._kept = {}
        if self.teacher is not None:
            self._labels = pseudo_labels(self.teacher, self.slices.dataset, engine, self.largest_component)

    def __call__(self, engine: SupervisedTrainer) -> Terms:
        output = engine.state.output
        if self.teacher is None:
            nothing = output["pred"].new_zeros(())
            return {"loss": nothing, "agreement": nothing}
        if not self._in_rounds:
            self._follow(engine.network)
        image, label = self._mixed(engine)
        prediction = engine.inferer(image, engine.network)
        loss = engine.loss_function(prediction, label).mean()
        grown = min(1.0, (engine.state.epoch - self.start) / (self.ramp + 1))
        hard = label if label.shape[1] == 1 else label.argmax(dim=1, keepdim=True)  # soft where slices are blended
        agreement = (prediction.argmax(dim=1, keepdim=True) == hard).float().mean()
        return {"loss": self.weight * grown * loss, "agreement": agreement}

    def state_dict(self) -> dict[str, Any]:
        return {
            "slices": self.slices.state_dict(),
            "generator": self.generator.get_state(),
            # In a federation there is none to keep: the next round brings its own.
            "teacher": self._kept if self.teacher is None or self._in_rounds else self.teacher.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.slices.load_state_dict(state["slices"])
        self.generator.set_state(state["generator"].cpu())
        self.teacher, self._kept = None, dict(state["teacher"])  # its modules are made when an epoch brings the network

    @torch.no_grad()
    def _mixed(self, engine: SupervisedTrainer) -> tuple[Tensor, Tensor]:
        """Slices with a part that was annotated and a part that the teacher labelled, and their labels."""
        assert self._labels is not None
        device, output = engine.state.device, engine.state.output
        batch = next(iter(self.slices))
        batch["label"] = self._labels[batch["row"]].unsqueeze(1).long()
        image, label = engine.prepare_batch(batch, device, engine.non_blocking, **engine.to_kwargs)
        rows = min(len(image), len(output["image"]))  # either may have fewer slices than a batch
        box = self._boxes(image[:rows]).to(device)
        return (
            torch.where(box, output["image"][:rows], image[:rows]),
            torch.where(box, output["label"][:rows], label[:rows]),
        )

    @torch.no_grad()
    def _follow(self, network: nn.Module) -> None:
        assert self.teacher is not None
        own, current = self.teacher.state_dict(), network.state_dict()
        moving = [name for name, value in own.items() if value.is_floating_point()]
        self._average([own[name] for name in moving], [current[name] for name in moving], None)
        for name in own.keys() - set(moving):  # what batch normalisation counts
            own[name].copy_(current[name])

    def _boxes(self, image: Tensor) -> Tensor:
        """(B, 1, H, W[, D]) where the annotated slice shows: in a box for the first half, around it for the rest."""
        boxes = torch.zeros(len(image), 1, *image.shape[2:], dtype=torch.bool)
        for number, box in enumerate(boxes):
            place: list[slice] = [slice(None)]
            for side in image.shape[2:4]:
                length = max(1, round(self.share * side))
                start = int(torch.randint(side - length + 1, (1,), generator=self.generator))
                place.append(slice(start, start + length))
            box[tuple(place)] = True
            if number >= len(image) // 2:
                box.logical_not_()
        return boxes
