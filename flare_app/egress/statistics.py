"""What may leave of a site's statistics: FLARE's own cleansers, with the limits of the policy, over a declared form.

FLARE applies them in a filter of its own, on statistics that its executor has packed as bytes. No other filter could
look into these, so here they travel in the open::

    {"enough": true, "totals": {"patients": 24, ...}, "statistics": {"mean": {"slices": 9.5, ...}, ...}}

``{"enough": false}`` is all that a site with too few patients tells. FLARE's cleansers would leave its count. Nor do
they look at single bins: those of few patients read 0 as empty ones do, and ``withheld`` of the histogram says how many
patients are in them together.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nvflare.app_common.abstract.statistics_spec import Bin, Histogram, HistogramType
from nvflare.app_common.app_constant import StatisticsConstants as StC
from nvflare.app_common.statistics.histogram_bins_cleanser import HistogramBinsCleanser
from nvflare.app_common.statistics.min_count_cleanser import MinCountCleanser
from nvflare.app_common.statistics.min_max_cleanser import AddNoiseToMinMax

from flare_app.egress.plain import EgressError, is_count, is_number, shown
from flare_app.egress.policy import EgressPolicy

TOO_FEW = {"enough": False}
TOTALS = ("patients", "volumes", "slices")
COUNTS = (StC.STATS_COUNT, StC.STATS_FAILURE_COUNT)
NUMBERS = (StC.STATS_MEAN, StC.STATS_STDDEV, StC.STATS_MIN, StC.STATS_MAX)
NAMES = (*COUNTS, *NUMBERS, StC.STATS_HISTOGRAM)

_MOST_MEASURES = 64
_MOST_BINS = 64
_DIGITS = 4  # significant; all digits of a mean of few could tell what it was made of
# Least and largest values are moved outwards by 10 to 30 %, as in FLARE's examples.
_NOISE = (0.1, 0.3)
_SITE = "patients"  # FLARE's statistics are by data set; a site has one


def cleansed(policy: EgressPolicy, report: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What of the statistics the policy lets out, and the measures that it keeps back (in whole or their histogram).

    Raises:
        EgressError: when they hold anything undeclared.
    """
    if report == TOO_FEW:
        return report, []
    _check(report)
    statistics: dict[str, dict[str, Any]] = report["statistics"]
    measures = list(statistics[StC.STATS_COUNT])
    allowed = [name for name in measures if policy.allows_statistic(name)]
    nested = {name: {_SITE: _flare(name, entries, allowed)} for name, entries in statistics.items()}
    with _noise_that_no_seed_tells():
        for cleanser in (
            MinCountCleanser(policy.min_patients),
            HistogramBinsCleanser(policy.max_bins_percent),
            AddNoiseToMinMax(*_NOISE),
        ):
            nested, _ = cleanser.apply(nested, "this site")
    _hide_small_bins(nested[StC.STATS_HISTOGRAM][_SITE], statistics[StC.STATS_HISTOGRAM], policy.min_bin_patients)
    kept = list(nested[StC.STATS_FAILURE_COUNT][_SITE])  # FLARE keeps the counts of all, these of what it lets pass
    whole = [name for name in kept if name not in statistics[StC.STATS_HISTOGRAM] or name in _histograms(nested)]
    withheld = [name for name in measures if name not in whole]
    if report["totals"]["patients"] < policy.min_patients or not kept:
        return dict(TOO_FEW), measures
    return {
        "enough": True,
        "totals": report["totals"],
        "statistics": {
            name: {
                measure: float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
                for measure, value in entries[_SITE].items()
                if measure in kept
            }
            for name, entries in nested.items()
        },
    }, withheld


@contextmanager
def _noise_that_no_seed_tells() -> Iterator[None]:
    """FLARE draws from Python's global generator, and whoever knows the job's seed knows how that was seeded."""
    state = random.getstate()
    random.seed(os.urandom(32))
    try:
        yield
    finally:
        random.setstate(state)


