"""What a label-efficiency study found: Dice against annotated patients, by class and phase, and arms paired by patient.

A *run* is one fold and seed of an arm. Where each site has a model of its own, all are scored on the held-out patients
of all sites, and a run's Dice is the mean over these models.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcl.evaluation.compare import Difference, adjusted, differences
from fcl.evaluation.label_efficiency import Needed, patients_needed
from fcl.evaluation.table import describe_values

ALL_PHASES = "all"
_METRICS = ("dice", "hd95_mm")


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Args:
        arm, mode: what was evaluated.
        annotated: N, annotated patients of each site.
        fold, seed: the run.
        scores: whose model (``all``, or a site), to its ``scores.csv``.
    """

    arm: str
    mode: str
    annotated: int
    fold: int
    seed: int
    scores: Mapping[str, Path]


@dataclass(frozen=True)
class Point:
    """Mean Dice of an arm at one N.

    Args:
        mean: over runs; in a run the mean over volumes of their mean over classes.
        std: standard deviation over runs; None for a single one.
        runs: how many.
        std_sites: standard deviation over the sites' models of their mean over runs; None where there is one model.
    """

    mean: float
    std: float | None
    runs: int
    std_sites: float | None


@dataclass(frozen=True)
class Paired:
    """An arm against a reference, at one N and mode."""

    mode: str
    annotated: int
    reference: str
    found: Difference


@dataclass(frozen=True)
class Equal:
    """How many annotated patients ``reference`` needs for the Dice that ``arm`` has with ``annotated``."""

    mode: str
    reference: str
    arm: str
    annotated: int
    needed: Needed


Curves = dict[str, dict[str, dict[int, Point]]]


def read_rows(file: Path) -> list[dict[str, str]]:
    """Rows of a ``scores.csv``."""
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def case_dice(rows: Iterable[Mapping[str, str]]) -> dict[str, float]:
    """Volume to its mean Dice over the classes that have one."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if row["dice"]:
            values.setdefault(row["case"], []).append(float(row["dice"]))
    return {case: statistics.fmean(own) for case, own in values.items()}


def mean_dice(file: Path) -> float:
    """Mean over the volumes of a ``scores.csv`` of :func:`case_dice`."""
    return statistics.fmean(case_dice(read_rows(file)).values())


def curves(evaluations: Sequence[Evaluation]) -> Curves:
    """Mode to arm to N to :class:`Point`, each in the order of first appearance, N ascending."""
    result: Curves = {}
    for (mode, arm, count), own in sorted(_grouped(evaluations).items(), key=lambda item: item[0][2]):
        runs: list[float] = []
        models: dict[str, list[float]] = {}
        for evaluation in own:
            means = {who: mean_dice(file) for who, file in evaluation.scores.items()}
            runs.append(statistics.fmean(means.values()))
            for who, value in means.items():
                models.setdefault(who, []).append(value)
        by_site = [statistics.fmean(values) for values in models.values()]
        point = Point(
            statistics.fmean(runs),
            statistics.stdev(runs) if len(runs) > 1 else None,
            len(runs),
            statistics.stdev(by_site) if len(by_site) > 1 else None,
        )
        result.setdefault(mode, {}).setdefault(arm, {})[count] = point
    order = list(dict.fromkeys(evaluation.arm for evaluation in evaluations))
    return {mode: {arm: own[arm] for arm in order if arm in own} for mode, own in result.items()}


def by_class(own: Sequence[Evaluation]) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Phase (``"all"`` first) to class to metric to mean and spread over runs of the run's own mean.

    Args:
        own: runs of one arm, mode and N.
    """
    runs = [[row for file in evaluation.scores.values() for row in read_rows(file)] for evaluation in own]
    rows_of_all = [row for rows in runs for row in rows]
    classes = list(dict.fromkeys(row["class"] for row in rows_of_all))
    phases = [ALL_PHASES, *sorted({row["phase"] for row in rows_of_all if row["phase"]})]

    def values(rows: Sequence[Mapping[str, str]], phase: str, name: str, metric: str) -> list[float]:
        fitting = (r for r in rows if r["class"] == name and phase in (ALL_PHASES, r["phase"]) and r[metric])
        return [float(row[metric]) for row in fitting]

    def over_runs(phase: str, name: str, metric: str) -> dict[str, Any]:
        found = [values(rows, phase, name, metric) for rows in runs]
        return describe_values(statistics.fmean(one) for one in found if one)

    return {
        phase: {name: {metric: over_runs(phase, name, metric) for metric in _METRICS} for name in classes}
        for phase in phases
    }


