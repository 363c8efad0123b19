"""Networks: U-Net encoder and decoder, projection head, and their weights on disk.

Names load when first used: the server reads and writes weights without MONAI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fcl.lazy import names_of

if TYPE_CHECKING:
    from fcl.networks.heads import (
        ContrastiveNetwork,
        EncoderNetwork,
        PredictiveNetwork,
        ProjectionHead,
        PrototypeNetwork,
    )
    from fcl.networks.pixels import PixelNetwork
    from fcl.networks.pretrained import load_pretrained, parameter_groups
    from fcl.networks.regions import RegionNetwork
    from fcl.networks.restoration import RestorationNetwork
    from fcl.networks.unet import SegmentationUNet, UNetDecoder, UNetEncoder
    from fcl.networks.weights import (
        CheckpointError,
        LoadReport,
        load_weights,
        read_card,
        read_weights,
        with_card,
        write_weights,
    )

__all__ = [
    "CheckpointError",
    "ContrastiveNetwork",
    "EncoderNetwork",
    "LoadReport",
    "PixelNetwork",
    "PredictiveNetwork",
    "ProjectionHead",
    "PrototypeNetwork",
    "RegionNetwork",
    "RestorationNetwork",
    "SegmentationUNet",
    "UNetDecoder",
    "UNetEncoder",
    "load_pretrained",
    "load_weights",
    "parameter_groups",
    "read_card",
    "read_weights",
    "with_card",
    "write_weights",
]

__getattr__ = names_of(
    __name__,
    {
        "heads": ("ContrastiveNetwork", "EncoderNetwork", "PredictiveNetwork", "ProjectionHead", "PrototypeNetwork"),
        "pixels": ("PixelNetwork",),
        "pretrained": ("load_pretrained", "parameter_groups"),
        "regions": ("RegionNetwork",),
        "restoration": ("RestorationNetwork",),
        "unet": ("SegmentationUNet", "UNetDecoder", "UNetEncoder"),
        "weights": (
            "CheckpointError",
            "LoadReport",
            "load_weights",
            "read_card",
            "read_weights",
            "with_card",
            "write_weights",
        ),
    },
)
