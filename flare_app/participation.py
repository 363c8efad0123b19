"""Which sites a round asks, where it asks fewer than there are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def check_sites_per_round(sites_per_round: int | None, min_sites: int, overlap: bool = False) -> None:
    """Refuse a number of sites that could not make a quorum, or whose features would come too late.

    Raises:
        ValueError: when it is none, below ``min_sites``, or goes with ``overlap``.
    """
    if sites_per_round is None:
        return
    whole = isinstance(sites_per_round, int) and not isinstance(sites_per_round, bool)
    if not whole or sites_per_round < min_sites:
        raise ValueError(
            f"sites_per_round must be a whole number of at least min_sites ({min_sites}), or None for all; "
            f"got {sites_per_round!r}"
        )
    if overlap:  # rounds count those that a site rests: its bank drops the features before they serve
        raise ValueError(
            "overlap and sites_per_round do not go together: what a site pulls while it trains is for the next round, "
            "and where sites rest by turns it is too old when theirs comes: leave one of them out"
        )


def taking_part(round_number: int, sites: Sequence[str], sites_per_round: int | None) -> list[str]:
    """The sites of a round, sorted: a part of them in each, all in turn (McMahan et al., AISTATS 2017, fraction C).

    They stand in a circle, in an order that is another one in each pass and the same whenever the round is done; a pass
    is as many rounds as ask all of them at least once.

    Args:
        round_number: 0-based.
        sites: that could be asked.
        sites_per_round: how many; None, or more than there are, for all.
    """
    if sites_per_round is None or sites_per_round >= len(sites):
        return sorted(sites)
    number, place = divmod(round_number, -(-len(sites) // sites_per_round))
    circle = sorted(sites, key=lambda site: hashlib.sha256(f"{number} {site}".encode()).digest())
    first = place * sites_per_round
    return sorted(circle[(first + step) % len(circle)] for step in range(sites_per_round))


def stand_ins(round_number: int, resting: Sequence[str], accepted: Sequence[str], min_sites: int) -> list[str]:
    """Sites that train out of turn, sorted: as many as results are missing, the same ones whenever the round is done.

    Without them a site that fails whenever its turn comes would end the job, and every resumed one at the same place.
    A site that steps in does what it does in a round of its own, and accounts for it: its features and their budget,
    its noise, the state that it saves.

    Args:
        round_number: 0-based.
        resting: sites that can step in.
        accepted: sites whose results are usable.
        min_sites: least number of those.
    """
    missing = min_sites - len(accepted)
    return taking_part(round_number, resting, missing) if missing > 0 else []
