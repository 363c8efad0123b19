"""A batch of slices on its way to the network: onto the device and augmented there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from monai.engines import PrepareBatch
from torch import Tensor

# (image, label, generator=...) -> (image, label), on whole batches.
Augmentation = Callable[..., tuple[Tensor, Tensor | None]]


class AugmentBatch(PrepareBatch):
    """``prepare_batch`` of a MONAI trainer that augments whole batches on the training device.

    Args:
        augmentation: ``(image, label, generator=...) -> (image, label)`` on whole batches (:mod:`fcl.transforms`);
            None trains on the slices as they are.
        device: where the augmentation draws its numbers; must be the trainer's device.
        seed: of the augmentation.
    """

    def __init__(
        self,
        augmentation: Augmentation | None,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        self.augmentation = augmentation
        # A generator of its own: a resumed run restores it, and other users of the global one do not move it.
        self.generator = torch.Generator(device=device).manual_seed(seed)

    def __call__(
        self,
        batchdata: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Image (B, 1, H, W) and label (B, 1, H, W) of the batch, on ``device``; None for a batch without label."""
        image, label = (
            batchdata[key].to(device=device, non_blocking=non_blocking, **kwargs) if key in batchdata else None
            for key in ("image", "label")
        )
        if self.augmentation is not None:
            image, label = self._augmented(self.augmentation, image, label, batchdata)
        return image, label

    def state_dict(self) -> dict[str, Tensor]:
        """Where the augmentation's random numbers stand."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue the random numbers from ``state``."""
        self.generator.set_state(state["generator"].cpu())

    def _augmented(
        self, augmentation: Augmentation, image: Tensor, label: Tensor | None, batchdata: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        return augmentation(image, label, generator=self.generator)
