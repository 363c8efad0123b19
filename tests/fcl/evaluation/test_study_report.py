"""What the page shows is tested where a study makes it, in ``tests/flare_app/study/test_outcome.py``."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from fcl.evaluation import CaseScore, ClassScore, write_csv
from fcl.evaluation.convergence import Validations
from fcl.evaluation.study_report import Arm, StudyReport, write_study_report
from fcl.evaluation.study_runs import Evaluation
from tests.fcl.evaluation.study_scores import evaluation


@pytest.fixture
def report(tmp_path: Path) -> dict[str, Any]:
    score = ClassScore(0.5, 2.0, 1.0, in_truth=True, in_prediction=True)
    write_csv([CaseScore("one", "p", "", {"lv": score})], tmp_path / "scores.csv")
    return {
        "title": "a & b", "description": "<script>", "arms": {"x": Arm("<x>")}, "references": [],
        "evaluations": [Evaluation("x", "local", 1, 0, 0, {"all": tmp_path / "scores.csv"})], "unfinished": 0,
        "published": None, "protocol": {}, "validations": [], "pretraining": {}, "partitions": {}, "finetuning": {},
        "shown": "", "features": {}, "costs": ([], []), "facts": {"Note": "<b>"},
    }  # fmt: skip


def test_one_arm_without_phases_references_and_logs_is_enough(report: dict[str, Any], tmp_path: Path) -> None:
    page = write_study_report(tmp_path / "new" / "out.html", StudyReport(**report)).read_text()
    for absent in (
        "<script",
        "<b>Note",
        "Feature space",
        "Label efficiency",
        ">published<",
        "Bytes and minutes",
        "http",
    ):
        assert absent not in page, absent
    for shown in ("a &amp; b", "&lt;script&gt;", "&lt;x&gt;", "0.500"):
        assert shown in page, shown


def test_without_validation_the_page_says_how_to_get_it(report: dict[str, Any], tmp_path: Path) -> None:
    hint = "--set finetune::local::validate_every="
    without = write_study_report(tmp_path / "out.html", StudyReport(**report)).read_text()
    assert hint in without
    assert "fine-tuning steps, one after the other" not in without
    validations = [Validations("x", "local", n, 0, 0, "all", [(10, {"mean_dice": 0.25})]) for n in (1, 2)]
    page = write_study_report(tmp_path / "out.html", StudyReport(**{**report, "validations": validations})).read_text()
    assert hint not in page
    assert page.count("fine-tuning steps, one after the other") == 2
    assert "No checkpoint is chosen by this: the last weights are scored." in page


def test_arms_of_different_runs_are_marked_and_tiles_take_common_ones(report: dict[str, Any], tmp_path: Path) -> None:
    def score(name: str, dice: float) -> Path:
        found = ClassScore(dice, 2.0, 1.0, in_truth=True, in_prediction=True)
        write_csv([CaseScore("p_ED", "p", "ED", {"a": found})], tmp_path / name)
        return tmp_path / name

    evaluations = [
        Evaluation("x", "local", 1, 0, 0, {"all": score("x0", 0.5)}),
        Evaluation("x", "local", 1, 1, 0, {"all": score("x1", 0.9)}),
        Evaluation("y", "local", 1, 0, 0, {"all": score("y0", 0.6)}),
    ]
    arms = {"x": Arm("X"), "y": Arm("Y")}
    content = {**report, "arms": arms, "references": ["x", "y"], "evaluations": evaluations}
    page = write_study_report(tmp_path / "out.html", StudyReport(**content)).read_text()
    tiles = re.findall(r'<span class="soft">(Dice[^<]*)</span><b>([^<]*)</b>', page)
    assert tiles == [("Dice, X, local, N = 1, 1 run", "0.500"), ("Dice, Y, local, N = 1, 1 run", "0.600")]
    assert "not all arms have the same runs" in page
    assert "0.700 ± 0.283 (2)" in page
    assert "0.600 (1)" in page
    even = write_study_report(tmp_path / "out.html", StudyReport(**{**content, "evaluations": evaluations[::2]}))
    assert "not all arms have the same runs" not in even.read_text()
    assert "0.600 (1)" not in even.read_text()
    apart = write_study_report(tmp_path / "out.html", StudyReport(**{**content, "evaluations": evaluations[1:]}))
    assert '<div class="tile">' not in apart.read_text()  # of different patients


def test_pairs_say_what_runs_say_beside_patients(report: dict[str, Any], tmp_path: Path) -> None:
    evaluations = [
        evaluation(tmp_path, arm, {"all": {f"p{fold}{i}": 0.5 + 0.01 * i + gain for i in range(6)}}, fold=fold)
        for fold, own in enumerate((0.05, 0.01, -0.02))
        for arm, gain in (("x", 0.0), ("y", own))
    ]
    content = {**report, "arms": {"x": Arm("X"), "y": Arm("Y")}, "references": ["x"], "evaluations": evaluations}
    page = write_study_report(tmp_path / "out.html", StudyReport(**content)).read_text()
    row = re.search(r"<td>Y − X</td>.*?</tr>", page, re.DOTALL)
    assert row is not None
    cells = re.findall(r"<td>([^<]*)</td>", row[0])
    assert (cells[4], cells[6:]) == ("12 of 18", ["2 of 3", "-0.074 to +0.101"])
    assert "speak of other patients with these trained models, not of other trainings" in page
    fewer = write_study_report(tmp_path / "out.html", StudyReport(**{**content, "evaluations": evaluations[:4]}))
    assert re.search(r"<td>2 of 2</td><td>–</td></tr>", fewer.read_text())


def test_runs_without_any_dice_are_named_and_left_out(report: dict[str, Any], tmp_path: Path) -> None:
    evaluations = [
        evaluation(tmp_path, arm, {"s1": {"p": dice}}, fold=fold)
        for arm, own in (("x", (0.4, math.nan)), ("y", (0.5, 0.9)))
        for fold, dice in enumerate(own)
    ]
    content = {**report, "arms": {"x": Arm("X"), "y": Arm("Y")}, "references": ["x"], "evaluations": evaluations}
    page = write_study_report(tmp_path / "out.html", StudyReport(**content)).read_text()
    assert "no structure in truth or prediction" in page
    assert ": X, local, N = 1, fold 1, seed 0, model of s1.</p>" in page
    tiles = re.findall(r'<span class="soft">(Dice[^<]*)</span><b>([^<]*)</b>', page)
    assert tiles == [("Dice, X, local, N = 1, 1 run", "0.350")]
    assert "not all arms have the same runs" in page
    nothing = write_study_report(tmp_path / "out.html", StudyReport(**{**content, "evaluations": evaluations[1:2]}))
    assert "X, local, N = 1, fold 1, seed 0" in nothing.read_text()


def test_arms_with_models_of_other_sites_are_marked(report: dict[str, Any], tmp_path: Path) -> None:
    evaluations = [
        evaluation(tmp_path, "x", {"s1": {"p": 0.4}, "s2": {"p": 0.8}}),
        evaluation(tmp_path, "y", {"s1": {"p": 0.5}}),
    ]
    content = {**report, "arms": {"x": Arm("X"), "y": Arm("Y")}, "references": ["x", "y"], "evaluations": evaluations}
    page = write_study_report(tmp_path / "out.html", StudyReport(**content)).read_text()
    assert "not all arms have the same runs, or models of the same sites" in page
    tiles = re.findall(r'<span class="soft">Dice[^<]*</span><b>([^<]*)</b>', page)
    assert tiles == ["0.350", "0.450"]


def test_folds_with_more_seeds_than_others_are_marked(report: dict[str, Any], tmp_path: Path) -> None:
    places = [(0, 0), (0, 1), (1, 0)]
    evaluations = [evaluation(tmp_path, "x", {"all": {"p": 0.4}}, fold=fold, seed=seed) for fold, seed in places]
    curves = [Validations("x", "local", 1, fold, seed, "all", [(10, {"mean_dice": 0.2})]) for fold, seed in places]
    content = {**report, "evaluations": evaluations, "validations": curves}
    page = write_study_report(tmp_path / "out.html", StudyReport(**content)).read_text()
    assert page.count("not all folds have the same number of seeds") == 2
    content = {**content, "evaluations": evaluations[1:], "validations": curves[1:]}
    even = write_study_report(tmp_path / "out.html", StudyReport(**content)).read_text()
    assert "not all folds have the same number of seeds" not in even


def test_a_distance_says_how_many_volumes_it_is_over(report: dict[str, Any], tmp_path: Path) -> None:
    """Of an arm that misses the structure in half of the volumes it would look like that of one that finds it."""
    found, missed = ClassScore(0.5, 4.0, 1.0, True, True), ClassScore(0.0, math.nan, math.nan, True, False)
    cases = [CaseScore(str(n), "p", "", {"lv": found if n % 2 else missed}) for n in range(4)]
    write_csv(cases, tmp_path / "half.csv")
    evaluations = [Evaluation("x", "local", 1, 0, 0, {"all": tmp_path / "half.csv"})]
    page = write_study_report(tmp_path / "out.html", StudyReport(**{**report, "evaluations": evaluations})).read_text()
    assert '<td>0.250</td><td class="second">4.0 (2 of 4)</td>' in page


def test_fine_tuning_of_an_arm_that_is_not_evaluated_yet_is_shown(report: dict[str, Any], tmp_path: Path) -> None:
    curves = [
        Validations(arm, "local", 1, fold, 0, "all", [(10, {"mean_dice": 0.25})])
        for arm, fold in (("y", 0), ("x", 0), ("x", 1))
    ]
    content = {**report, "arms": {"x": Arm("X"), "y": Arm("Y")}, "validations": curves}
    page = write_study_report(tmp_path / "out.html", StudyReport(**content)).read_text()
    assert ">Y</text>" in page
    assert "local fine-tuning, N = 1: not all arms have the same runs" in page


def test_structures_and_phases_of_any_run_are_shown(report: dict[str, Any], tmp_path: Path) -> None:
    score = ClassScore(0.5, 2.0, 1.0, in_truth=True, in_prediction=True)
    write_csv([CaseScore("p_ED", "p", "ED", {"lv": score})], tmp_path / "0.csv")
    write_csv([CaseScore("q_ES", "q", "ES", {"rv": score})], tmp_path / "1.csv")
    runs = [Evaluation("x", "local", 1, fold, 0, {"all": tmp_path / f"{fold}.csv"}) for fold in (0, 1)]
    page = write_study_report(tmp_path / "out.html", StudyReport(**{**report, "evaluations": runs})).read_text()
    assert all(f"<td>{phase}</td>" in page for phase in ("all", "ED", "ES"))
    assert all(f'colspan="2">{name}</th>' in page for name in ("lv", "rv"))


def test_partition_knn_of_different_partitions_is_drawn_apart(report: dict[str, Any], tmp_path: Path) -> None:
    line = {"round": 0, "count": 4, "metrics": {}, "validation": {"partition_knn": 0.5}, "sites": {}}
    (tmp_path / "rounds.jsonl").write_text(json.dumps(line) + "\n")
    arms = {"x": Arm("X"), "y": Arm("Costs $1 or $2")}
    logs = {"pretraining": dict.fromkeys(arms, tmp_path / "rounds.jsonl"), "partitions": {"x": 4, "y": 6}}
    page = write_study_report(tmp_path / "out.html", StudyReport(**{**report, "arms": arms, **logs})).read_text()
    assert all(f"Partition kNN, {count} partitions</text>" in page for count in (4, 6))
    assert ">Costs $1 or $2</text>" in page


def test_nothing_to_report_and_unreadable_logs_are_refused(report: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one finished evaluation"):
        write_study_report(tmp_path / "out.html", StudyReport(**{**report, "evaluations": []}))
    gone = {"pretraining": {"x": tmp_path / "gone.jsonl"}, "partitions": {"x": 4}}
    logs = {**gone, "finetuning": {"local": {"x": tmp_path / "lost.jsonl"}}}
    with pytest.raises(ValueError, match=r"gone\.jsonl: missing\n.*lost\.jsonl: missing"):
        write_study_report(tmp_path / "out.html", StudyReport(**{**report, **logs}))
    assert not (tmp_path / "out.html").exists()
