"""Encoder and decoder that restore an image; both are what fine-tuning's U-Net begins with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fcl.config import as_switch
from fcl.networks.heads import EncoderNetwork
from fcl.networks.unet import UNetDecoder, UNetEncoder


class RestorationNetwork(EncoderNetwork):
    """A U-Net with as many output channels as the image has. Keys of its state begin ``encoder.`` and ``decoder.``

    With ``masked_maps``, hidden patches stay hidden at every resolution, after Tian et al., "SparK" (ICLR 2023): the
    encoder's maps are emptied there before the next resolution sees them, and the decoder finds a learnt token in their
    place. SparK empties them after every convolution; here that is done after every block, so that a margin of two
    voxels of each resolution mixes with emptiness. Otherwise an ordinary convolution spreads what it sees into hidden
    places, and an image of constant patches passes for anatomy.

    Args:
        encoder: gives feature maps, finest first.
        decoder: maps those to ``encoder.in_channels`` channels.
        masked_maps: see above. From the command line ``true`` or ``false``.

    Raises:
        ValueError: when the decoder has other output channels, or on a ``masked_maps`` that is neither true nor false.
    """

    def __init__(self, encoder: UNetEncoder, decoder: UNetDecoder, masked_maps: bool | str = False) -> None:
        super().__init__(encoder)
        if decoder.logits.out_channels != encoder.in_channels:
            raise ValueError(
                f"the decoder must restore {encoder.in_channels} channel(s), it has {decoder.logits.out_channels}."
            )
        self.decoder = decoder
        widths = encoder.channels if as_switch(masked_maps, "masked_maps") else ()
        self.tokens = nn.ParameterList([torch.zeros(1, width, *[1] * encoder.spatial_dims) for width in widths])

    def maps(self, x: Tensor, hidden: Tensor) -> list[Tensor]:
        """Feature maps of every resolution, finest first; with ``masked_maps`` empty where ``hidden`` is true.

        Shape:
            x: (B, C, H, W[, D]); hidden: (B, 1, H, W[, D]) bool, in patches that the coarsest resolution still tells
            apart.
        """
        if not len(self.tokens):
            return self.encoder(x)
        stages = [self.encoder.stem, *self.encoder.downs]
        maps, seen = [], x
        for level, stage in enumerate(stages):
            features = stage(seen)
            step = (slice(None, None, every) for every in self.encoder.reductions[level])
            gone = hidden[(slice(None), slice(None), *step)]
            seen = features.masked_fill(gone, 0.0)
            maps.append(torch.where(gone, self.tokens[level].to(features.dtype), seen))
        return maps

    def restore(self, x: Tensor, hidden: Tensor) -> Tensor:
        """The restored image (B, C, H, W[, D]); arguments as in :meth:`maps`."""
        return self.decoder(self.maps(x, hidden))

    def forward(self, x: Tensor) -> Tensor:
        """The restored image of one that hides nothing."""
        return self.restore(x, torch.zeros_like(x[:, :1], dtype=torch.bool))
