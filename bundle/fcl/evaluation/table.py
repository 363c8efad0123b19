"""Scores of many cases as a CSV, a JSON summary and a table on the terminal."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fcl.evaluation.metrics import METRICS, CaseScore, ClassScore

COLUMNS = ("case", "patient", "phase", "class", *METRICS)
_DIGITS = {"dice": 4, "hd95_mm": 3, "assd_mm": 3}


def describe_values(values: Iterable[float]) -> dict[str, float | int | None]:
    """``mean``, sample ``std`` and ``n`` of the values that are not NaN; None where undefined (n = 0, std at n = 1)."""
    kept = [v for v in values if not math.isnan(v)]
    return {
        "mean": statistics.fmean(kept) if kept else None,
        "std": statistics.stdev(kept) if len(kept) > 1 else None,
        "n": len(kept),
    }


def summarise(cases: Sequence[CaseScore], phases: bool = True) -> dict[str, Any]:
    """Means over cases.

    Args:
        cases: scores with the same classes each.
        phases: add the same summary for each phase.

    Returns:
        ``cases``: their number; ``mean_dice``: mean over cases of the case's mean over classes (None without a value);
        ``classes``: name to ``dice``, ``hd95_mm``, ``assd_mm`` as :func:`describe_values` gives them, and the counts
        ``missed`` (in the truth, not predicted) and ``invented`` (predicted, not in the truth); ``phases``: phase to
        such a summary.

    Raises:
        ValueError: without cases.
    """
    if not cases:
        raise ValueError("there are no scores to summarise.")
    summary: dict[str, Any] = {
        "cases": len(cases),
        "mean_dice": describe_values(case.mean_dice for case in cases)["mean"],
        "classes": {name: _summarise_class([case.classes[name] for case in cases]) for name in cases[0].classes},
    }
    if phases:
        summary["phases"] = {
            phase: summarise([case for case in cases if case.phase == phase], phases=False)
            for phase in sorted({case.phase for case in cases if case.phase})
        }
    return summary


def write_csv(cases: Iterable[CaseScore], path: str | Path) -> None:
    """One row per case and class; undefined values stay blank."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for case in cases:
            for name, score in case.classes.items():
                row = [_cell(getattr(score, metric), _DIGITS[metric], blank="") for metric in METRICS]
                writer.writerow([case.case, case.patient, case.phase, name, *row])


def read_rows(path: str | Path) -> list[dict[str, str]]:
    """What :func:`write_csv` wrote, column to text."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_summary(summary: Mapping[str, Any], path: str | Path) -> None:
    """The summary as JSON that a person can read."""
    Path(path).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def print_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """A table of mean and standard deviation per class, then per phase."""
    table = Table(title=f"{summary['cases']} volumes, mean Dice {_cell(summary['mean_dice'], 3)}")
    table.add_column("phase")
    table.add_column("class")
    for heading in ("Dice", "HD95 (mm)", "ASSD (mm)", "missed"):
        table.add_column(heading, justify="right")
    for phase, part in (("all", summary), *summary.get("phases", {}).items()):
        for position, (name, values) in enumerate(part["classes"].items()):
            cells = [_spread(values[metric], 3 if metric == "dice" else 2) for metric in METRICS]
            table.add_row("" if position else phase, name, *cells, str(values["missed"]))
        table.add_section()
    (console or Console()).print(table)


def _summarise_class(scores: Sequence[ClassScore]) -> dict[str, Any]:
    return {
        **{metric: describe_values(getattr(score, metric) for score in scores) for metric in METRICS},
        "missed": sum(score.in_truth and not score.in_prediction for score in scores),
        "invented": sum(score.in_prediction and not score.in_truth for score in scores),
    }


def _cell(value: float | None, digits: int, blank: str = "-") -> str:
    return blank if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _spread(values: Mapping[str, Any], digits: int) -> str:
    mean = _cell(values["mean"], digits)
    return mean if values["std"] is None else f"{mean} ± {values['std']:.{digits}f}"
