"""Networks: U-Net encoder and decoder, projection head, and their weights on disk."""

from fcl.networks.heads import (
    ContrastiveNetwork,
    EncoderNetwork,
    PredictiveNetwork,
    ProjectionHead,
    PrototypeNetwork,
)
from fcl.networks.pretrained import load_pretrained
from fcl.networks.regions import RegionNetwork
from fcl.networks.restoration import RestorationNetwork
from fcl.networks.unet import SegmentationUNet, UNetDecoder, UNetEncoder
from fcl.networks.weights import CheckpointError, LoadReport, load_weights, read_card, read_weights, write_weights

__all__ = [
    "CheckpointError",
    "ContrastiveNetwork",
    "EncoderNetwork",
    "LoadReport",
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
    "read_card",
    "read_weights",
    "write_weights",
]
