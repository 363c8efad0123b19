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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from scipy.stats import false_discovery_control, t, wilcoxon

ALL = "all"
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Dice of an arm minus Dice of the reference, over patients.

    Args:
        arm: compared with the reference.
        label: class, or ``"all"`` for the mean over classes.
        patients: number of pairs.
        reference, value: mean Dice over patients of the reference and of the arm.
        difference, low, high: mean difference and its 95 % interval (Student's t).
        better: patients with a higher Dice than in the reference.
        p: two-sided Wilcoxon signed-rank test, adjusted over all differences shown (Benjamini and Hochberg 1995).
    """

    arm: str
    label: str
    patients: int
    reference: float
    value: float
    difference: float
    low: float
    high: float
    better: int
    p: float


def read_scores(file: Path) -> dict[str, dict[str, list[float]]]:
    """Dice of a ``scores.csv`` by class and patient, over the patient's volumes; undefined values are left out.

    Raises:
        ValueError: when the file lacks a column, or has no value.
    """
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with file.open(newline="") as stream:
        reader = csv.DictReader(stream)
        missing = {"patient", "class", "dice"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{file} has no column {', '.join(sorted(missing))}: give a scores.csv of an evaluation")
        for row in reader:
            dice = float(row["dice"]) if row["dice"] else math.nan
            if not math.isnan(dice):
                scores[row["class"]][row["patient"]].append(dice)
    if not scores:
        raise ValueError(f"{file} holds no Dice")
    return scores


def compare(arms: Mapping[str, Sequence[Path]], by_class: bool = False) -> list[Difference]:
    """Each arm after the first against the first.

    Args:
        arms: name to the ``scores.csv`` of its runs.
        by_class: a line for each class beside that of all classes together.

    Raises:
        ValueError: with fewer than two arms, or when arms were evaluated on other patients or classes.
    """
    return adjusted(differences(arms, by_class))


def differences(arms: Mapping[str, Sequence[Path]], by_class: bool = False) -> list[Difference]:
    """:func:`compare` before ``p`` is adjusted, for those who show more than one comparison."""
    if len(arms) < 2:
        raise ValueError(f"give at least two arms, got {', '.join(arms) or 'none'}")
    means = {arm: _patient_means(files) for arm, files in arms.items()}
    reference, *others = means
    lines = []
    for arm in others:
        for label in [ALL, *(sorted(set(means[reference]) - {ALL}) if by_class else [])]:
            left, right = means[reference][label], means[arm].get(label, {})
            if left.keys() != right.keys():
                strange = sorted(left.keys() ^ right.keys())
                raise ValueError(f"{reference} and {arm} differ in patients ({label}): {', '.join(strange[:5])}")
            lines.append(_difference(arm, label, left, right))
    return lines


def adjusted(lines: Sequence[Difference]) -> list[Difference]:
    """The same with ``p`` adjusted over all of them."""
    values = false_discovery_control([line.p for line in lines]) if lines else []
    return [replace(line, p=float(p)) for line, p in zip(lines, values, strict=True)]


def _patient_means(files: Sequence[Path]) -> dict[str, dict[str, float]]:
    """Class to patient to mean Dice over volumes and runs; ``"all"`` is the mean over classes."""
    runs = [read_scores(file) for file in files]
    if len({frozenset(run) for run in runs}) > 1:
        raise ValueError(f"runs of one arm have other classes: {', '.join(str(file) for file in files)}")
    result: dict[str, dict[str, float]] = {}
    for label in runs[0]:
        patients = {patient for run in runs for patient in run[label]}
        result[label] = {p: statistics.fmean(v for run in runs for v in run[label].get(p, [])) for p in patients}
    everyone = {patient for values in result.values() for patient in values}
    result[ALL] = {
        patient: statistics.fmean(values[patient] for values in result.values() if patient in values)
        for patient in everyone
    }
    return result


def _difference(arm: str, label: str, left: Mapping[str, float], right: Mapping[str, float]) -> Difference:
    pairs = [right[patient] - left[patient] for patient in sorted(left)]
    mean, count = statistics.fmean(pairs), len(pairs)
    half = math.nan
    if count > 1:
        half = float(t.ppf((1 + _CONFIDENCE) / 2, count - 1)) * statistics.stdev(pairs) / math.sqrt(count)
    return Difference(
        arm=arm,
        label=label,
        patients=count,
        reference=statistics.fmean(left.values()),
        value=statistics.fmean(right.values()),
        difference=mean,
        low=mean - half,
        high=mean + half,
        better=sum(pair > 0 for pair in pairs),
        p=float(wilcoxon(pairs).pvalue) if any(pairs) else 1.0,
    )


def print_differences(lines: Sequence[Difference], reference: str) -> None:
    """A table on the terminal."""
    table = Table(title=f"Dice against {reference}, paired by patient")
    for column in ("arm", "class", "patients", reference, "Dice", "difference (95 %)", "better in", "p (adjusted)"):
        table.add_column(column, justify="left" if column in ("arm", "class") else "right")
    for line in lines:
        table.add_row(
            line.arm,
            line.label,
            str(line.patients),
            f"{line.reference:.3f}",
            f"{line.value:.3f}",
            f"{line.difference:+.3f} ({line.low:+.3f} to {line.high:+.3f})",
            str(line.better),
            f"{line.p:.2g}",
        )
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
        print(json.dumps([asdict(line) for line in lines], indent=2))
    else:
        print_differences(lines, next(iter(arms)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
