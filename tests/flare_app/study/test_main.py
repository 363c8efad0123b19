from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from filelock import FileLock

from flare_app.steps import StepFailed
from flare_app.study import __main__ as command
from flare_app.study.data import Cohort
from flare_app.study.settings import Study

from .conftest import SPLIT, FakeCells


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def cohort(study: Study, chosen: object, out: Path, *_: object, tie: bool) -> Cohort:
        return Cohort(tmp_path, out / "split.json", SPLIT, 6, 12, 12)

    monkeypatch.setattr(command, "Cells", FakeCells)
    monkeypatch.setattr(command, "prepare_cohort", cohort)
    monkeypatch.setattr(command, "end_like_ctrl_c", lambda: None)


def _call(study_file: Path, *options: str) -> int:
    return command.main(["--config", str(study_file), "--out", str(study_file.parent / "out"), *options])


def test_plan_lists_cells_and_does_none(study_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _call(study_file, "--plan", "--arms", "random", "--annotated", "1", "--modes", "local") == 0
    assert capsys.readouterr().out.splitlines() == [
        "finetune_random_n1_local_fold0_seed0: to do",
        "evaluate_random_n1_local_fold0_seed0: to do",
    ]
    assert not (study_file.parent / "out" / "cells").exists()


def test_plan_tells_what_would_be_done_again(study_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--arms", "random", "--annotated", "1", "--modes", "local"]
    assert _call(study_file, *asked) == 0
    capsys.readouterr()
    assert _call(study_file, *asked, "--plan", "--set", "finetune::local::rounds=9") == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0]
        == "finetune_random_n1_local_fold0_seed0: to do again, its settings or the bundle's configuration files changed"
    )


def test_report_holds_what_earlier_commands_did(study_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = study_file.parent / "out"
    assert _call(study_file, "--arms", "random", "--annotated", "1", "--seeds", "5") == 0
    assert _call(study_file, "--arms", "fcl", "--annotated", "1") == 0
    assert _call(study_file, "--report") == 0
    assert "report.html" in capsys.readouterr().out
    found = json.loads((out / "results.json").read_text())
    assert {(entry["arm"], entry["annotated"]) for entry in found["dice"]} == {("random", 1), ("fcl", 1)}
    page = (out / "report.html").read_text()
    assert "seeds 0, 5" in page
    assert "python -m flare_app.study --config" in page
    assert "Processor" in page
    # Random weights with seed 0 and FCL with seed 5 were never asked for.
    assert "Unfinished" not in page


def test_notes_that_cannot_be_read_are_told(study_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = study_file.parent / "out"
    out.mkdir()
    for content in ('[{"arms"', "{}"):
        (out / "asked.json").write_text(content)
        assert _call(study_file, "--report") == 1
        assert "Remove it: finished cells stay" in capsys.readouterr().out


def test_arms_that_are_gone_are_not_asked_for(study_file: Path) -> None:
    assert _call(study_file, "--arms", "fcl_slow", "--annotated", "1") == 0
    content = json.loads(study_file.read_text())
    del content["arms"]["fcl_slow"]
    study_file.write_text(json.dumps(content))
    assert _call(study_file, "--arms", "random", "--annotated", "1") == 0


def test_an_arm_without_its_encoder_does_not_hold_up_the_others(
    study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(study_file.read_text())
    content["arms"]["transfer"] = {"encoder": None}
    study_file.write_text(json.dumps(content))
    (tmp_path / "encoder.pt").touch()
    named = ["--set", f"arms::transfer::encoder={tmp_path / 'encoder.pt'}"]
    asked = ["--annotated", "1", "--modes", "local"]
    assert _call(study_file, "--arms", "random", "transfer", *asked, *named) == 0
    capsys.readouterr()
    assert _call(study_file, "--arms", "random", *asked, "--report") == 0
    said = capsys.readouterr().out
    assert "not in results and report: transfer, whose encoder no file is named for" in said
    assert "--set arms::transfer::encoder=FILE" in said
    assert _call(study_file, "--arms", "random", *asked, "--report", *named) == 0
    assert "not in results" not in capsys.readouterr().out
    rows = (study_file.parent / "out" / "results.csv").read_text()
    assert "transfer" in rows


def test_what_stopped_a_study_is_told_even_where_the_report_fails(
    study_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise StepFailed("out of memory")

    def no_report(*_: object) -> None:
        raise RuntimeError("no room for a page")

    monkeypatch.setattr(command, "run_cells", fails)
    monkeypatch.setattr(command.Outcome, "write_report", no_report)
    assert _call(study_file) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "nor could the report be written: no room for a page",
        "out of memory",
    ]


def test_mistakes_end_with_1_and_the_way_out(study_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _call(study_file, "--arms", "nothing") == 1
    assert "choose from random, fcl, fcl_slow" in capsys.readouterr().out


def test_a_full_disk_is_told_without_a_traceback(
    study_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/out/results.csv")

    monkeypatch.setattr(command, "remember", full)
    assert _call(study_file) == 1
    said = capsys.readouterr().out
    assert "No space left on device" in said
    assert "/data/out/results.csv" in said
    assert "the same command goes on after the last finished cell" in said


def test_a_folder_that_cannot_be_made_is_told(study_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--config", str(study_file), "--out", str(study_file / "out")]) == 1
    assert "Not a directory" in capsys.readouterr().out


def test_two_studies_in_one_folder_are_refused(study_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = study_file.parent / "out"
    out.mkdir()
    with FileLock(out / ".lock"):
        assert _call(study_file) == 1
    assert "another study is running" in capsys.readouterr().out
