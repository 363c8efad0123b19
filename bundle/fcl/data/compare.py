"""Which site's data stand out, told from aggregates alone: the document that a ``data_statistics`` job writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .summary import SHARE

STATISTICS_FILE = "statistics.json"

# A mean this many times that of the other sites, or less than one over it, stands out.
_RATIO = 1.5
# Structures differ between patients with disease and without; a share says more of how images are cut.
_SHARE_RATIO = 2.0
# On the scale from the 1st to the 99th percentile of a volume: an inverted image moves by far more.
_CENTRE = 0.2
# Intensities have no common scale: a shift counts in standard deviations between patients of one site.
_DEVIATIONS = 3.0
# One such deviation is at least this part of the others' largest intensities, lest little noise look like a shift.
_LEAST_DEVIATION = 1 / 30

_HEADER = "look at the headers of that site's files and at where they were exported"
_INTENSITY = "look at images of that site: another rescaling, inverted grey values, or another kind of scan?"
_ADVICE = {
    "in_plane_spacing_mm": _HEADER,
    "slice_distance_mm": f"{_HEADER}; is slice_axis right there?",
    "slices": "make sure that stacks are whole there, and that slice_axis is right",
    "in_plane_pixels": "make sure that images are whole there, and that spatial_size fits them",
    "intensity_low": _INTENSITY,
    "intensity_median": _INTENSITY,
    "intensity_high": _INTENSITY,
    "intensity_centre": _INTENSITY,
}


@dataclass(frozen=True)
class Outlier:
    """A site that differs from the others in a measure.

    Attributes:
        site: its name.
        measure: of :class:`~fcl.data.measures.DataStatistics`.
        value: mean over the site's patients.
        others: median of the other sites' means.
        what: the difference in words.
        fix: what to look at.
    """

    site: str
    measure: str
    value: float
    others: float
    what: str
    fix: str


def read_statistics(path: Path) -> dict[str, Any]:
    """The document, from its file or from a folder with one in it, as a workspace or a downloaded result has.

    Raises:
        ValueError: when there is none, several, or something else.
    """
    files = [path] if path.is_file() else sorted(path.rglob(STATISTICS_FILE))
    if len(files) != 1:
        found = ", ".join(map(str, files)) or "none"
        raise ValueError(f"{path} must be a {STATISTICS_FILE}, or a folder with one in it; found {found}")
    try:
        document = json.loads(files[0].read_text(encoding="utf-8"))
        if not isinstance(document["sites"], dict) or not isinstance(document["overall"]["measures"], dict):
            raise TypeError("sites and overall are no tables")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{files[0]} was not written by a data_statistics job ({error!r})") from error
    return document


def find_outliers(document: Mapping[str, Any]) -> list[Outlier]:
    """All sites that stand out, by measure and site.

    Each site's mean is compared with the median of the other sites' means. Of two sites neither is the odd one: both
    are named. A measure that one site alone tells is not compared.

    Args:
        document: as :func:`read_statistics` gives it.
    """
    sites = {site: entry["measures"] for site, entry in document["sites"].items() if "measures" in entry}
    found = []
    for measure in document["overall"]["measures"]:
        told = {site: measures[measure] for site, measures in sites.items() if measure in measures}
        for site in told if len(told) > 1 else ():
            others = [entry for other, entry in told.items() if other != site]
            usual = float(np.median([entry["mean"] for entry in others]))
            spread = float(np.median([entry["stddev"] for entry in others]))
            value = float(told[site]["mean"])
            if measure.startswith("intensity_"):
                spread = max(spread, _LEAST_DEVIATION * _largest(sites, site))
            what = _difference(measure, value, usual, spread)
            if what:
                fix = _ADVICE.get(measure, "compare how that structure is drawn there, and how images are cut")
                found.append(Outlier(site, measure, value, usual, f"{measure} of {site} {what}", fix))
    return found


def _largest(sites: Mapping[str, Mapping[str, Any]], left_out: str) -> float:
    """Median of the largest intensities of all sites but one."""
    highs = [
        abs(measures["intensity_high"]["mean"])
        for site, measures in sites.items()
        if site != left_out and "intensity_high" in measures
    ]
    return float(np.median(highs)) if highs else 0.0


def _difference(measure: str, value: float, usual: float, spread: float) -> str | None:
    if measure == "intensity_centre":
        if abs(value - usual) < _CENTRE:
            return None
        return f"is {value:.2g}, that of the others {usual:.2g}, on a scale of 0 to 1: grey values lie elsewhere"
    if measure.startswith("intensity_"):
        if abs(value - usual) <= _DEVIATIONS * spread:
            return None
        deviations = (value - usual) / spread if spread else float("inf")
        where = "above" if deviations > 0 else "below"
        return f"is {value:.4g}, {abs(deviations):.1f} standard deviations {where} the {usual:.4g} of the others"
    limit = _SHARE_RATIO if measure.startswith(SHARE) else _RATIO
    if min(value, usual) <= 0:
        return None if value == usual else f"is {value:.3g}, the median of the others {usual:.3g}"
    ratio = value / usual
    return f"is {ratio:.2g} times the median of the others" if not 1 / limit < ratio < limit else None
