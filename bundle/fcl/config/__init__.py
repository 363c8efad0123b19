"""Checks and choices that configs call from their expressions; imports nothing heavier than torch and MONAI."""

from fcl.config.guard import check_overlays, refuse_unknown_keys, require
from fcl.config.precision import autocast_dtype, to_fast_layout

__all__ = ["autocast_dtype", "check_overlays", "refuse_unknown_keys", "require", "to_fast_layout"]
