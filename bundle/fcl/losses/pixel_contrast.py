"""Contrast of pixels that two views of a slice show (after VADeR: Pinheiro et al., NeurIPS 2020).

Letters: B batch, P pixels of the first view, N pixels of the second, D feature length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fcl.losses.contrast import masked_lse, masked_mean, mean_over_positives


class PixelTerms(NamedTuple):
    """The loss, and detached: the share of pixels that are most like themselves, and mean cosine similarities."""

    loss: Tensor
    accuracy: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor


class PixelContrastLoss(nn.Module):
    """A pixel attracts the pixel of the other view that shows the same place, and is repelled by those that are apart.

    VADeR's InfoNCE. There pixels of other images, from a queue, repel; here those of the same slice
    do, which is ours: other patients' slices show the same anatomy, and those at the same place of it should not repel.
    Pixels near the same place take no part.

    Args:
        temperature: divides the cosine similarities.
        apart: pixels of the slice, as it was before it was augmented, from which on two places repel.

    Raises:
        ValueError: on a temperature or a distance that is not positive.
    """

    def __init__(self, temperature: float = 0.1, apart: float = 6.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature!r}.")
        if not apart > 0:
            raise ValueError(f"apart must be a positive number of pixels, got {apart!r}.")
        self.temperature = float(temperature)
        self.apart = float(apart)

    def forward(
        self,
        first_BPD: Tensor,
        first_place_BP2: Tensor,
        second_BND: Tensor,
        second_place_BN2: Tensor,
        spacing: float,
    ) -> PixelTerms:
        """Compare pixels of the first view with all of the second.

        A pixel whose place the second view does not show, or that lies outside of the slice itself, counts for nothing.

        Args:
            first_BPD, second_BND: unit-norm features.
            first_place_BP2, second_place_BN2: row and column in the slice; NaN outside of it.
            spacing: pixels between neighbours of the map; what is nearer than that is the same place.
        """
        outside_BN = second_place_BN2.isnan().any(dim=2)
        # Not by a matrix product, which loses small distances between large coordinates.
        distance_BPN = torch.cdist(
            first_place_BP2.nan_to_num(),
            second_place_BN2.nan_to_num(),
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        distance_BPN = distance_BPN.masked_fill(outside_BN[:, None, :], torch.inf)
        nearest_BP, match_BP = distance_BPN.min(dim=2)
        found_BP = (nearest_BP < spacing) & ~first_place_BP2.isnan().any(dim=2)
        apart_BPN = (distance_BPN > max(self.apart, spacing)) & ~outside_BN[:, None, :]

        with torch.autocast(device_type=first_BPD.device.type, enabled=False):
            similarity_BPN = first_BPD.float() @ second_BND.float().transpose(1, 2)
        positive_BP = similarity_BPN.gather(2, match_BP[..., None])[..., 0]
        repelled_BP = masked_lse(similarity_BPN / self.temperature, apart_BPN)
        loss = mean_over_positives(
            positive_BP.flatten()[:, None] / self.temperature, found_BP.flatten()[:, None], repelled_BP.flatten()
        )
        with torch.no_grad():
            best_BP = similarity_BPN.masked_fill(~apart_BPN, -1.0).amax(dim=2)
            accuracy = masked_mean((positive_BP > best_BP).float(), found_BP)
            positive = masked_mean(positive_BP, found_BP)
            negative = masked_mean(similarity_BPN, apart_BPN & found_BP[..., None])
        return PixelTerms(loss, accuracy, positive, negative)
