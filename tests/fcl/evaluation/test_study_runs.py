from __future__ import annotations

import math
from pathlib import Path

from fcl.evaluation.convergence import Validations
from fcl.evaluation.study_runs import (
    Evaluation,
    arm_pairs,
    in_common,
    mean_dice,
    on_common_runs,
    split_by_dice,
    unbalanced,
    uneven,
)
from tests.fcl.evaluation.study_scores import evaluation


def _runs(arm: str, places: list[tuple[int, int]], sites: tuple[str, ...] = ("s1",)) -> list[Evaluation]:
    """Folds and seeds of an arm, whose scores nobody reads."""
    scores = {who: Path(who) for who in sites}
    return [Evaluation(arm, "local", 1, fold, seed, scores) for fold, seed in places]


def test_each_reference_meets_each_arm_once() -> None:
    assert arm_pairs(["random", "fcl", "mim"], ["random", "fcl", "gone"]) == [
        ("random", "fcl"), ("random", "mim"), ("fcl", "mim"),
    ]  # fmt: skip


def test_common_runs_are_those_that_every_arm_has(tmp_path: Path) -> None:
    a0, a1, b1 = (
        evaluation(tmp_path, arm, {"s": {"p": 0.4}}, fold=fold) for arm, fold in (("a", 0), ("a", 1), ("b", 1))
    )
    assert on_common_runs([a0, a1, b1]) == [a1, b1]
    assert on_common_runs([a0, b1]) == []
    assert on_common_runs([]) == []


def test_common_models_are_those_of_sites_that_every_arm_has() -> None:
    a, b, pooled = (
        _runs(arm, [(0, 0)], sites)[0] for arm, sites in (("a", ("s1", "s2")), ("b", ("s2", "s3")), ("c", ("all",)))
    )
    kept = on_common_runs([a, b, pooled])
    assert [list(e.scores) for e in kept] == [["s2"], ["s2"], ["all"]]
    assert on_common_runs([a, _runs("b", [(0, 0)], ("s3",))[0]]) == []
    assert in_common() == []


def test_arms_with_other_runs_or_models_are_uneven() -> None:
    both = [(0, 0), (1, 0)]
    assert not uneven(_runs("a", both) + _runs("b", both))
    assert uneven(_runs("a", both) + _runs("b", both[:1]))
    assert uneven(_runs("a", both, ("s1", "s2")) + _runs("b", both))
    assert not uneven(_runs("a", both, ("s1", "s2")) + _runs("b", both, ("all",)))
    validations = [
        Validations(arm, "local", 1, 0, 0, site, []) for arm, site in (("a", "s1"), ("a", "s2"), ("b", "s1"))
    ]
    assert uneven(validations)
    assert not uneven(validations[::2])


def test_folds_with_different_numbers_of_seeds_are_unbalanced() -> None:
    assert unbalanced(_runs("a", [(0, 0), (0, 1), (1, 0)]))
    assert not unbalanced(_runs("a", [(0, 0), (0, 1), (1, 0), (1, 1)]) + _runs("b", [(0, 0), (1, 0)]))


def test_models_without_any_dice_are_told_apart(tmp_path: Path) -> None:
    one = evaluation(tmp_path, "a", {"s1": {"p": 0.4}, "s2": {"p": math.nan}})
    two = evaluation(tmp_path, "a", {"s1": {"p": math.nan}}, fold=1)
    having, lacking = split_by_dice([one, two])
    assert [(e.fold, list(e.scores)) for e in having] == [(0, ["s1"])]
    assert [(e.fold, list(e.scores)) for e in lacking] == [(0, ["s2"]), (1, ["s1"])]
    assert mean_dice(two.scores["s1"]) is None
