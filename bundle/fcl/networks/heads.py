"""What contrastive pre-training puts on the encoder, and throws away afterwards.

Letters: B batch, D feature length.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fcl.config import as_switch
from fcl.networks.unet import UNetEncoder


class ProjectionHead(nn.Sequential):
    """Two-layer perceptron after Chen et al., "SimCLR" (ICML 2020), section 2.1.

    Args:
        in_features: length of the pooled encoder features.
        hidden: width of the hidden layer.
        out_features: D, length of the features that the loss compares.
        batch_norm: normalise the pooled features and the hidden layer over the batch. Pooled features of an untrained
            encoder are nearly parallel (cosine above 0.9), and partitions alone hardly pull them apart: without it,
            training starts slowly or collapses. The price: in training, a feature depends on which slices share its
            batch. From the command line ``true`` or ``false``.

    Raises:
        ValueError: on a ``batch_norm`` that is neither true nor false.
    """

    def __init__(
        self, in_features: int, hidden: int = 256, out_features: int = 128, batch_norm: bool | str = False
    ) -> None:
        batch_norm = as_switch(batch_norm, "batch_norm")
        layers: list[nn.Module] = [nn.Linear(in_features, hidden, bias=not batch_norm)]
        if batch_norm:
            layers = [nn.BatchNorm1d(in_features), *layers, nn.BatchNorm1d(hidden)]
        layers += [nn.ReLU(inplace=True), nn.Linear(hidden, out_features)]
        super().__init__(*layers)


class EncoderNetwork(nn.Module):
    """What every pre-training network has: an encoder, whose keys begin ``encoder.``, and its pooled features.

    Args:
        encoder: gives feature maps, finest first; the coarsest is pooled.
    """

    def __init__(self, encoder: UNetEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def embed(self, x: Tensor) -> Tensor:
        """Pooled encoder features (B, encoder.channels[-1]) in float32, as the monitors and kNN use them."""
        return self.encoder(x)[-1].float().flatten(2).mean(dim=2)


class ContrastiveNetwork(EncoderNetwork):
    """Encoder, global average pooling, projection head, unit norm. Keys of its state begin ``encoder.`` and ``head.``

    Args:
        encoder: gives feature maps, finest first; the coarsest is pooled.
        head: maps (B, encoder.channels[-1]) to (B, D).
    """

    def __init__(self, encoder: UNetEncoder, head: nn.Module) -> None:
        super().__init__(encoder)
        self.head = head

    def project(self, x: Tensor) -> Tensor:
        """What the head gives (B, D) in float32, also under autocast: steps of 1/256 blur near-equal similarities."""
        pooled = self.embed(x)
        with torch.autocast(device_type=pooled.device.type, enabled=False):
            return self.head(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Unit-norm features (B, D) in float32."""
        return functional.normalize(self.project(x), dim=1)


class PredictiveNetwork(ContrastiveNetwork):
    """With a predictor of another network's features (Grill et al., "BYOL", NeurIPS 2020); keys ``predictor.``

    Args:
        encoder, head: as in :class:`ContrastiveNetwork`.
        predictor: maps (B, D) to (B, D).
    """

    def __init__(self, encoder: UNetEncoder, head: nn.Module, predictor: nn.Module) -> None:
        super().__init__(encoder, head)
        self.predictor = predictor

    def predict(self, x: Tensor) -> Tensor:
        """Unit-norm prediction (B, D), float32, of the target network's features of another view of ``x``."""
        projected = self.project(x)
        with torch.autocast(device_type=projected.device.type, enabled=False):
            return functional.normalize(self.predictor(projected), dim=1)


class PrototypeNetwork(ContrastiveNetwork):
    """With P unit vectors that features are assigned to (Caron et al., "SwAV", NeurIPS 2020); key ``prototypes``.

    Args:
        encoder, head: as in :class:`ContrastiveNetwork`.
        feature_length: D.
        prototypes: P.
    """

    def __init__(self, encoder: UNetEncoder, head: nn.Module, feature_length: int, prototypes: int) -> None:
        super().__init__(encoder, head)
        if prototypes < 2:
            raise ValueError(f"prototypes must be at least 2, got {prototypes!r}.")
        self.prototypes = nn.Parameter(functional.normalize(torch.randn(prototypes, feature_length), dim=1))

    def scores(self, features_BD: Tensor) -> Tensor:
        """Cosine similarities (B, P) of unit-norm features and prototypes, float32."""
        with torch.autocast(device_type=features_BD.device.type, enabled=False):
            return features_BD.float() @ functional.normalize(self.prototypes.float(), dim=1).T
