"""Contrast of regions of one feature map (Chaitanya et al., NeurIPS 2020, section 3.2: L^R and L^D).

Letters: V views, B batch, R regions, D feature length.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fcl.config import as_switch
from fcl.losses.contrast import ContrastTerms, masked_lse, masked_mean, mean_over_positives


class LocalContrastLoss(nn.Module):
    """A region attracts itself in the other view, and is repelled by the other regions of both maps of its slice.

    Chaitanya et al. keep 5 (L^R) or 4 (L^D) fixed regions of each map as negatives to save memory; here all others are.

    Args:
        temperature: divides the cosine similarities.
        across_volumes: with L^D, the same region in same-partition slices of other volumes attracts too. From the
            command line ``true`` or ``false``.

    Raises:
        ValueError: on a temperature that is not positive, or an ``across_volumes`` that is neither true nor false.
    """

    def __init__(self, temperature: float = 0.1, across_volumes: bool | str = False) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature!r}.")
        self.temperature = float(temperature)
        self.across_volumes = as_switch(across_volumes, "across_volumes")

    def forward(self, regions_VBRD: Tensor, partition_B: Tensor, volume_B: Tensor) -> ContrastTerms:
        """Compare the regions.

        Args:
            regions_VBRD: unit-norm features of the same regions in aligned views.
            partition_B, volume_B: of each slice (int64).
        """
        views, _, regions, _ = regions_VBRD.shape
        with torch.autocast(device_type=regions_VBRD.device.type, enabled=False):
            items_VBRD = regions_VBRD.float()
            flat_BND = items_VBRD.transpose(0, 1).flatten(1, 2)  # N = V * R
            similarity_BNN = flat_BND @ flat_BND.transpose(1, 2)
            across_VRBB = torch.einsum("vbrd,vcrd->vrbc", items_VBRD, items_VBRD)
        region_N = torch.arange(regions, device=flat_BND.device).repeat(views)
        view_N = torch.arange(views, device=flat_BND.device).repeat_interleave(regions)
        same_NN = region_N[:, None] == region_N
        own_BNN = (same_NN & (view_N[:, None] != view_N)).expand_as(similarity_BNN)
        negative_BNN = (~same_NN).expand_as(similarity_BNN)

        logits_BNN = similarity_BNN / self.temperature
        negative_lse_BN = masked_lse(logits_BNN, negative_BNN)
        own = mean_over_positives(logits_BNN.flatten(0, 1), own_BNN.flatten(0, 1), negative_lse_BN.flatten())
        across = own.new_zeros(())
        if self.across_volumes:
            match_BB = (partition_B[:, None] == partition_B) & (volume_B[:, None] != volume_B)
            lse_VRB = negative_lse_BN.unflatten(1, (views, regions)).permute(1, 2, 0)
            across = mean_over_positives(
                across_VRBB.flatten(0, 2) / self.temperature,
                match_BB.expand_as(across_VRBB).flatten(0, 2),
                lse_VRB.flatten(),
            )
        with torch.no_grad():
            positive, negative = masked_mean(similarity_BNN, own_BNN), masked_mean(similarity_BNN, negative_BNN)
        return ContrastTerms(own + across, own.detach(), across.detach(), positive, negative)
