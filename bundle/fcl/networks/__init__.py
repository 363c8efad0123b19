"""Networks: U-Net encoder and decoder, projection head, and their weights on disk."""

from fcl.networks.heads import ContrastiveNetwork, ProjectionHead
from fcl.networks.unet import SegmentationUNet, UNetDecoder, UNetEncoder
from fcl.networks.weights import CheckpointError, LoadReport, load_weights, read_card, read_weights, write_weights

__all__ = [
    "CheckpointError",
    "ContrastiveNetwork",
    "LoadReport",
    "ProjectionHead",
    "SegmentationUNet",
    "UNetDecoder",
    "UNetEncoder",
    "load_weights",
    "read_card",
    "read_weights",
    "write_weights",
]
