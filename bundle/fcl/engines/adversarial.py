"""Adversarial training: predictions on scans without annotation shall look like those on annotated ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.losses import PatchAdversarialLoss
from torch import Tensor, nn

from fcl.data import SliceLoader
from fcl.engines.unlabelled_variant import UnlabelledVariant
from fcl.engines.variant import Terms


class Adversarial(UnlabelledVariant):
    """A discriminator tells annotated from unannotated slices by their prediction; the network is trained to fool it.

    Zhang et al., "Deep adversarial networks for biomedical image segmentation utilizing unannotated images" (MICCAI
    2017). In each step the discriminator learns from the step's annotated batch (true) and one of unannotated slices
    (false), and the segmenting network from its verdict on the latter, as if they should be true. The discriminator
    sees the image beside the softmax of the prediction. It stays at its site.

    Args:
        slices: as in the base class.
        discriminator: from (B, 1 + classes, H, W) to a list whose last entry holds scores, no activation, as MONAI's
            ``PatchDiscriminator`` gives; it should not normalise over a batch, whose kind it is asked for.
        weight: of the adversarial loss. Large values let the network please the discriminator instead of the labels.
        learning_rate: of the discriminator (Adam).

    Raises:
        ValueError: on a ``weight`` or a ``learning_rate`` that is not above 0.
    """

    logs = ("accuracy",)

    def __init__(
        self, slices: SliceLoader | None, discriminator: nn.Module, weight: float = 0.01, learning_rate: float = 2e-4
    ) -> None:
        if not 0.0 < weight < float("inf") or not 0.0 < learning_rate < float("inf"):
            raise ValueError(f"weight and learning_rate must be above 0, got {weight!r} and {learning_rate!r}.")
        super().__init__(slices)
        self.discriminator = discriminator
        self.weight = weight
        self.optimizer = torch.optim.Adam(discriminator.parameters(), lr=learning_rate, betas=(0.5, 0.999))
        self.loss_function = PatchAdversarialLoss(criterion="bce")

    def prepare(self, device: torch.device) -> None:
        self.discriminator.to(device)

    def __call__(self, engine: SupervisedTrainer) -> Terms:
        device, output = engine.state.device, engine.state.output
        image, _ = engine.prepare_batch(next(iter(self.slices)), device, engine.non_blocking, **engine.to_kwargs)
        unannotated = _evidence(image, engine.inferer(image, engine.network))
        annotated = _evidence(output["image"], output["pred"].detach())
        # In full precision: half would lose the logarithms of BCE, and PyTorch refuses it under autocast.
        with torch.autocast(device.type, enabled=False):
            accuracy = self._train_discriminator(annotated, unannotated.detach())
            self.discriminator.requires_grad_(False)
            loss = self.weight * self.loss_function(self.discriminator(unannotated)[-1], True, False)
            self.discriminator.requires_grad_(True)
        return {"loss": loss, "accuracy": accuracy}

    def state_dict(self) -> dict[str, Any]:
        return {
            "slices": self.slices.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.slices.load_state_dict(state["slices"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _train_discriminator(self, annotated: Tensor, unannotated: Tensor) -> Tensor:
        """One step; gives the share of scores that were right before it."""
        self.discriminator.train()
        self.optimizer.zero_grad(set_to_none=True)
        true, false = (self.discriminator(evidence)[-1] for evidence in (annotated, unannotated))
        loss = 0.5 * (self.loss_function(true, True, True) + self.loss_function(false, False, True))
        loss.backward()
        self.optimizer.step()
        return 0.5 * ((true > 0).float().mean() + (false <= 0).float().mean()).detach()


def _evidence(image: Tensor, logits: Tensor) -> Tensor:
    return torch.cat([image.float(), logits.float().softmax(dim=1)], dim=1)
