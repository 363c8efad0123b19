"""A U-Net up to one of its finer resolutions, and features of the pixels there.

Letters: B batch, D feature length, H and W of the slice, h and w of the map.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn
from torch.nn import functional

from fcl.networks.heads import EncoderNetwork
from fcl.networks.unet import UNetDecoder, UNetEncoder
from fcl.networks.weights import load_weights


class PixelNetwork(EncoderNetwork):
    """Maps a slice to unit-norm features of the pixels of a decoder's map; trains encoder, decoder and head.

    Keys of its state begin ``encoder.``, ``decoder.`` and ``head.``; the first two are named as in
    :class:`fcl.networks.SegmentationUNet`, which can begin with both. 2-D only.

    Args:
        encoder: gives feature maps, finest first.
        decoder: a whole one, of which the first ``blocks`` are kept.
        blocks: resolutions that the decoder climbs; each doubles the map's sides.
        feature_length: D.
        pretrained: checkpoint with an encoder to begin with; None: a federation brings one, or it begins at random.

    Raises:
        ValueError: in 3-D, or with more blocks than the decoder has.
        fcl.networks.CheckpointError: as :func:`fcl.networks.load_weights`.
    """

    def __init__(
        self,
        encoder: UNetEncoder,
        decoder: UNetDecoder,
        blocks: int = 3,
        feature_length: int = 64,
        pretrained: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(encoder)
        if encoder.spatial_dims != 2:
            raise ValueError(f"pixels are compared in 2-D, spatial_dims is {encoder.spatial_dims}.")
        self.decoder = decoder
        self.decoder.keep_blocks(blocks)
        self.head = nn.Sequential(
            nn.Conv2d(encoder.channels[-1 - blocks], feature_length, 1),
            nn.LeakyReLU(inplace=True),
            nn.Conv2d(feature_length, feature_length, 1),
        )
        self.blocks = blocks
        if pretrained is not None:
            load_weights(self.encoder, pretrained, prefix="encoder.")

    def forward(self, x: Tensor) -> Tensor:
        """Unit-norm features (B, D, h, w), float32, of a batch of slices (B, 1, H, W)."""
        wide = self.decoder(self.encoder(x)[-1 - self.blocks :])
        with torch.autocast(device_type=wide.device.type, enabled=False):
            return functional.normalize(self.head(wide.float()), dim=1)
