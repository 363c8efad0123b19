"""The runs of a study, their Dice, and what several arms have in common.

A *run* is one fold and seed of an arm. Where each site has a model of its own, all are scored on the held-out patients
of all sites.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from fcl.evaluation.convergence import Validations
from fcl.evaluation.table import read_rows

_ONE = "all"  # the model of all sites together
Run = tuple[int, int]
_Value = TypeVar("_Value")


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


def case_dice(rows: Iterable[Mapping[str, str]]) -> dict[str, float]:
    """Volume to its mean Dice over the classes that have one."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if row["dice"]:
            values.setdefault(row["case"], []).append(float(row["dice"]))
    return {case: statistics.fmean(own) for case, own in values.items()}


def mean_dice(file: Path) -> float | None:
    """Mean over the volumes of a ``scores.csv`` of :func:`case_dice`; None where no volume has one."""
    found = case_dice(read_rows(file))
    return statistics.fmean(found.values()) if found else None


def model_dice(evaluation: Evaluation) -> dict[str, float]:
    """Whose model to its :func:`mean_dice`, of those that have one."""
    found = {who: mean_dice(file) for who, file in evaluation.scores.items()}
    return {who: dice for who, dice in found.items() if dice is not None}


def split_by_dice(evaluations: Iterable[Evaluation]) -> tuple[list[Evaluation], list[Evaluation]]:
    """The evaluations with those of their models that have a Dice, and with those that have none; without empty ones.

    No volume has a Dice where what was looked for is neither in truth nor in prediction.
    """
    having: list[Evaluation] = []
    lacking: list[Evaluation] = []
    for evaluation in evaluations:
        known = model_dice(evaluation)
        for found, wanted in ((having, True), (lacking, False)):
            scores = {who: file for who, file in evaluation.scores.items() if (who in known) is wanted}
            if scores:
                found.append(replace(evaluation, scores=scores))
    return having, lacking


def arm_pairs(arms: Sequence[str], references: Sequence[str]) -> list[tuple[str, str]]:
    """Reference and arm of every comparison: each reference with all arms, no pair twice."""
    pairs: list[tuple[str, str]] = []
    for reference in (name for name in references if name in arms):
        others = [arm for arm in arms if arm != reference]
        pairs += [(reference, arm) for arm in others if (arm, reference) not in pairs]
    return pairs


def in_common(*sides: Mapping[Run, Mapping[str, _Value]]) -> list[dict[Run, dict[str, _Value]]]:
    """Of each side (run to whose model to anything) the runs that all have, with the sites' models that all have.

    A side with the one model of all sites keeps it.
    """
    kept: list[dict[Run, dict[str, _Value]]] = [{} for _ in sides]
    for run in sides[0] if sides else ():
        if not all(run in side for side in sides):
            continue
        by_site = [set(side[run]) for side in sides if set(side[run]) != {_ONE}]
        common = {_ONE, *(set.intersection(*by_site) if by_site else ())}
        found = [{who: value for who, value in side[run].items() if who in common} for side in sides]
        if all(found):
            for own, models in zip(kept, found, strict=True):
                own[run] = models
    return kept


def on_common_runs(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Those of the runs, with the models, that every arm among them has; all of one mode and N."""
    arms: dict[str, dict[Run, Mapping[str, Path]]] = {}
    for e in evaluations:
        arms.setdefault(e.arm, {})[e.fold, e.seed] = e.scores
    kept = dict(zip(arms, in_common(*arms.values()), strict=True))
    return [
        replace(e, scores=kept[e.arm][e.fold, e.seed]) for e in evaluations if (e.fold, e.seed) in kept[e.arm]
    ]  # fmt: skip


def uneven(found: Iterable[Evaluation | Validations]) -> bool:
    """Whether arms or N have other runs, or other sites in them, so that their means must not be compared."""
    sides: dict[tuple[str, int], dict[Run, dict[str, Any]]] = {}
    for each in found:
        sites = each.scores if isinstance(each, Evaluation) else [each.site]
        runs = sides.setdefault((each.arm, each.annotated), {})
        runs.setdefault((each.fold, each.seed), {}).update(dict.fromkeys(sites))
    return in_common(*sides.values()) != list(sides.values())


def unbalanced(found: Iterable[Evaluation | Validations]) -> bool:
    """Whether an arm has more seeds in one fold than in another, which then weighs more in its means."""
    seeds: dict[tuple[str, int], Counter[int]] = {}
    for arm, count, fold, _ in {(each.arm, each.annotated, each.fold, each.seed) for each in found}:
        seeds.setdefault((arm, count), Counter())[fold] += 1
    return any(len(set(folds.values())) > 1 for folds in seeds.values())
