"""What a variant of fine-tuning adds to the supervised steps of MONAI's trainer."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from ignite.engine import Events
from ignite.metrics import Average
from monai.engines import IterationEvents, SupervisedTrainer
from monai.utils import CommonKeys
from torch import Tensor

Terms = dict[str, Tensor]
logger = logging.getLogger(__name__)


class Variant(ABC):
    """Base of the variants; each overrides what it needs, the others are hooks that do nothing.

    Attributes:
        logs: scalars that every step gives besides its loss; their means over an epoch are metrics of the trainer.
        needs: why one is idle and what to do about it; ``{name}`` is its own.
    """

    logs: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[str] = ""

    @property
    def idle(self) -> bool:
        """Whether this site has nothing for it to work on."""
        return False

    def prepare(self, device: torch.device) -> None:  # noqa: B027
        """The trainer that it belongs to is being made, and will train on ``device``."""

    def begin_round(self, weights: Mapping[str, Tensor]) -> None:  # noqa: B027
        """A round of a federation begins; the trainer's network holds the global ``weights`` already."""

    def begin_epoch(self, engine: SupervisedTrainer) -> None:  # noqa: B027
        """``engine.state.epoch`` counts from 1; in a federation a round is an epoch."""

    @abstractmethod
    def __call__(self, engine: SupervisedTrainer) -> Terms:
        """What this step adds: ``loss``, with its graph, and the scalars named in ``logs``.

        ``engine.state.output`` holds image, label, prediction and loss of the step; its backward pass is to come.
        """

    def state_dict(self) -> dict[str, Any]:
        """What the variant keeps from step to step (tensors and plain Python only)."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Restore :meth:`state_dict`, so that training continues bit for bit."""


class Variants:
    """The variants of a training, in order; a handler for MONAI's ``SupervisedTrainer``, and their state.

    Each adds its loss to that of the annotated slices. Without any, training is plainly supervised. So it is at a site
    of a federation where all are idle; a training at one site is refused then, for it was asked for what cannot be.

    Args:
        parts: at most one of each kind.

    Raises:
        ValueError: when two are of one kind.
    """

    def __init__(self, parts: Sequence[Variant] = ()) -> None:
        self.parts = {type(part).__name__: part for part in parts}
        self._in_rounds = False
        if len(self.parts) < len(parts):
            names = [type(part).__name__ for part in parts]
            raise ValueError(f"each variant of fine-tuning can be given once, got {', '.join(names)}.")

    def attach(self, engine: SupervisedTrainer) -> None:
        """Register on the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin_epoch)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._add)
        for part in self._busy().values():
            part.prepare(engine.state.device)
            for name in part.logs:
                Average(output_transform=_reader(name)).attach(engine, name)

    def begin_round(self, weights: Mapping[str, Tensor]) -> None:
        """See :meth:`Variant.begin_round`."""
        if not self._in_rounds:
            self._in_rounds = True
            for name, part in self.parts.items():
                if part.idle:
                    logger.warning("trained without %s: %s", name, part.needs.format(name=name))
        for part in self._busy().values():
            part.begin_round(weights)

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._busy().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`.

        Raises:
            ValueError: when it is of other variants.
        """
        busy = self._busy()
        if state.keys() != busy.keys():
            raise ValueError(
                f"the state is of a training with the variants {sorted(state)}, this one has {sorted(busy)}: "
                "resume with the overlays and the scans that it was begun with."
            )
        for name, part in busy.items():
            part.load_state_dict(state[name])

    def _busy(self) -> dict[str, Variant]:
        return {name: part for name, part in self.parts.items() if not part.idle}

    def _begin_epoch(self, engine: SupervisedTrainer) -> None:
        if not self._in_rounds:
            for name, part in self.parts.items():
                if part.idle:
                    raise ValueError(part.needs.format(name=name))
        for part in self._busy().values():
            part.begin_epoch(engine)

    def _add(self, engine: SupervisedTrainer) -> None:
        output = engine.state.output
        for part in self._busy().values():
            terms = part(engine)
            output[CommonKeys.LOSS] = output[CommonKeys.LOSS] + terms["loss"]
            output.update({name: terms[name].detach() for name in part.logs})


def _reader(name: str) -> Callable[[Mapping[str, Tensor]], float]:
    return lambda output: output[name].item()
