"""What a caller of an import calls its own settings, so that messages name ways out that are there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """Parts of messages; by default in the words of ``fcl data import``.

    Args:
        min_slices, description, tolerance: the options that set these in :class:`fcl.importing.Choice`.
        or_leave_out: ends the advice on a series that mixes what does not belong together.
        choose: advice when no series is taken.
    """

    min_slices: str = "--min-slices"
    description: str = "--series-description"
    tolerance: str = "--spacing-tolerance"
    or_leave_out: str = ", or leave it out with --skip-problems"
    choose: str = "choose with --series-description, --min-slices, --static or --join-series"


OF_THE_IMPORT = Wording()
