"""What a label-efficiency study found: Dice against annotated patients, by class and phase, and label efficiency.

A run's Dice is the mean over its models; a model without a Dice in any volume is left out, and so is a run without any.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fcl.evaluation.label_efficiency import Needed, patients_needed
from fcl.evaluation.study_runs import Evaluation, Run, arm_pairs, case_dice, in_common, model_dice, read_rows
from fcl.evaluation.table import describe_values

ALL_PHASES = "all"
_METRICS = ("dice", "hd95_mm")


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
class Equal:
    """How many annotated patients ``reference`` needs for the Dice that ``arm`` has with ``annotated``."""

    mode: str
    reference: str
    arm: str
    annotated: int
    needed: Needed


Curves = dict[str, dict[str, dict[int, Point]]]


def curves(evaluations: Sequence[Evaluation]) -> Curves:
    """Mode to arm to N to :class:`Point`, each in the order of first appearance, N ascending."""
    result: Curves = {}
    for (mode, arm, count), own in sorted(_grouped(evaluations).items(), key=lambda item: item[0][2]):
        runs: list[float] = []
        models: dict[str, list[float]] = {}
        for evaluation in own:
            means = model_dice(evaluation)
            if means:
                runs.append(statistics.fmean(means.values()))
            for who, value in means.items():
                models.setdefault(who, []).append(value)
        if not runs:
            continue
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

    Beside them ``scored``, the volumes that have a value, and ``volumes``, all; of each model and run.

    Args:
        own: runs of one arm, mode and N.
    """
    runs = [[row for file in evaluation.scores.values() for row in read_rows(file)] for evaluation in own]
    rows_of_all = [row for rows in runs for row in rows]
    classes = list(dict.fromkeys(row["class"] for row in rows_of_all))
    phases = [ALL_PHASES, *sorted({row["phase"] for row in rows_of_all if row["phase"]})]

    def over_runs(phase: str, name: str, metric: str) -> dict[str, Any]:
        fitting = [[r for r in rows if r["class"] == name and phase in (ALL_PHASES, r["phase"])] for rows in runs]
        found = [[float(row[metric]) for row in rows if row[metric]] for rows in fitting]
        return {
            **describe_values(statistics.fmean(one) for one in found if one),
            "scored": sum(map(len, found)),
            "volumes": sum(map(len, fitting)),
        }

    return {
        phase: {name: {metric: over_runs(phase, name, metric) for metric in _METRICS} for name in classes}
        for phase in phases
    }


def label_efficiency(evaluations: Sequence[Evaluation], references: Sequence[str]) -> list[Equal]:
    """What each reference needs for the Dice of each arm, at each N of the arm.

    Both Dice are means over the same runs and models: those that both arms have at N (those of the arm where the
    reference was not tried with N). Of the reference's curve the points count that have all of them; nothing is said
    where none has.
    """
    dice: dict[str, dict[str, dict[int, dict[Run, dict[str, float]]]]] = {}
    for e in evaluations:
        if means := model_dice(e):
            dice.setdefault(e.mode, {}).setdefault(e.arm, {}).setdefault(e.annotated, {})[e.fold, e.seed] = means
    result = []
    for mode, arms in dice.items():
        for reference, arm in arm_pairs(list(arms), references):
            for count, every in sorted(arms[arm].items()):
                own = in_common(every, arms[reference].get(count, every))[0]
                curve = {}
                for n, theirs in arms[reference].items():
                    shared, known = in_common(own, theirs)
                    if own and shared == own:
                        curve[n] = _mean_over_runs(known)
                if curve:
                    needed = patients_needed(curve, _mean_over_runs(own))
                    result.append(Equal(mode, reference, arm, count, needed))
    return result


def worst_volume(own: Sequence[Evaluation]) -> tuple[Evaluation, str, str, float]:
    """Of some evaluations the one with the worst volume by mean Dice, whose model it was, the volume and its Dice.

    Raises:
        ValueError: when no volume has a Dice.
    """
    found = [
        (dice, evaluation.fold, evaluation.seed, who, case, evaluation)
        for evaluation in own
        for who, file in evaluation.scores.items()
        for case, dice in case_dice(read_rows(file)).items()
    ]
    dice, _, _, who, case, evaluation = min(found, key=lambda entry: entry[:5])
    return evaluation, who, case, dice


def _mean_over_runs(runs: Mapping[Run, Mapping[str, float]]) -> float:
    return statistics.fmean(statistics.fmean(models.values()) for models in runs.values())


def _grouped(evaluations: Sequence[Evaluation]) -> dict[tuple[str, str, int], list[Evaluation]]:
    groups: dict[tuple[str, str, int], list[Evaluation]] = {}
    for evaluation in evaluations:
        groups.setdefault((evaluation.mode, evaluation.arm, evaluation.annotated), []).append(evaluation)
    return groups
