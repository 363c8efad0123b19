"""Feature memories."""

from fcl.memory.bank import FeatureBank, LocalFeatures

__all__ = ["FeatureBank", "LocalFeatures"]
