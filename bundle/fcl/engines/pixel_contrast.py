"""A step of pixel-level contrast: two views of a slice, and where in it each of their pixels comes from.

Letters: B batch, D feature length, P pixels drawn, N pixels of the map; H, W of the slice, h, w of the map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fcl.engines.method import Method, Step, Terms, feature_monitors, logged


class PixelContrast(Method):
    """Pixels of one view against all of the other, by the place that they show.

    Args:
        loss_function: :class:`fcl.losses.PixelContrastLoss`.
        pixels: P, drawn from each slice's first view without repetition, inside of the slice.

    Raises:
        ValueError: when no pixel is to be drawn.
    """

    def __init__(self, loss_function: nn.Module, pixels: int = 64) -> None:
        if pixels < 1:
            raise ValueError(f"pixels must be at least 1, got {pixels!r}.")
        self.loss_function = loss_function
        self.pixels = pixels

    def __call__(self, step: Step) -> Terms:
        (first, first_origin), (second, second_origin) = step.locate(step.image), step.locate(step.image)
        # One pass, so that a normalisation over the batch sees both views alike.
        features_BDhw = step.run(step.network, torch.cat([first, second]))
        spacing = first.shape[2] // features_BDhw.shape[2]
        first_BND, second_BND = features_BDhw.flatten(2).transpose(1, 2).chunk(2)
        first_BN2, second_BN2 = (_places(origin, spacing) for origin in (first_origin, second_origin))

        inside_BN = ~first_BN2.isnan().any(dim=2)
        drawn_BP = torch.multinomial(  # a trace for what is outside, or a slice moved out of sight would be an error
            inside_BN.float() + 1e-6, min(self.pixels, inside_BN.shape[1]), generator=step.generator
        )
        anchor_BPD, anchor_BP2 = _take(first_BND, drawn_BP), _take(first_BN2, drawn_BP)
        terms = self.loss_function(anchor_BPD, anchor_BP2, second_BND, second_BN2, float(spacing))
        return {**logged(terms), **feature_monitors(anchor_BPD.detach().flatten(0, 1))}


def _places(origin_BHW: Tensor, spacing: int) -> Tensor:
    """Row and column (B, N, 2) that the middle of each pixel of the map shows; NaN outside of the slice."""
    width = origin_BHW.shape[2]
    middle_BN = origin_BHW[:, spacing // 2 :: spacing, spacing // 2 :: spacing].flatten(1)
    place_BN2 = torch.stack([middle_BN // width, middle_BN % width], dim=2).float()
    return place_BN2.masked_fill((middle_BN < 0)[..., None], torch.nan)


def _take(values: Tensor, index_BP: Tensor) -> Tensor:
    return values.gather(1, index_BP[..., None].expand(-1, -1, values.shape[2]))
