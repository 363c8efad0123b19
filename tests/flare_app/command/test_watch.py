from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flare_app import records, rounds_view, run_folder
from flare_app.command import __main__ as command
from flare_app.command import watch as module
from flare_app.command.__main__ import main
from flare_app.command.watch import watch
from flare_app.run_folder import RunFolder, latest_run
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


def test_the_log_is_read_only_when_it_was_written_to(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_workspace(tmp_path, done=1, total=3)
    read, polls = [], iter(range(8))
    whole = records.read_rounds

    def counted(file: Path) -> list[dict[str, Any]]:
        read.append(file)
        return whole(file)

    for place in (records, run_folder, rounds_view):
        monkeypatch.setattr(place, "read_rounds", counted)

    def wait(seconds: float) -> None:
        if next(polls) in (3, 6):
            write_workspace(tmp_path, done=len(read) + 1, total=3)

    monkeypatch.setattr(module.time, "sleep", wait)
    assert watch(tmp_path, console) == 0
    assert len(read) == 3
    assert [f"rounds {n}/3" in _shown(console) for n in (1, 2, 3)] == [True] * 3


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


def _deploy(server: Path, job_id: str, checkpoint_dir: str, began: float, total: int = 3) -> Path:
    """A job's folder in the workspace of a provisioned server, before its first round."""
    config = server / job_id / "app_server/config/config_fed_server.json"
    config.parent.mkdir(parents=True)
    arguments = {"num_rounds": total, "checkpoint_dir": checkpoint_dir}
    config.write_text(json.dumps({"workflows": [{"args": arguments}]}))
    meta = server / job_id / "meta.json"
    meta.write_text(json.dumps({"job_id": job_id}))
    os.utime(meta, (began, began))
    return server / job_id


def _checkpoints(folder: Path, done: int, changed: float) -> Path:
    """Where a job keeps its log, without its own folder."""
    log = write_workspace(folder / "made", done, 3).rename(folder / "rounds.jsonl")
    shutil.rmtree(folder / "made")
    os.utime(log, (changed, changed))
    return log


def test_a_job_that_has_just_begun_goes_before_the_log_of_an_earlier_one(tmp_path: Path) -> None:
    server = tmp_path / "server"
    earlier = _checkpoints(server / "state/study-1", 3, changed=1000)
    begun = _deploy(server, "id-2", "state/study-2", began=2000)
    site = _deploy(tmp_path / "site", "id-2", "state/study-2", began=3000)
    (site / "app_server").rename(site / "app_hospital-a")
    run = latest_run(tmp_path)
    assert run is not None
    assert (run.log, run.total) == (server / "state/study-2/rounds.jsonl", 3)
    shutil.rmtree(begun)
    assert latest_run(tmp_path) == RunFolder(earlier, tmp_path)


def test_a_job_that_begins_meanwhile_is_watched_instead(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    _checkpoints(tmp_path / "state/study-1", 2, changed=1000)
    monkeypatch.setattr(module, "_LOOK_AGAIN_S", -1)

    def begin(seconds: float) -> None:
        _deploy(tmp_path, "id-2", "state/study-2", began=2000)
        _checkpoints(tmp_path / "state/study-2", 3, changed=3000)

    monkeypatch.setattr(module.time, "sleep", begin)
    assert watch(tmp_path, console) == 0
    assert "rounds 2, " in _shown(console)
    assert "a newer job has begun" in _shown(console)
    assert "rounds 3/3" in _shown(console)


def test_checkpoints_alone_tell_that_the_final_validation_is_done(tmp_path: Path, console: Console) -> None:
    _checkpoints(tmp_path / "kept", 2, changed=1000)
    assert watch(tmp_path / "kept", console, patience_s=0.01, poll_s=0.001) == 1
    _checkpoints(tmp_path / "kept", 3, changed=1000)
    assert watch(tmp_path / "kept", console, patience_s=1) == 0
    assert "finished: 3 rounds" in _shown(console)


def test_checkpoints_in_the_servers_workspace_tell_how_the_job_ended(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "startup").mkdir()
    _checkpoints(tmp_path / "state", 2, changed=1000)
    job = _deploy(tmp_path, "id-1", "state", began=500)
    (job / "log.txt").write_text(FATAL)
    assert watch(tmp_path / "state", console, patience_s=1) == 1
    assert "the job ended after 2 of 3 rounds: round 3" in _shown(console)
    (job / "log.txt").write_text("")
    monkeypatch.setattr(module.time, "sleep", lambda seconds: shutil.rmtree(job))
    assert watch(tmp_path / "state", console, patience_s=1) == 1
    assert "after 2 of 3 rounds: FLARE has put its folder away" in _shown(console)


def test_run_whose_job_began_last_is_watched(tmp_path: Path, console: Console) -> None:
    old = write_workspace(tmp_path / "old", total=5)
    write_workspace(tmp_path / "new", done=3, total=3)
    os.utime(old.parents[1] / "meta.json", (1, 1))
    assert watch(tmp_path, console) == 0
    assert "rounds 3/3" in _shown(console)
