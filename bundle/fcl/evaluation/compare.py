"""Two or more evaluations of the same volumes, paired by patient.

Examples:
    python -m fcl.evaluation.compare random=runs/random/scores.csv fcl=runs/fcl/scores.csv
    python -m fcl.evaluation.compare --by class --json random=a/scores.csv fcl=b/scores.csv simclr=c/scores.csv

The first arm is the reference. Several seeds of an arm: give its name more than once; a patient's scores are averaged.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from scipy.stats import false_discovery_control, t, wilcoxon

ALL = "all"
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Dice of an arm minus Dice of the reference, over patients.

    Interval and ``p`` speak of other patients with these trained models, not of other trainings: all patients of a run
    share its models.

    Args:
        arm: compared with the reference.
        label: class, or ``"all"`` for the mean over classes.
        patients: number of pairs, the patients with a Dice in both.
        left_out: scored patients that are no pair: a structure that is neither there nor predicted has no Dice.
        reference, value: mean Dice over the pairs of the reference and of the arm.
        difference, low, high: mean difference and its 95 % interval (Student's t), which one patient does not give.
        better: patients with a higher Dice than in the reference.
        p: two-sided Wilcoxon signed-rank test, adjusted over all differences shown (Benjamini and Hochberg 1995).
    """

    arm: str
    label: str
    patients: int
    left_out: int
    reference: float
    value: float
    difference: float
    low: float | None
    high: float | None
    better: int
    p: float


class Row(NamedTuple):
    """Dice of a class in a volume of a patient; NaN where undefined."""

    label: str
    patient: str
    volume: str
    dice: float


