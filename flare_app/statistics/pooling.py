"""All sites' statistics as one: exact for counts, means, deviations and histograms, since all of these add up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def by_measure(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a site told, by measure: ``count`` (patients with a value), ``mean``, ``stddev``, and as the case may be
    ``histogram`` (bins of few patients read 0, and ``withheld`` counts who is in them) or ``about_min`` and
    ``about_max``, which a site has moved outwards by noise.
    """
    told = report["statistics"]
    found: dict[str, dict[str, Any]] = {}
    for name, count in told["count"].items():
        entry = {
            "count": count - told["failure_count"][name],
            "mean": told["mean"][name],
            "stddev": told["stddev"][name],
        }
        for key, kept in (("min", "about_min"), ("max", "about_max"), ("histogram", "histogram")):
            if name in told[key]:
                entry[kept] = told[key][name]
        found[name] = entry
    return found


def pooled(sites: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The same over all patients of the sites that told of a measure.

    A histogram is the sum of those that there are, and tells by ``sites`` how many.

    Args:
        sites: :func:`by_measure` of each.
    """
    names = sorted({name for site in sites for name in site})
    return {name: _pooled([site[name] for site in sites if name in site]) for name in names}


def _pooled(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    count = sum(entry["count"] for entry in entries)
    mean = sum(entry["count"] * entry["mean"] for entry in entries) / count
    squares = sum(
        (entry["count"] - 1) * entry["stddev"] ** 2 + entry["count"] * (entry["mean"] - mean) ** 2 for entry in entries
    )
    found = {"count": count, "mean": mean, "stddev": math.sqrt(squares / (count - 1)) if count > 1 else 0.0}
    histograms = [entry["histogram"] for entry in entries if "histogram" in entry]
    if histograms:
        first = histograms[0]
        counts = [sum(column) for column in zip(*(entry["counts"] for entry in histograms), strict=True)]
        found["histogram"] = {
            "low": first["low"],
            "high": first["high"],
            "counts": counts,
            "withheld": sum(entry["withheld"] for entry in histograms),
            "sites": len(histograms),
        }
    for key, extreme in (("about_min", min), ("about_max", max)):
        if any(key in entry for entry in entries):
            found[key] = extreme(entry[key] for entry in entries if key in entry)
    return found
