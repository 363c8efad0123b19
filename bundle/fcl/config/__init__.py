"""Checks and choices that configs call from their expressions; imports nothing heavier than torch and MONAI.

Names load when first used: losses read their switches without MONAI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fcl.lazy import names_of

if TYPE_CHECKING:
    from fcl.config.card import card_settings, check_against_card, describe_run, intensity_rule
    from fcl.config.errors import explain_errors
    from fcl.config.guard import check_overlays, refuse_unknown_keys, refuse_unread, require
    from fcl.config.options import as_switch, unless
    from fcl.config.precision import autocast_dtype, to_fast_layout
    from fcl.config.record import record_configuration

__all__ = [
    "as_switch",
    "autocast_dtype",
    "card_settings",
    "check_against_card",
    "check_overlays",
    "describe_run",
    "explain_errors",
    "intensity_rule",
    "record_configuration",
    "refuse_unknown_keys",
    "refuse_unread",
    "require",
    "to_fast_layout",
    "unless",
]

__getattr__ = names_of(
    __name__,
    {
        "card": ("card_settings", "check_against_card", "describe_run", "intensity_rule"),
        "errors": ("explain_errors",),
        "guard": ("check_overlays", "refuse_unknown_keys", "refuse_unread", "require"),
        "options": ("as_switch", "unless"),
        "precision": ("autocast_dtype", "to_fast_layout"),
        "record": ("record_configuration",),
    },
)
