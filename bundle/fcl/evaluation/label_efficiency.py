"""How many annotated patients another arm needs for the same Dice, read from two curves of Dice against N."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Bound = Literal["", "at most", "more than"]


@dataclass(frozen=True)
class Needed:
    """Annotated patients (of each site) that a curve needs for a Dice.

    Args:
        patients: N; with a ``bound``, the end of the measured curve.
        bound: ``"at most"`` where the curve begins above that Dice already, ``"more than"`` where it never reaches it:
            nothing is extrapolated.
    """

    patients: float
    bound: Bound = ""


def patients_needed(curve: Mapping[int, float], dice: float) -> Needed:
    """The smallest N at which ``curve`` reaches ``dice``, interpolated linearly in log N between measured N.

    Args:
        curve: N to mean Dice, at least one point.
        dice: to reach.

    Raises:
        ValueError: for a curve without points, or with an N below 1.
    """
    if not curve or min(curve) < 1:
        raise ValueError(f"a curve needs at least one N, and no N below 1; got {dict(curve)!r}")
    points = sorted(curve.items())
    first, value = points[0]
    if value >= dice:
        return Needed(first, "" if value == dice else "at most")
    for (left, low), (right, high) in pairwise(points):
        if high >= dice:
            share = (dice - low) / (high - low)
            return Needed(math.exp(math.log(left) + share * (math.log(right) - math.log(left))))
    return Needed(points[-1][0], "more than")
