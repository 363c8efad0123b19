"""What a pre-training method is to the trainer: a small object that turns a batch into a loss.

Letters: B batch, D feature length.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

Terms = dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """One training step's material, as a method sees it.

    Args:
        image: (B, 1, H, W) slices as they are in the cache, on the training device.
        row, volume, partition: (B,) int64 of each slice.
        position: (B,) float32 of each slice along its volume, in [0, 1).
        network: what learns.
        momentum_network: follows it as a moving average; None where the method needs none.
        augment: images to augmented images of the same shape; every call draws anew.
        locate: as ``augment``, and with each view the origin of its pixels: (B, H, W) int64, which pixel of the image
            it shows, counted row by row, and -1 outside of it.
        inferer: runs a network, or one of its methods, at the training's precision; gives float32.
        generator: of the trainer; a method that draws must draw from it, or a restart gives other numbers.
    """

    image: Tensor
    row: Tensor
    volume: Tensor
    partition: Tensor
    position: Tensor
    network: nn.Module
    momentum_network: nn.Module | None
    augment: Callable[[Tensor], Tensor]
    locate: Callable[[Tensor], tuple[Tensor, Tensor]]
    inferer: Inferer
    generator: torch.Generator

    def run(self, forward: Callable[..., Any], image: Tensor, *args: Any) -> Tensor:
        """``forward(image, *args)`` at the training's precision, as float32."""
        return self.inferer(image, forward, *args)

    @torch.no_grad()
    def run_target(self, image: Tensor) -> Tensor:
        """Features of the momentum network; no gradient reaches it."""
        assert self.momentum_network is not None  # the trainer has checked that the method has what it needs
        return self.run(self.momentum_network, image)


class Method(ABC):
    """Base of the methods; one without state needs :meth:`__call__` only.

    Attributes:
        needs_momentum_network: the trainer refuses to start without one.
        network_methods: what the network must offer besides ``embed`` (its pooled encoder features).
        counts: whether the terms of the last step count in the epoch's means.
    """

    needs_momentum_network: ClassVar[bool] = False
    network_methods: ClassVar[tuple[str, ...]] = ()
    counts: bool = True

    @abstractmethod
    def __call__(self, step: Step) -> Terms:
        """The ``loss``, with its graph, and any number of detached scalars to log.

        A loss without a graph trains nothing.
        """

    def begin_round(self) -> None:  # noqa: B027 (most methods have nothing to do here)
        """Training in a round of a federation begins, with other weights than the last step left."""

    def state_dict(self) -> dict[str, Any]:
        """What the method keeps from step to step (tensors and plain Python only)."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (nor to restore)
        """Restore :meth:`state_dict`, so that training continues bit for bit."""


class Untrained(Method):
    """Leaves the network as it was initialised: the row "random" of a table."""

    def __call__(self, step: Step) -> Terms:
        return {"loss": step.image.new_zeros(())}


@torch.no_grad()
def feature_monitors(first_BD: Tensor, second_BD: Tensor | None = None) -> Terms:
    """``spread`` of the features and, given a second view of the same slices, ``alignment`` of the two.

    Spread 1 is the uniform sphere, 0 a single point (collapse); alignment is the mean squared distance of two views
    (Wang & Isola, ICML 2020). Features need not be of unit norm.
    """
    first_BD = nn.functional.normalize(first_BD.float(), dim=1)
    monitors = {"spread": first_BD.std(dim=0).mean() * first_BD.shape[1] ** 0.5}
    if second_BD is not None:
        second_BD = nn.functional.normalize(second_BD.float(), dim=1)
        monitors["alignment"] = (first_BD - second_BD).square().sum(dim=1).mean()
    return monitors


def logged(terms: Any) -> Terms:
    """The fields of a loss's named tuple, all but the loss detached."""
    return {name: value if name == "loss" else value.detach() for name, value in terms._asdict().items()}
