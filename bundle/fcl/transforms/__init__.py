"""Augmentation of whole batches, on the device that trains, drawn from one seeded generator."""

from fcl.transforms.compose import BatchCompose, BatchTransform
from fcl.transforms.intensity import BatchRandIntensity
from fcl.transforms.mixup import BatchMixUp
from fcl.transforms.spatial import BatchRandSpatial

__all__ = ["BatchCompose", "BatchMixUp", "BatchRandIntensity", "BatchRandSpatial", "BatchTransform"]
