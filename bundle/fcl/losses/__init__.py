"""Losses of the pre-training methods: pure maths on tensors, torch only."""

from fcl.losses.byol import PredictionLoss
from fcl.losses.contrast import GlobalContrastLoss
from fcl.losses.fcl import FCLLoss, FCLTerms
from fcl.losses.fedca import DictionaryAlignmentLoss
from fcl.losses.local_contrast import LocalContrastLoss
from fcl.losses.moco import QueueContrastLoss
from fcl.losses.pcl import PositionContrastLoss
from fcl.losses.pixel_contrast import PixelContrastLoss
from fcl.losses.proximal import ProximalLoss, ProximalTerms
from fcl.losses.restoration import RestorationLoss
from fcl.losses.swav import SwappedAssignmentLoss

__all__ = [
    "DictionaryAlignmentLoss",
    "FCLLoss",
    "FCLTerms",
    "GlobalContrastLoss",
    "LocalContrastLoss",
    "PixelContrastLoss",
    "PositionContrastLoss",
    "PredictionLoss",
    "ProximalLoss",
    "ProximalTerms",
    "QueueContrastLoss",
    "RestorationLoss",
    "SwappedAssignmentLoss",
]
