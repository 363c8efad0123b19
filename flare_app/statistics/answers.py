"""What the server takes of the sites' answers: each is checked in full, and histograms must have the same axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flare_app.egress.plain import is_count, is_number, shown
from flare_app.egress.statistics import TOO_FEW, TOTALS
from flare_app.statistics.pooling import by_measure

WITHHELD = "too few patients for its policy or the job's, or a policy that gives no statistics"

_MOST = 64  # measures, and bins of a histogram: a site's egress filter lets out no more


def checked(report: Mapping[str, Any]) -> dict[str, Any]:
    """A site's answer in the form of the document.

    Raises:
        ValueError: when it is not in the form that was agreed; so do missing keys and wrong types, in their own words.
    """
    if report == TOO_FEW:
        return {"withheld": WITHHELD}
    totals, measures = report["totals"], by_measure(report)
    if report["enough"] is not True or set(totals) != set(TOTALS) or not all(map(is_count, totals.values())):
        raise ValueError(f"its totals must be whole numbers of {', '.join(TOTALS)}")
    if len(measures) > _MOST:
        raise ValueError(f"it tells of {len(measures)} measures, more than {_MOST}")
    broken = [name for name, entry in measures.items() if not isinstance(name, str) or not _is_measure(entry)]
    if broken:
        raise ValueError(f"what it tells of {shown(broken)} is not in the form that was agreed")
    return {"totals": dict(totals), "measures": measures}


def other_axes(told: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Sites whose histograms cannot be added to those of most, and why; of equally many, the first site by name stays.

    Args:
        told: :func:`checked` answers by site.
    """
    odd: dict[str, str] = {}
    for name in sorted({name for entry in told.values() for name in entry.get("measures", {})}):
        entries = {site: told[site].get("measures", {}).get(name, {}) for site in sorted(told) if site not in odd}
        axes = {site: _axis(entry["histogram"]) for site, entry in entries.items() if "histogram" in entry}
        found = list(axes.values())
        usual = max(found, key=found.count, default=None)
        for site, axis in axes.items():
            if axis != usual:
                odd[site] = (
                    f"its histogram of {name} has another range than that of other sites: its bundle is another one"
                )
    return odd


def _axis(histogram: Mapping[str, Any]) -> tuple[float, float, int]:
    return histogram["low"], histogram["high"], len(histogram["counts"])


def _is_measure(entry: Mapping[str, Any]) -> bool:
    return (
        is_count(entry["count"])
        and entry["count"] > 0
        and all(is_number(value) for name, value in entry.items() if name not in ("count", "histogram"))
        and entry["stddev"] >= 0
        and ("histogram" not in entry or _is_histogram(entry["histogram"], entry["count"]))
    )


def _is_histogram(value: Any, count: int) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"low", "high", "counts", "withheld"}
        and is_number(value["low"])
        and is_number(value["high"])
        and value["low"] < value["high"]
        and isinstance(value["counts"], list)
        and len(value["counts"]) <= _MOST
        and all(map(is_count, [*value["counts"], value["withheld"]]))
        and sum(value["counts"]) + value["withheld"] == count
    )
