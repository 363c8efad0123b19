"""Trainers, their handlers, and what a federation asks of a site."""

from fcl.engines.adversarial import Adversarial
from fcl.engines.batches import AugmentBatch
from fcl.engines.checkpoints import Checkpoints, RandomState, set_aside
from fcl.engines.contrastive import Prediction, QueueContrast, RegionContrast, SwappedAssignment, ViewContrast
from fcl.engines.corruptions import HiddenPatches, Holes, Swaps
from fcl.engines.fcl_method import FCL
from fcl.engines.fedprox import FedProx
from fcl.engines.inferers import AutocastInferer, volume_inferer
from fcl.engines.mean_teacher import MeanTeacher
from fcl.engines.method import Method, Untrained
from fcl.engines.method_participant import MethodParticipant
from fcl.engines.monitors import PartitionKNN
from fcl.engines.pixel_contrast import PixelContrast
from fcl.engines.pretext import Restoration, Rotation
from fcl.engines.pretrain_trainer import PretrainTrainer
from fcl.engines.pretraining import PretrainParticipant
from fcl.engines.progress import Progress
from fcl.engines.rounds import Average, AverageKeepingMomentum, DivergenceMixing, PredictedMomentum
from fcl.engines.schedule import WarmupCosine
from fcl.engines.segmentation import SegmentationParticipant
from fcl.engines.self_training import SelfTraining
from fcl.engines.used_split import UsedSplit
from fcl.engines.variant import Variant, Variants
from fcl.engines.volumes import LabelledVolumes, class_names

__all__ = [
    "FCL",
    "Adversarial",
    "AugmentBatch",
    "AutocastInferer",
    "Average",
    "AverageKeepingMomentum",
    "Checkpoints",
    "DivergenceMixing",
    "FedProx",
    "HiddenPatches",
    "Holes",
    "LabelledVolumes",
    "MeanTeacher",
    "Method",
    "MethodParticipant",
    "PartitionKNN",
    "PixelContrast",
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
    "SelfTraining",
    "SwappedAssignment",
    "Swaps",
    "Untrained",
    "UsedSplit",
    "Variant",
    "Variants",
    "ViewContrast",
    "WarmupCosine",
    "class_names",
    "set_aside",
    "volume_inferer",
]
