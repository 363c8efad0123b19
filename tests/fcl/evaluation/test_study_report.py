"""What the page shows is tested where a study makes it, in ``tests/flare_app/study/test_outcome.py``."""

from __future__ import annotations

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
        "published": None, "protocol": {}, "validations": [], "pretraining": {}, "finetuning": {},
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
    assert "fine-tuning steps (of each site)" not in without
    validations = [Validations("x", "local", n, 0, 0, "all", [(10, {"mean_dice": 0.25})]) for n in (1, 2)]
    page = write_study_report(tmp_path / "out.html", StudyReport(**{**report, "validations": validations})).read_text()
    assert hint not in page
    assert page.count("fine-tuning steps (of each site)") == 2
    assert "No checkpoint is chosen by this: the last weights are scored." in page


def test_nothing_to_report_and_unreadable_logs_are_refused(report: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one finished evaluation"):
        write_study_report(tmp_path / "out.html", StudyReport(**{**report, "evaluations": []}))
    logs = {"pretraining": {"x": tmp_path / "gone.jsonl"}, "finetuning": {"local": {"x": tmp_path / "lost.jsonl"}}}
    with pytest.raises(ValueError, match=r"gone\.jsonl: missing\n.*lost\.jsonl: missing"):
        write_study_report(tmp_path / "out.html", StudyReport(**{**report, **logs}))
    assert not (tmp_path / "out.html").exists()