def _histograms(nested: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return nested[StC.STATS_HISTOGRAM][_SITE]


def _flare(name: str, entries: dict[str, Any], allowed: list[str]) -> dict[str, Any]:
    """Entries as FLARE's cleansers take them: of a histogram they count the bins."""
    kept = {measure: value for measure, value in entries.items() if measure in allowed}
    if name != StC.STATS_HISTOGRAM:
        return kept
    return {
        measure: Histogram(HistogramType.STANDARD, [Bin(0, 0, count) for count in value["counts"]])
        for measure, value in kept.items()
    }


def _hide_small_bins(left: dict[str, Any], before: dict[str, dict[str, Any]], least: int) -> None:
    """Put plain histograms in place of FLARE's, without bins of fewer than ``least`` patients."""
    for measure in list(left):
        counts, withheld = _without_small_bins(before[measure]["counts"], before[measure]["withheld"], least)
        if any(counts):
            left[measure] = {**before[measure], "counts": counts, "withheld": withheld}
        else:
            del left[measure]


def _without_small_bins(counts: list[int], withheld: int, least: int) -> tuple[list[int], int]:
    """Counts that may be told, and how many patients are in none of them.

    The total of a measure is told as well, and less the bins that show it is what the hidden ones hold. So these have
    ``least`` patients together, which no single one has: the smallest that show are hidden along with the too small.
    """
    smallest_first = sorted(range(len(counts)), key=counts.__getitem__)
    hidden = sum(count < least for count in counts)
    while hidden < len(counts):
        inside = withheld + sum(counts[place] for place in smallest_first[:hidden])
        if inside == 0 or inside >= least:
            break
        hidden += 1
    told = set(smallest_first[hidden:])
    kept = [count if place in told else 0 for place, count in enumerate(counts)]
    return kept, withheld + sum(counts) - sum(kept)


def _check(report: dict[str, Any]) -> None:
    if set(report) != {"enough", "totals", "statistics"} or report["enough"] is not True:
        raise EgressError("statistics.keys", f"expected enough, totals and statistics, got {shown(report)}")
    totals, statistics = report["totals"], report["statistics"]
    if not isinstance(totals, dict) or set(totals) != set(TOTALS) or not all(map(is_count, totals.values())):
        raise EgressError("statistics.totals", f"must be whole numbers of {', '.join(TOTALS)}")
    if not isinstance(statistics, dict) or set(statistics) != set(NAMES):
        raise EgressError("statistics.names", f"expected {', '.join(NAMES)}, got {shown(statistics)}")
    measures = statistics[StC.STATS_COUNT]
    if not isinstance(measures, dict) or len(measures) > _MOST_MEASURES:
        raise EgressError("statistics.measures", f"must be a table of at most {_MOST_MEASURES}")
    strangers = [name for name in measures if not isinstance(name, str) or not re.fullmatch("[a-zA-Z_]{1,32}", name)]
    if strangers or set(statistics[StC.STATS_FAILURE_COUNT]) != set(measures):
        raise EgressError("statistics.measures", f"no measures: {shown(strangers) or 'other failures than counts'}")
    for name, entries in statistics.items():
        if not isinstance(entries, dict) or not set(entries) <= set(measures):
            raise EgressError("statistics.measures", f"{name} has others than count")
        for measure, value in entries.items():
            fits = is_count(value) if name in COUNTS else is_number(value) if name in NUMBERS else _is_histogram(value)
            if not fits:
                raise EgressError("statistics.values", f"{name} of {measure}")
    for measure, histogram in statistics[StC.STATS_HISTOGRAM].items():
        counted = sum(histogram["counts"]) + histogram["withheld"]
        if counted != measures[measure] - statistics[StC.STATS_FAILURE_COUNT][measure]:
            raise EgressError("statistics.values", f"the histogram of {measure} counts others than count")


def _is_histogram(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"low", "high", "counts", "withheld"}
        and is_number(value["low"])
        and is_number(value["high"])
        and isinstance(value["counts"], list)
        and 0 < len(value["counts"]) <= _MOST_BINS
        and all(map(is_count, [*value["counts"], value["withheld"]]))
    )