def read_scores(file: Path) -> list[Row]:
    """Rows of a ``scores.csv``.

    Raises:
        ValueError: when the file lacks a column, or has no value.
    """
    with file.open(newline="") as stream:
        reader = csv.DictReader(stream)
        missing = {"case", "patient", "class", "dice"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{file} has no column {', '.join(sorted(missing))}: give a scores.csv of an evaluation")
        rows = [Row(row["class"], row["patient"], row["case"], float(row["dice"] or "nan")) for row in reader]
    if all(math.isnan(row.dice) for row in rows):
        raise ValueError(f"{file} holds no Dice")
    return rows


def compare(arms: Mapping[str, Sequence[Path]], by_class: bool = False) -> list[Difference]:
    """Each arm after the first against the first.

    Args:
        arms: name to the ``scores.csv`` of its runs.
        by_class: a line for each class beside that of all classes together; none for a class without a pair.

    Raises:
        ValueError: with fewer than two arms, when arms were evaluated on other volumes or classes, or without a pair.
    """
    return adjusted(differences(arms, by_class))


def differences(arms: Mapping[str, Sequence[Path]], by_class: bool = False) -> list[Difference]:
    """:func:`compare` before ``p`` is adjusted, for those who show more than one comparison."""
    if len(arms) < 2:
        raise ValueError(f"give at least two arms, got {', '.join(arms) or 'none'}")
    rows = {arm: _read_runs(files) for arm, files in arms.items()}
    means = {arm: _patient_means(own) for arm, own in rows.items()}
    reference, *others = rows
    scored = {row.patient for row in rows[reference]}
    lines = []
    for arm in others:
        _refuse_others(reference, rows[reference], arm, rows[arm])
        for label in [ALL, *(sorted(set(means[reference]) - {ALL}) if by_class else [])]:
            left, right = means[reference][label], means[arm].get(label, {})
            if left.keys() & right.keys():
                lines.append(paired_difference(arm, label, left, right, len(scored)))
            elif label == ALL:
                raise ValueError(f"{reference} and {arm} have no patient with a Dice in both")
    return lines


def adjusted(lines: Sequence[Difference]) -> list[Difference]:
    """The same with ``p`` adjusted over all of them."""
    values = false_discovery_control([line.p for line in lines]) if lines else []
    return [replace(line, p=float(p)) for line, p in zip(lines, values, strict=True)]


def patient_dice(files: Sequence[Path]) -> dict[str, float]:
    """Patient to mean Dice over classes, volumes and runs, where there is one.

    Raises:
        ValueError: as :func:`read_scores`, and when runs have other classes.
    """
    return _patient_means(_read_runs(files))[ALL]


def _read_runs(files: Sequence[Path]) -> list[Row]:
    """Rows of all runs of an arm."""
    runs = [read_scores(file) for file in files]
    if len({frozenset(row.label for row in run) for run in runs}) > 1:
        raise ValueError(f"runs of one arm have other classes: {', '.join(str(file) for file in files)}")
    return [row for run in runs for row in run]


def _refuse_others(reference: str, left: Iterable[Row], arm: str, right: Iterable[Row]) -> None:
    """Looks at what was scored, not at which of it has a Dice: that depends on what an arm predicted."""
    one, other = ({(row.patient, row.volume, row.label) for row in rows} for rows in (left, right))
    if strange := sorted(one ^ other):
        shown = "; ".join(" ".join(row) for row in strange[:5])
        raise ValueError(
            f"{reference} and {arm} were not scored on the same patients, volumes and classes: "
            f"{len(strange)} only in one, first {shown}"
        )


def _patient_means(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """Class to patient to mean Dice over volumes and runs, where there is one; ``"all"`` is the mean over classes."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if not math.isnan(row.dice):
            values[row.label][row.patient].append(row.dice)
    result = {label: {p: statistics.fmean(own) for p, own in found.items()} for label, found in values.items()}
    everyone = {patient for means in result.values() for patient in means}
    result[ALL] = {
        patient: statistics.fmean(means[patient] for means in result.values() if patient in means)
        for patient in everyone
    }
    return result


def t_half_width(values: Sequence[float]) -> float:
    """Half the 95 % interval of a mean, by Student's t; of at least two values."""
    return float(t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def paired_difference(
    arm: str, label: str, left: Mapping[str, float], right: Mapping[str, float], scored: int
) -> Difference:
    """``right`` minus ``left``, Dice by patient, over the patients of both, of ``scored``; p is not adjusted."""
    both = sorted(left.keys() & right.keys())
    pairs = [right[patient] - left[patient] for patient in both]
    mean, count = statistics.fmean(pairs), len(pairs)
    half = t_half_width(pairs) if count > 1 else None
    return Difference(
        arm=arm,
        label=label,
        patients=count,
        left_out=scored - count,
        reference=statistics.fmean(left[patient] for patient in both),
        value=statistics.fmean(right[patient] for patient in both),
        difference=mean,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
        better=sum(pair > 0 for pair in pairs),
        p=float(wilcoxon(pairs).pvalue) if any(pairs) else 1.0,
    )


def print_differences(lines: Sequence[Difference], reference: str) -> None:
    """A table on the terminal."""
    table = Table(title=f"Dice against {reference}, paired by patient")
    for column in ("arm", "class", "patients", reference, "Dice", "difference (95 %)", "better in", "p (adjusted)"):
        table.add_column(column, justify="left" if column in ("arm", "class") else "right")
    for line in lines:
        interval = "–" if line.low is None or line.high is None else f"{line.low:+.3f} to {line.high:+.3f}"
        table.add_row(
            line.arm,
            line.label,
            f"{line.patients} of {line.patients + line.left_out}" if line.left_out else str(line.patients),
            f"{line.reference:.3f}",
            f"{line.value:.3f}",
            f"{line.difference:+.3f} ({interval})",
            str(line.better),
            f"{line.p:.2g}",
        )
    notes = ["Interval and p speak of other patients with these trained models, not of other trainings."]
    if any(line.left_out for line in lines):
        notes.append("Patients: those with a Dice in both, of all; a structure neither there nor predicted has none.")
    table.caption = "\n".join(notes)
    Console(width=120).print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fcl.evaluation.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("arms", nargs="+", metavar="NAME=scores.csv", help="first the reference")
    parser.add_argument("--by", choices=("class",), help="a line for each class as well")
    parser.add_argument("--json", action="store_true", help="for scripts")
    options = parser.parse_args(arguments)
    arms: dict[str, list[Path]] = {}
    for text in options.arms:
        name, separator, file = text.partition("=")
        if not separator or not name:
            parser.error(f"expected NAME=scores.csv, got {text!r}")
        arms.setdefault(name, []).append(Path(file))
    try:
        lines = compare(arms, by_class=options.by == "class")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if options.json:
        print(json.dumps([asdict(line) for line in lines], indent=2, allow_nan=False))
    else:
        print_differences(lines, next(iter(arms)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
