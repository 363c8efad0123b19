"""Dice against fine-tuning steps: whether the arms of a study, above all the one without pre-training, had converged.

Dice is that of validation, on the preprocessed grid: higher or lower than on the volumes' own, and good for nothing but
to see where a curve is flat.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Validations:
    """Of one fine-tuning, those on the held-out patients of one site.

    Args:
        arm, mode: what was fine-tuned.
        annotated: N, annotated patients of each site.
        fold, seed: the run.
        site: whose patients; ``all`` where one training had the data of all sites.
        scores: steps behind each validation, in order, and its metrics: ``mean_dice``, ``dice_<structure>``.
    """

    arm: str
    mode: str
    annotated: int
    fold: int
    seed: int
    site: str
    scores: Sequence[tuple[int, Mapping[str, float]]]


@dataclass(frozen=True)
class StepPoint:
    """Mean Dice of an arm after so many steps.

    Args:
        mean, std: over sites, folds and seeds alike; no ``std`` of a single one.
        count: how many these are.
    """

    mean: float
    std: float | None
    count: int


# Mode and N, to arm, to steps.
OverSteps = dict[tuple[str, int], dict[str, dict[int, StepPoint]]]


def federated_scores(
    lines: Sequence[Mapping[str, Any]], steps: int
) -> dict[str, list[tuple[int, Mapping[str, float]]]]:
    """Site to its validations in a log of rounds: of the weights that a round began with.

    Args:
        lines: of ``rounds.jsonl``.
        steps: of a round, at each site.
    """
    scores: dict[str, list[tuple[int, Mapping[str, float]]]] = {}
    for line in lines:
        for site, entry in line["sites"].items():
            metrics = {name: value for name, value in entry.get("validation", {}).items() if name != "count"}
            if metrics:
                scores.setdefault(site, []).append((line["round"] * steps, metrics))
    return scores


def curves_by_steps(validations: Sequence[Validations]) -> OverSteps:
    """Curves with their spread, N ascending, modes and arms in the order of first appearance."""
    modes = list(dict.fromkeys(each.mode for each in validations))
    values: dict[tuple[str, int], dict[str, dict[int, list[float]]]] = {}
    for each in sorted(validations, key=lambda each: (modes.index(each.mode), each.annotated)):
        for steps, metrics in each.scores:
            if math.isfinite(metrics.get("mean_dice", math.nan)):
                arms = values.setdefault((each.mode, each.annotated), {})
                arms.setdefault(each.arm, {}).setdefault(steps, []).append(metrics["mean_dice"])
    return {
        place: {arm: {steps: _point(dice) for steps, dice in sorted(curve.items())} for arm, curve in arms.items()}
        for place, arms in values.items()
    }


def _point(dice: Sequence[float]) -> StepPoint:
    return StepPoint(statistics.fmean(dice), statistics.stdev(dice) if len(dice) > 1 else None, len(dice))
