"""What the page shows is tested where a study makes it, in ``tests/flare_app/study/test_outcome.py``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fcl.evaluation import CaseScore, ClassScore, write_csv
from fcl.evaluation.convergence import Validations
from fcl.evaluation.study_report import Arm, StudyReport, write_study_report
from fcl.evaluation.study_results import Evaluation


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
