"""Trainers, their handlers, and what a federation asks of a site."""

from fcl.engines.batches import AugmentBatch
from fcl.engines.checkpoints import Checkpoints, RandomState, set_aside
from fcl.engines.contrastive import Prediction, QueueContrast, RegionContrast, SwappedAssignment, ViewContrast
from fcl.engines.corruptions import HiddenPatches, Holes, Swaps
from fcl.engines.fcl_method import FCL
from fcl.engines.inferers import AutocastInferer
from fcl.engines.method import Method, Untrained
from fcl.engines.method_participant import MethodParticipant
from fcl.engines.monitors import PartitionKNN
from fcl.engines.pretext import Restoration, Rotation
from fcl.engines.pretrain_trainer import PretrainTrainer
from fcl.engines.pretraining import PretrainParticipant
from fcl.engines.progress import Progress
from fcl.engines.rounds import Average, AverageKeepingMomentum, DivergenceMixing, PredictedMomentum
from fcl.engines.schedule import WarmupCosine
from fcl.engines.segmentation import SegmentationParticipant
from fcl.engines.volumes import LabelledVolumes, class_names

__all__ = [
    "FCL",
    "AugmentBatch",
    "AutocastInferer",
    "Average",
    "AverageKeepingMomentum",
    "Checkpoints",
    "DivergenceMixing",
    "HiddenPatches",
    "Holes",
    "LabelledVolumes",
    "Method",
    "MethodParticipant",
    "PartitionKNN",
    "PredictedMomentum",
    "Prediction",
    "PretrainParticipant",
    "PretrainTrainer",
    "Progress",
    "QueueContrast",
    "RandomState",
    "RegionContrast",
    "Restoration",
    "Rotation",
    "SegmentationParticipant",
    "SwappedAssignment",
    "Swaps",
    "Untrained",
    "ViewContrast",
    "WarmupCosine",
    "class_names",
    "set_aside",
]