def arm_pairs(arms: Sequence[str], references: Sequence[str]) -> list[tuple[str, str]]:
    """Reference and arm of every comparison: each reference with all arms, no pair twice."""
    pairs: list[tuple[str, str]] = []
    for reference in (name for name in references if name in arms):
        others = [arm for arm in arms if arm != reference]
        pairs += [(reference, arm) for arm in others if (arm, reference) not in pairs]
    return pairs


def paired(evaluations: Sequence[Evaluation], references: Sequence[str]) -> list[Paired]:
    """Arms against references over patients, on the runs that both have; ``p`` is adjusted over all."""
    groups = _grouped(evaluations)
    arms = list(dict.fromkeys(evaluation.arm for evaluation in evaluations))
    places, lines = [], []
    for mode, count in dict.fromkeys((mode, count) for mode, _, count in groups):
        for pair in arm_pairs(arms, references):
            runs = [{(e.fold, e.seed): e for e in groups.get((mode, arm, count), ())} for arm in pair]
            common = [run for run in runs[0] if run in runs[1]]
            if common:
                files = {
                    arm: [file for run in common for file in own[run].scores.values()]
                    for arm, own in zip(pair, runs, strict=True)
                }
                places.append((mode, count, pair[0]))
                lines += differences(files)
    return [Paired(*place, found) for place, found in zip(places, adjusted(lines), strict=True)]


def label_efficiency(evaluations: Sequence[Evaluation], references: Sequence[str]) -> list[Equal]:
    """What each reference needs for the Dice of each arm, at each N of the arm.

    Both Dice are means over the same runs: those that both arms have at N (those of the arm where the reference was not
    tried with N). Of the reference's curve the points count that have all of them; nothing is said where none has.
    """
    dice: dict[str, dict[str, dict[int, dict[tuple[int, int], float]]]] = {}
    for e in evaluations:
        mean = statistics.fmean(mean_dice(file) for file in e.scores.values())
        dice.setdefault(e.mode, {}).setdefault(e.arm, {}).setdefault(e.annotated, {})[e.fold, e.seed] = mean
    result = []
    for mode, arms in dice.items():
        for reference, arm in arm_pairs(list(arms), references):
            for count, own in sorted(arms[arm].items()):
                runs = set(own) & set(arms[reference].get(count, own))
                known = {n: theirs for n, theirs in arms[reference].items() if runs and runs <= set(theirs)}
                if known:
                    curve = {n: _mean_of(theirs, runs) for n, theirs in known.items()}
                    needed = patients_needed(curve, _mean_of(own, runs))
                    result.append(Equal(mode, reference, arm, count, needed))
    return result


def on_common_runs(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Those of the runs that every arm among them has."""
    runs: dict[str, set[tuple[int, int]]] = {}
    for e in evaluations:
        runs.setdefault(e.arm, set()).add((e.fold, e.seed))
    common = set.intersection(*runs.values()) if runs else set()
    return [e for e in evaluations if (e.fold, e.seed) in common]


def worst_volume(own: Sequence[Evaluation]) -> tuple[Evaluation, str, str, float]:
    """Of some evaluations the one with the worst volume by mean Dice, whose model it was, the volume and its Dice."""
    found = [
        (dice, evaluation.fold, evaluation.seed, who, case, evaluation)
        for evaluation in own
        for who, file in evaluation.scores.items()
        for case, dice in case_dice(read_rows(file)).items()
    ]
    dice, _, _, who, case, evaluation = min(found, key=lambda entry: entry[:5])
    return evaluation, who, case, dice


def _mean_of(values: Mapping[tuple[int, int], float], runs: Iterable[tuple[int, int]]) -> float:
    return statistics.fmean(values[run] for run in runs)


def _grouped(evaluations: Sequence[Evaluation]) -> dict[tuple[str, str, int], list[Evaluation]]:
    groups: dict[tuple[str, str, int], list[Evaluation]] = {}
    for evaluation in evaluations:
        groups.setdefault((evaluation.mode, evaluation.arm, evaluation.annotated), []).append(evaluation)
    return groups
