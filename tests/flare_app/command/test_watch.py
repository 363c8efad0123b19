from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from flare_app.command import __main__ as command
from flare_app.command import watch as module
from flare_app.command.__main__ import main
from flare_app.command.watch import watch
from tests.flare_app.fabricated import write_workspace

FATAL = "x - ServerRunner - ERROR - Aborting current RUN due to FATAL_SYSTEM_ERROR received: round 3: 1 of 2 sites\n"
ENDED = "x - ServerRunner - INFO - Server runner finished.\n"


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def _shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_finished_run_is_shown_and_ends_with_0(tmp_path: Path, console: Console) -> None:
    write_workspace(tmp_path)
    assert watch(tmp_path, console) == 0
    assert "rounds 5/5, loss 3.400" in _shown(console)
    assert "finished: 5 rounds" in _shown(console)


@pytest.mark.parametrize(("log", "reason"), [(FATAL + ENDED, "round 3: 1 of 2 sites"), (ENDED, "it was aborted")])
def test_job_that_ends_early_is_told_with_its_reason(log: str, reason: str, tmp_path: Path, console: Console) -> None:
    write_workspace(tmp_path, done=2, total=5)
    (tmp_path / "server/log.txt").write_text(log)
    assert watch(tmp_path, console) == 1
    assert f"the job ended after 2 of 5 rounds: {reason}" in _shown(console)


def test_job_that_fails_before_its_first_round_is_told_too(tmp_path: Path, console: Console) -> None:
    write_workspace(tmp_path, done=1, total=5).unlink()
    (tmp_path / "server/log.txt").write_text(FATAL)
    assert watch(tmp_path, console) == 1
    assert "after 0 of 5 rounds: round 3" in _shown(console)


def test_rounds_are_followed_as_they_come(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = iter([(1, 3), (2, 3), (3, 3)])
    monkeypatch.setattr(module.time, "sleep", lambda seconds: write_workspace(tmp_path, *next(steps)))
    assert watch(tmp_path, console) == 0  # an empty folder at first
    shown = _shown(console)
    assert shown.index("waiting for a job") < shown.index("rounds 1/3") < shown.index("rounds 2/3")
    assert "rounds 3/3" in shown


def test_patience_ends_and_ctrl_c_leaves_the_job_alone(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert watch(tmp_path, console, patience_s=0.01, poll_s=0.001) == 1
    log = write_workspace(tmp_path, done=2, total=5)
    assert watch(tmp_path, console, patience_s=0.01, poll_s=0.001) == 1
    assert "nothing has changed for 0.01 s" in _shown(console)
    before = log.read_text()

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.time, "sleep", interrupt)
    assert main(["watch", str(tmp_path)]) == 130
    assert "the job goes on" in capsys.readouterr().out
    assert log.read_text() == before


def test_folder_that_is_none_and_wrong_patience(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(tmp_path / "no")]) == 2
    assert "does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        command.main(["watch", str(tmp_path), "--patience", "0"])


def test_run_that_changed_last_is_watched(tmp_path: Path, console: Console) -> None:
    old = write_workspace(tmp_path / "old", total=5)
    write_workspace(tmp_path / "new", done=3, total=3)
    os.utime(old, (1, 1))
    assert watch(tmp_path, console) == 0
    assert "rounds 3/3" in _shown(console)
