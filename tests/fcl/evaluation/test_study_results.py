from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest

from fcl.evaluation.label_efficiency import Needed
from fcl.evaluation.study_results import by_class, curves, label_efficiency, worst_volume
from tests.fcl.evaluation.study_scores import evaluation


def test_curve_is_the_mean_over_runs_of_the_mean_over_models(tmp_path: Path) -> None:
    runs = [
        evaluation(tmp_path, "fcl", {"s1": {"p": 0.6}, "s2": {"p": 0.8}}),
        evaluation(tmp_path, "fcl", {"s1": {"q": 0.5}, "s2": {"q": 0.5}}, fold=1),
        evaluation(tmp_path, "fcl", {"s1": {"p": 0.9}, "s2": {"p": 0.9}}, annotated=2),
        evaluation(tmp_path, "random", {"all": {"p": 0.4}}, mode="federated"),
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
        evaluation(tmp_path, "fcl", {"s1": {"p": 0.6, "q": 0.8}}),
        evaluation(tmp_path, "fcl", {"s1": {"p": 0.5, "q": 0.5}}, fold=1),
    ]
    found = by_class(runs)
    assert list(found) == ["all", "ED", "ES"]
    assert found["ED"]["a"]["dice"] == pytest.approx(
        {"mean": 0.6, "std": statistics.stdev((0.7, 0.5)), "n": 2, "scored": 4, "volumes": 4}
    )
    assert found["ES"]["b"]["dice"]["mean"] == pytest.approx(0.5)
    assert found["all"]["a"]["hd95_mm"]["mean"] == pytest.approx(5.0)


def test_label_efficiency_is_read_from_the_reference_s_curve(tmp_path: Path) -> None:
    runs = [
        evaluation(tmp_path, arm, {"s": {"p": dice}}, annotated=count)
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
        evaluation(tmp_path, arm, {"s": {"p": dice}}, annotated=count, fold=fold)
        for arm, values in one.items()
        for (count, fold), dice in values.items()
    ]
    # With N=1 both have fold 0, where they are equal; with N=2 they have no run in common.
    assert [(e.annotated, e.needed) for e in label_efficiency(runs, ["random"])] == [(1, Needed(1))]
    # Nor is there a run of the reference's at any N.
    apart = [evaluation(tmp_path, arm, {"s": {"p": 0.4}}, fold=f) for f, arm in enumerate(("random", "fcl"))]
    assert label_efficiency(apart, ["random"]) == []


def test_worst_volume_is_named_with_its_model(tmp_path: Path) -> None:
    runs = [
        evaluation(tmp_path, "fcl", {"s1": {"p": 0.6}, "s2": {"p": 0.55}}),
        evaluation(tmp_path, "fcl", {"s1": {"q": 0.9}, "s2": {"q": 0.9}}, fold=1),
    ]
    worst, who, case, dice = worst_volume(runs)
    assert (worst.fold, who, case) == (0, "s2", "p_ES")
    assert dice == pytest.approx(0.4)


def test_a_run_or_model_without_any_dice_enters_no_curve_and_no_label_efficiency(tmp_path: Path) -> None:
    runs = [
        evaluation(tmp_path, "random", {"all": {"p": 0.4}}),
        evaluation(tmp_path, "random", {"all": {"q": math.nan}}, fold=1),
        evaluation(tmp_path, "random", {"all": {"p": math.nan}}, annotated=2),
        evaluation(tmp_path, "fcl", {"s1": {"p": 0.4}, "s2": {"p": math.nan}}),
    ]
    found = curves(runs)["local"]
    assert [(n, point.runs, point.mean) for n, point in found["random"].items()] == [(1, 1, pytest.approx(0.35))]
    assert (found["fcl"][1].mean, found["fcl"][1].std_sites) == (pytest.approx(0.35), None)
    assert [e.needed for e in label_efficiency(runs, ["random"])] == [Needed(1)]
    assert curves(runs[1:2]) == {}


def test_label_efficiency_takes_only_points_with_all_of_the_runs(tmp_path: Path) -> None:
    dice = {("fcl", 1): (0.5, 0.5), ("random", 1): (0.4, 0.4), ("random", 2): (0.9,)}
    runs = [
        evaluation(tmp_path, arm, {"s": {"p": value}}, annotated=count, fold=fold)
        for (arm, count), values in dice.items()
        for fold, value in enumerate(values)
    ]
    # With N=2 random has but one of the folds: its 0.9 is of other patients.
    assert [e.needed for e in label_efficiency(runs, ["random"])] == [Needed(1, "more than")]


def test_label_efficiency_compares_models_of_the_same_sites(tmp_path: Path) -> None:
    runs = [
        evaluation(tmp_path, "random", {"s1": {"p": 0.4}, "s2": {"p": 0.8}}),
        evaluation(tmp_path, "fcl", {"s1": {"p": 0.4}}),
    ]
    assert [e.needed for e in label_efficiency(runs, ["random"])] == [Needed(1)]


def test_counts_say_how_many_volumes_a_mean_is_over(tmp_path: Path) -> None:
    # "a" is missed in ES of p, and neither there nor predicted in both of q.
    found = by_class([evaluation(tmp_path, "fcl", {"s": {"p": 0.2, "q": math.nan}})])["all"]["a"]
    counts = {metric: (values["scored"], values["volumes"]) for metric, values in found.items()}
    assert counts == {"dice": (2, 4), "hd95_mm": (1, 4)}
