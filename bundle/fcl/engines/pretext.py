"""Pretext tasks: tell a rotation, restore a corrupted image. Letter: B batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fcl.engines.corruptions import Corruption
from fcl.engines.method import Method, Step, Terms, feature_monitors
from fcl.losses import RestorationLoss


class Rotation(Method):
    """Tells by how many quarter turns a slice was rotated (Gidaris et al., "RotNet", ICLR 2018).

    Every slice is seen in all four rotations, as in the paper.

    Args:
        loss_function: of logits (4 B, 4) and classes (4 B,).
    """

    network_methods = ("head",)

    def __init__(self, loss_function: nn.Module) -> None:
        self.loss_function = loss_function

    def __call__(self, step: Step) -> Terms:
        network: Any = step.network
        height, width = step.image.shape[2:4]
        if height != width:
            raise ValueError(f"a quarter turn needs square slices, got {height} x {width}: set spatial_size.")
        view = step.augment(step.image)
        turned = torch.cat([torch.rot90(view, turns, (2, 3)) for turns in range(4)])
        turns_4B = torch.arange(4, device=view.device).repeat_interleave(len(view))
        pooled = step.run(network.embed, turned)
        logits = network.head(pooled)
        if logits.shape[1] != 4:
            raise ValueError(f"four rotations need a head with 4 outputs, got {logits.shape[1]}: set feature_length.")
        accuracy = (logits.detach().argmax(dim=1) == turns_4B).float().mean()
        return {
            "loss": self.loss_function(logits, turns_4B),
            "accuracy": accuracy,
            **feature_monitors(pooled.detach()),
        }


class Restoration(Method):
    """Restores what a corruption hid or moved, with encoder and decoder.

    Logs ``absolute_error``, the mean over all voxels of the distance from the loss's target.

    Args:
        corruption: see :mod:`fcl.engines.corruptions`.
        loss_function: :class:`fcl.losses.RestorationLoss`.
    """

    network_methods = ("maps", "decoder")

    def __init__(self, corruption: Corruption, loss_function: RestorationLoss) -> None:
        self.corruption = corruption
        self.loss_function = loss_function

    def __call__(self, step: Step) -> Terms:
        network: Any = step.network
        image = step.augment(step.image)
        corrupted, where = self.corruption(image, step.generator)
        pooled: list[Tensor] = []

        def restore(x: Tensor) -> Tensor:
            maps = network.maps(x, where)
            pooled.append(maps[-1].detach().float().flatten(2).mean(dim=2))
            return network.decoder(maps)

        restored = step.run(restore, corrupted)
        error = (restored.detach() - self.loss_function.target(image)).abs()
        return {
            "loss": self.loss_function(restored, image, where),
            "corrupted_share": where.float().mean(),
            "absolute_error": error.mean(),
            **feature_monitors(pooled[0]),
        }
