from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest
from scipy.stats import false_discovery_control, t, wilcoxon

from fcl.evaluation.study_pairs import OverRuns, over_runs, paired
from tests.fcl.evaluation.study_scores import evaluation


def test_pairs_are_patients_of_the_runs_that_both_have(tmp_path: Path) -> None:
    base = {f"p{i}": 0.4 + 0.03 * i for i in range(8)}
    better = {name: value + 0.01 * (i + 1) for i, (name, value) in enumerate(base.items())}
    mixed = {name: value + 0.013 * (-1) ** i * (i + 1) for i, (name, value) in enumerate(base.items())}
    runs = [
        evaluation(tmp_path, "random", {"s1": base}),
        evaluation(tmp_path, "fcl", {"s1": better}),
        evaluation(tmp_path, "mim", {"s1": mixed}),
        evaluation(tmp_path, "fcl", {"s1": {"only here": 0.9}}, fold=1),
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
    runs = [evaluation(tmp_path, "random", {"s": {"p": 0.4}}), evaluation(tmp_path, "fcl", {"s": {"p": 0.5}}, fold=1)]
    assert paired(runs, ["random"]) == []


def test_several_seeds_of_a_fold_are_paired_by_seed(tmp_path: Path) -> None:
    dice = {("random", 0): 0.4, ("random", 1): 0.9, ("fcl", 0): 0.5}
    runs = [evaluation(tmp_path, arm, {"s": {"p": value}}, seed=seed) for (arm, seed), value in dice.items()]
    for order in (runs, runs[::-1]):
        (line,) = paired(order, ["random"])
        assert line.found.difference == pytest.approx(0.1)
        assert line.over_runs.runs == 1


def test_pairs_say_in_how_many_runs_the_arm_is_better(tmp_path: Path) -> None:
    # All patients of a run gain alike, as with one training behind them: over patients that looks certain.
    gains = (0.05, 0.01, -0.02)
    runs = [
        evaluation(tmp_path, arm, {"s": {f"p{fold}{i}": 0.5 + 0.01 * i + gain for i in range(6)}}, fold=fold)
        for fold, own in enumerate(gains)
        for arm, gain in (("random", 0.0), ("fcl", own))
    ]
    (line,) = paired(runs, ["random"])
    assert (line.found.patients, line.found.better) == (18, 12)
    assert (line.over_runs.runs, line.over_runs.better) == (3, 2)
    mean, half = statistics.fmean(gains), t.ppf(0.975, 2) * statistics.stdev(gains) / math.sqrt(3)
    assert (line.over_runs.low, line.over_runs.high) == pytest.approx((mean - half, mean + half))


def test_two_runs_give_no_interval() -> None:
    assert over_runs({(0, 0): 0.1, (1, 0): 0.3}) == OverRuns(runs=2, better=2, low=None, high=None)


def test_seeds_of_a_fold_are_not_further_folds() -> None:
    found = over_runs({(0, 0): 0.02, (0, 1): 0.04, (0, 2): 0.06, (1, 0): -0.01, (1, 1): -0.03})
    assert (found.runs, found.better, found.low, found.high) == (5, 3, None, None)
    means = (0.03, -0.01, 0.05)
    found = over_runs({(0, 0): 0.02, (0, 1): 0.04, (1, 0): -0.01, (2, 0): 0.05})
    half = t.ppf(0.975, 2) * statistics.stdev(means) / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((statistics.fmean(means) - half, statistics.fmean(means) + half))


def test_seeds_of_the_only_fold_stand_for_themselves() -> None:
    values = (0.02, 0.04, 0.06)
    found = over_runs({(2, seed): value for seed, value in enumerate(values)})
    half = t.ppf(0.975, 2) * statistics.stdev(values) / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((0.04 - half, 0.04 + half))


def test_pairs_take_models_that_both_arms_have(tmp_path: Path) -> None:
    runs = [
        evaluation(tmp_path, "random", {"s1": {"p": 0.4}, "s2": {"p": 0.8}}),
        evaluation(tmp_path, "fcl", {"s1": {"p": 0.5}}),
        evaluation(tmp_path, "other", {"s3": {"p": 0.5}}),
        evaluation(tmp_path, "pooled", {"all": {"p": 0.7}}),
    ]
    found = {line.found.arm: line.found.difference for line in paired(runs, ["random"])}
    # The one model of all sites is compared with the mean of the sites' models.
    assert found == pytest.approx({"fcl": 0.1, "pooled": 0.1})


def test_a_run_without_any_dice_is_no_pair(tmp_path: Path) -> None:
    nobody = {"p": math.nan}
    runs = [
        evaluation(tmp_path, arm, {"s": patients}, fold=fold)
        for arm, folds in {"random": ({"p": 0.4}, nobody), "fcl": ({"p": 0.5}, {"p": 0.2})}.items()
        for fold, patients in enumerate(folds)
    ]
    (line,) = paired(runs, ["random"])
    assert (line.found.patients, line.over_runs.runs) == (1, 1)
    assert paired([runs[1], runs[3]], ["random"]) == []


def test_a_run_in_which_no_patient_has_a_dice_in_both_is_no_pair(tmp_path: Path) -> None:
    one, other = {"p": 0.4, "q": math.nan}, {"p": math.nan, "q": 0.4}
    runs = [evaluation(tmp_path, arm, {"s": own}) for arm, own in (("random", one), ("fcl", other))]
    assert paired(runs, ["random"]) == []
