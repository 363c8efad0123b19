"""Arms of a study paired by patient, and what their runs say beside the patients."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fcl.evaluation.compare import Difference, adjusted, differences, patient_dice, t_half_width
from fcl.evaluation.study_runs import Evaluation, Run, arm_pairs, in_common, split_by_dice

_FEWEST = 3  # folds or seeds that an interval is given for


@dataclass(frozen=True)
class OverRuns:
    """What another training might give: the runs' mean differences, each with a training of its own.

    Seeds of a fold share its patients, those who train and those held out: a fold counts once, with the mean of its
    seeds. Seeds of a single fold stand for themselves, and speak of no other patients.

    Args:
        runs: how many.
        better: of them, those where the arm has the higher Dice.
        low, high: 95 % interval of the mean over folds, or over the seeds of the only fold (Student's t); None with
            fewer than three.
    """

    runs: int
    better: int
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Paired:
    """An arm against a reference, at one N and mode.

    Args:
        mode, annotated, reference: what the arm was compared with.
        found: over the patients of all runs together, who share the trainings of a run.
        over_runs: over the runs.
    """

    mode: str
    annotated: int
    reference: str
    found: Difference
    over_runs: OverRuns


def paired(evaluations: Sequence[Evaluation], references: Sequence[str]) -> list[Paired]:
    """Arms against references on the runs and models that both have; ``p`` is adjusted over all.

    A run in which no patient has a Dice in both is left out.

    Raises:
        ValueError: when arms were evaluated on other volumes or classes in the same run.
    """
    groups: dict[tuple[str, int], dict[str, dict[Run, Mapping[str, Path]]]] = {}
    for e in split_by_dice(evaluations)[0]:
        groups.setdefault((e.mode, e.annotated), {}).setdefault(e.arm, {})[e.fold, e.seed] = e.scores
    arms = list(dict.fromkeys(evaluation.arm for evaluation in evaluations))
    places: list[tuple[str, int, str, OverRuns]] = []
    lines: list[Difference] = []
    for (mode, count), own in groups.items():
        for pair in arm_pairs([arm for arm in arms if arm in own], references):
            left, right = in_common(*(own[arm] for arm in pair))
            by_run = {run: _difference(left[run], right[run]) for run in left}
            known = {run: value for run, value in by_run.items() if value is not None}
            if known:
                places.append((mode, count, pair[0], over_runs(known)))
                files = {
                    arm: [file for run in known for file in side[run].values()]
                    for arm, side in zip(pair, (left, right), strict=True)
                }
                lines += differences(files)
    return [
        Paired(mode, count, reference, found, runs)
        for (mode, count, reference, runs), found in zip(places, adjusted(lines), strict=True)
    ]


def over_runs(differences_of: Mapping[Run, float]) -> OverRuns:
    """Of the mean difference of each run; at least one."""
    values = list(differences_of.values())
    by_fold: dict[int, list[float]] = {}
    for (fold, _), value in differences_of.items():
        by_fold.setdefault(fold, []).append(value)
    units = [statistics.fmean(own) for own in by_fold.values()] if len(by_fold) > 1 else values
    mean = statistics.fmean(units)
    half = t_half_width(units) if len(units) >= _FEWEST else None
    return OverRuns(
        runs=len(values),
        better=sum(value > 0 for value in values),
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
    )


def _difference(left: Mapping[str, Path], right: Mapping[str, Path]) -> float | None:
    """Mean over the patients with a Dice in both; None without any."""
    one, other = (patient_dice(list(side.values())) for side in (left, right))
    both = one.keys() & other.keys()
    return statistics.fmean(other[patient] - one[patient] for patient in sorted(both)) if both else None
