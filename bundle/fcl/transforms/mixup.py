"""Mixup of a batch: every slice is blended with another one, and so are their labels.

Letters: B batch, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from monai.networks import one_hot
from torch import Tensor


class BatchMixUp:
    """``w x_i + (1 - w) x_j`` with ``w`` from Beta(alpha, alpha) for each slice (Zhang et al., ICLR 2018).

    Labels become soft: shares of the classes. So the loss must take them as they are (``to_onehot_y`` false) and be
    least where prediction and soft label agree: cross-entropy is, Dice only with ``squared_pred``. Put it last, after
    what takes a label map.

    ``monai.transforms.MixUp`` mixes alike, but cannot draw from the batch's generator, which a resumed run restores,
    nor mix on a GPU, where its weights are not.

    Args:
        alpha: of the Beta distribution; 1 is uniform, small values leave most slices nearly as they were.
        num_classes: C, background included.

    Raises:
        ValueError: on an ``alpha`` that is not above 0, or fewer than two classes.
    """

    def __init__(self, alpha: float, num_classes: int) -> None:
        if not 0.0 < alpha < float("inf") or num_classes < 2:
            raise ValueError(f"alpha must be above 0 and num_classes at least 2, got {alpha!r} and {num_classes!r}.")
        self.alpha = alpha
        self.num_classes = num_classes

    @torch.no_grad()
    def __call__(
        self, image: Tensor, label: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The mixed batch.

        Args:
            image: floating point.
            label: class indices.
            generator: on the image's device; the device's own by default.

        Shape:
            image: (B, 1, H, W[, D]); label: (B, 1, H, W[, D]), comes back as (B, C, H, W[, D]) float32.
        """
        # PyTorch's Beta takes no generator: NumPy draws, from a seed that the batch's generator gives.
        seed = int(torch.randint(2**32, (1,), generator=generator, device=image.device))
        draw = np.random.RandomState(seed)
        weight = torch.from_numpy(draw.beta(self.alpha, self.alpha, len(image))).float().to(image.device)
        partner = torch.from_numpy(draw.permutation(len(image))).to(image.device)
        weight = weight.view(-1, *[1] * (image.ndim - 1))
        soft = None if label is None else _mixed(one_hot(label, self.num_classes), weight, partner)
        return _mixed(image, weight, partner), soft


def _mixed(batch: Tensor, weight: Tensor, partner: Tensor) -> Tensor:
    weight = weight.to(batch.dtype)
    return weight * batch + (1.0 - weight) * batch[partner]
