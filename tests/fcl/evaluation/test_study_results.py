from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest
from scipy.stats import false_discovery_control, wilcoxon

from fcl.evaluation import CaseScore, ClassScore, write_csv
from fcl.evaluation.label_efficiency import Needed
from fcl.evaluation.study_results import (
    Evaluation,
    arm_pairs,
    by_class,
    curves,
    label_efficiency,
    on_common_runs,
    paired,
    worst_volume,
)


def _score(dice: float) -> ClassScore:
    return ClassScore(dice, 10 * dice, 1.0, True, True)


def _evaluation(
    folder: Path, arm: str, dice: dict[str, dict[str, float]], annotated: int = 1, fold: int = 0, mode: str = "local"
) -> Evaluation:
    """``dice``: model to patient to Dice of "a"; "b" is 0.1 more, ES 0.2 less than ED."""
    files = {}
    for who, patients in dice.items():
        files[who] = folder / f"{mode}{arm}{annotated}{fold}{who}.csv"
        cases = [
            CaseScore(f"{patient}_{phase}", patient, phase, {"a": _score(d - less), "b": _score(d - less + 0.1)})
            for patient, d in patients.items()
            for phase, less in (("ED", 0.0), ("ES", 0.2))
        ]
        write_csv(cases, files[who])
    return Evaluation(arm, mode, annotated, fold, 0, files)


def test_curve_is_the_mean_over_runs_of_the_mean_over_models(tmp_path: Path) -> None:
    runs = [
        _evaluation(tmp_path, "fcl", {"s1": {"p": 0.6}, "s2": {"p": 0.8}}),
        _evaluation(tmp_path, "fcl", {"s1": {"q": 0.5}, "s2": {"q": 0.5}}, fold=1),
        _evaluation(tmp_path, "fcl", {"s1": {"p": 0.9}, "s2": {"p": 0.9}}, annotated=2),
        _evaluation(tmp_path, "random", {"all": {"p": 0.4}}, mode="federated"),
    ]
    found = curves(runs)
    # Of a volume: the mean of a and b is 0.05 above a's; of a patient: 0.1 below ED.
    one, two = found["local"]["fcl"][1], found["local"]["fcl"][2]
    assert (one.mean, one.std, one.runs) == (
        pytest.approx((0.65 + 0.45) / 2), pytest.approx(statistics.stdev((0.65, 0.45))), 2,
    )  # fmt: skip
    assert one.std_sites == pytest.approx(statistics.stdev(((0.55 + 0.45) / 2, (0.75 + 0.45) / 2)))
    assert (two.mean, two.std) == (pytest.approx(0.85), None)
    alone = found["federated"]["random"][1]
    assert (alone.mean, alone.std, alone.std_sites) == (pytest.approx(0.35), None, None)


def test_scores_by_class_and_phase(tmp_path: Path) -> None:
    runs = [
        _evaluation(tmp_path, "fcl", {"s1": {"p": 0.6, "q": 0.8}}),
        _evaluation(tmp_path, "fcl", {"s1": {"p": 0.5, "q": 0.5}}, fold=1),
    ]
    found = by_class(runs)
    assert list(found) == ["all", "ED", "ES"]
    assert found["ED"]["a"]["dice"] == pytest.approx({"mean": 0.6, "std": statistics.stdev((0.7, 0.5)), "n": 2})
    assert found["ES"]["b"]["dice"]["mean"] == pytest.approx(0.5)
    assert found["all"]["a"]["hd95_mm"]["mean"] == pytest.approx(5.0)


def test_each_reference_meets_each_arm_once() -> None:
    assert arm_pairs(["random", "fcl", "mim"], ["random", "fcl", "gone"]) == [
        ("random", "fcl"), ("random", "mim"), ("fcl", "mim"),
    ]  # fmt: skip


