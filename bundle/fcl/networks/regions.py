"""The first blocks of a decoder on a frozen encoder, and features of regions of their map (Chaitanya et al., 2020).

Letters: B batch, C channels, R regions, D feature length.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from fcl.networks.heads import EncoderNetwork
from fcl.networks.unet import UNetDecoder, UNetEncoder
from fcl.networks.weights import LoadReport, load_weights

# Centres of the 13 regions as shares of a side: a 3 x 3 grid, and the points between its corners and its middle.
_GRID = [(y, x) for y in (1 / 6, 3 / 6, 5 / 6) for x in (1 / 6, 3 / 6, 5 / 6)]
_BETWEEN = [(y, x) for y in (2 / 6, 4 / 6) for x in (2 / 6, 4 / 6)]
CENTRES = (*_GRID, *_BETWEEN)
_SIDE = 3


class RegionNetwork(EncoderNetwork):
    """Maps a slice to unit-norm features of 13 regions of a decoder's map; trains all but the encoder.

    Keys of its state begin ``encoder.``, ``decoder.`` and ``head.``; those of ``decoder.`` are named as in
    :class:`fcl.networks.SegmentationUNet`. 2-D only: the places of the regions are those of the paper.

    Args:
        encoder: stays as it is loaded: no gradient, and running statistics stand still.
        decoder: a whole one, of which the first ``blocks`` are kept.
        blocks: resolutions that the decoder climbs; the paper takes 3.
        feature_length: D.
        pretrained: checkpoint with the encoder; None when a federation brings it (``load_encoder``).

    Raises:
        ValueError: in 3-D, or with more blocks than the decoder has.
        fcl.networks.CheckpointError: as :func:`fcl.networks.load_weights`.
    """

    def __init__(
        self,
        encoder: UNetEncoder,
        decoder: UNetDecoder,
        blocks: int = 3,
        feature_length: int = 128,
        pretrained: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(encoder)
        if encoder.spatial_dims != 2:
            raise ValueError(f"regions are placed in 2-D, spatial_dims is {encoder.spatial_dims}.")
        self.decoder = decoder
        self.decoder.keep_blocks(blocks)
        width = encoder.channels[-1 - blocks]
        self.head = nn.Sequential(
            nn.Conv2d(width, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 1),
        )
        self.project = nn.Linear(width * _SIDE**2, feature_length)
        self.blocks = blocks
        self.has_encoder = False
        self.encoder.requires_grad_(False)
        if pretrained is not None:
            self.load_encoder(pretrained)

    def load_encoder(self, weights_or_path: Mapping[str, Tensor] | str | os.PathLike[str]) -> LoadReport:
        """Take a pre-trained encoder (names that begin ``encoder.``).

        Raises:
            fcl.networks.CheckpointError: when it is of another architecture.
        """
        report = load_weights(self.encoder, weights_or_path, prefix="encoder.")
        self.has_encoder = True
        return report

    def train(self, mode: bool = True) -> RegionNetwork:
        super().train(mode)
        self.encoder.eval()  # running statistics of a frozen encoder stand still
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Unit-norm features (B, R, D), float32, of a batch of slices (B, 1, H, W).

        Raises:
            ValueError: when the map is smaller than the regions.
        """
        with torch.no_grad():
            maps = self.encoder(x)
        features = self.head(self.decoder(maps[-1 - self.blocks :])).float()
        height, width = features.shape[2:]
        if min(height, width) < 3 * _SIDE:
            raise ValueError(
                f"the map of {height} x {width} is too small for regions of {_SIDE} x {_SIDE} that do not overlap: "
                "take more blocks or a larger spatial_size."
            )
        half = _SIDE // 2
        places = [(int(y * height), int(x * width)) for y, x in CENTRES]
        regions = [features[:, :, y - half : y + half + 1, x - half : x + half + 1].flatten(1) for y, x in places]
        with torch.autocast(device_type=features.device.type, enabled=False):
            return functional.normalize(self.project(torch.stack(regions, dim=1)), dim=2)
