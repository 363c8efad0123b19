"""Checks and choices that configs call from their expressions. Light to import: nothing heavier than torch and MONAI."""

from fcl.config.precision import autocast_dtype, to_fast_layout

__all__ = ["autocast_dtype", "to_fast_layout"]