def test_pairs_are_patients_of_the_runs_that_both_have(tmp_path: Path) -> None:
    base = {f"p{i}": 0.4 + 0.03 * i for i in range(8)}
    better = {name: value + 0.01 * (i + 1) for i, (name, value) in enumerate(base.items())}
    mixed = {name: value + 0.013 * (-1) ** i * (i + 1) for i, (name, value) in enumerate(base.items())}
    runs = [
        _evaluation(tmp_path, "random", {"s1": base}),
        _evaluation(tmp_path, "fcl", {"s1": better}),
        _evaluation(tmp_path, "mim", {"s1": mixed}),
        _evaluation(tmp_path, "fcl", {"s1": {"only here": 0.9}}, fold=1),
    ]
    lines = paired(runs, ["random"])
    assert [(line.reference, line.found.arm, line.found.patients) for line in lines] == [
        ("random", "fcl", 8), ("random", "mim", 8),
    ]  # fmt: skip
    assert lines[0].found.difference == pytest.approx(0.045)
    assert lines[0].found.better == 8
    raw = [
        wilcoxon([round(other[name] - base[name], 4) for name in base]).pvalue for other in (better, mixed)
    ]  # fmt: skip
    assert [line.found.p for line in lines] == pytest.approx(list(false_discovery_control(raw)))


def test_arms_without_a_common_run_are_not_compared(tmp_path: Path) -> None:
    runs = [_evaluation(tmp_path, "random", {"s": {"p": 0.4}}), _evaluation(tmp_path, "fcl", {"s": {"p": 0.5}}, fold=1)]
    assert paired(runs, ["random"]) == []


def test_label_efficiency_is_read_from_the_reference_s_curve(tmp_path: Path) -> None:
    runs = [
        _evaluation(tmp_path, arm, {"s": {"p": dice}}, annotated=count)
        for arm, values in (("random", (0.4, 0.6)), ("fcl", (0.5, 0.7)))
        for count, dice in zip((1, 2), values, strict=True)
    ]
    first, second = label_efficiency(runs, ["random"])
    assert (first.reference, first.arm, first.annotated) == ("random", "fcl", 1)
    assert first.needed.patients == pytest.approx(math.sqrt(2))
    assert second.needed == Needed(2, "more than")


def test_label_efficiency_compares_means_of_the_same_runs(tmp_path: Path) -> None:
    one = {"random": {(1, 0): 0.4, (1, 1): 0.2, (2, 0): 0.6}, "fcl": {(1, 0): 0.4, (2, 1): 0.5}}
    runs = [
        _evaluation(tmp_path, arm, {"s": {"p": dice}}, annotated=count, fold=fold)
        for arm, values in one.items()
        for (count, fold), dice in values.items()
    ]
    # With N=1 both have fold 0, where they are equal; with N=2 they have no run in common.
    assert [(e.annotated, e.needed) for e in label_efficiency(runs, ["random"])] == [(1, Needed(1))]
    # Nor is there a run of the reference's at any N.
    apart = [_evaluation(tmp_path, arm, {"s": {"p": 0.4}}, fold=f) for f, arm in enumerate(("random", "fcl"))]
    assert label_efficiency(apart, ["random"]) == []


def test_common_runs_are_those_that_every_arm_has(tmp_path: Path) -> None:
    a0, a1, b1 = (
        _evaluation(tmp_path, arm, {"s": {"p": 0.4}}, fold=fold) for arm, fold in (("a", 0), ("a", 1), ("b", 1))
    )
    assert on_common_runs([a0, a1, b1]) == [a1, b1]
    assert on_common_runs([a0, b1]) == []
    assert on_common_runs([]) == []


def test_worst_volume_is_named_with_its_model(tmp_path: Path) -> None:
    runs = [
        _evaluation(tmp_path, "fcl", {"s1": {"p": 0.6}, "s2": {"p": 0.55}}),
        _evaluation(tmp_path, "fcl", {"s1": {"q": 0.9}, "s2": {"q": 0.9}}, fold=1),
    ]
    evaluation, who, case, dice = worst_volume(runs)
    assert (evaluation.fold, who, case) == (0, "s2", "p_ES")
    assert dice == pytest.approx(0.4)
