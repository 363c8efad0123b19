"""Trainers, their handlers, and what a federation asks of a site."""

from fcl.engines.batches import AugmentBatch
from fcl.engines.checkpoints import Checkpoints, RandomState, set_aside
from fcl.engines.fcl_trainer import FCLTrainer
from fcl.engines.inferers import AutocastInferer
from fcl.engines.monitors import PartitionKNN
from fcl.engines.pretraining import PretrainParticipant
from fcl.engines.progress import Progress
from fcl.engines.schedule import WarmupCosine
from fcl.engines.segmentation import SegmentationParticipant
from fcl.engines.volumes import LabelledVolumes, class_names

__all__ = [
    "AugmentBatch",
    "AutocastInferer",
    "Checkpoints",
    "FCLTrainer",
    "LabelledVolumes",
    "PartitionKNN",
    "PretrainParticipant",
    "Progress",
    "RandomState",
    "SegmentationParticipant",
    "WarmupCosine",
    "class_names",
    "set_aside",
]
