"""What contrastive pre-training puts on the encoder, and throws away afterwards.

Letters: B batch, D feature length.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fcl.networks.unet import UNetEncoder


class ProjectionHead(nn.Sequential):
    """Two-layer perceptron after Chen et al., "SimCLR" (ICML 2020), section 2.1.

    Args:
        in_features: length of the pooled encoder features.
        hidden: width of the hidden layer.
        out_features: D, length of the features that the loss compares.
        batch_norm: normalise the pooled features and the hidden layer over the batch. Pooled features of an untrained
            encoder
            are nearly parallel (cosine above 0.9), and partitions alone hardly pull them apart: without it, training
            starts slowly or collapses. The price: in training, a feature depends on which slices share its batch.
    """

    def __init__(self, in_features: int, hidden: int = 256, out_features: int = 128, batch_norm: bool = False) -> None:
        layers: list[nn.Module] = [nn.Linear(in_features, hidden, bias=not batch_norm)]
        if batch_norm:
            layers = [nn.BatchNorm1d(in_features), *layers, nn.BatchNorm1d(hidden)]
        layers += [nn.ReLU(inplace=True), nn.Linear(hidden, out_features)]
        super().__init__(*layers)


class ContrastiveNetwork(nn.Module):
    """Encoder, global average pooling, projection head, unit norm. Keys of its state begin ``encoder.`` and ``head.``

    Args:
        encoder: gives feature maps, finest first; the coarsest is pooled.
        head: maps (B, encoder.channels[-1]) to (B, D).
    """

    def __init__(self, encoder: UNetEncoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def embed(self, x: Tensor) -> Tensor:
        """Pooled encoder features (B, encoder.channels[-1]) in float32, as the monitors and kNN use them."""
        return self.encoder(x)[-1].float().flatten(2).mean(dim=2)

    def forward(self, x: Tensor) -> Tensor:
        """Unit-norm features (B, D) in float32, also under autocast: steps of 1/256 blur near-equal similarities."""
        pooled = self.embed(x)
        with torch.autocast(device_type=pooled.device.type, enabled=False):
            return functional.normalize(self.head(pooled), dim=1)
