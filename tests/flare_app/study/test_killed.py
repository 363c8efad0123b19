"""A study that is killed leaves no process that goes on writing to its folder beside the next command."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flare_app.study import __main__ as command

# In place of a cell: starts another process and, told to end, does so only when "let_go" is there.
_CELL = """
import os, signal, subprocess, sys, time
from pathlib import Path

folder = Path(sys.argv[1])

def end(*_):
    while not (folder / "let_go").exists():
        time.sleep(0.05)
    sys.exit()

signal.signal(signal.SIGTERM, end)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
(folder / "part").write_text(f"{os.getpid()} {child.pid}")
os.replace(folder / "part", folder / "started")
time.sleep(300)
"""
_STUDY = f"""
import sys
from flare_app.meter import Meter
from flare_app.steps import run_process
from flare_app.study import __main__ as command

def run_study(arguments, console):
    cell = [sys.executable, "-c", {_CELL!r}, str(arguments.out)]
    with Meter(console, "x", 1) as meter:
        run_process(cell, arguments.out / "x.log", meter, lambda: (0, ""))

command.run_study = run_study
sys.exit(command.main(sys.argv[1:]))
"""


def _alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def _wait_until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_killed_study_s_processes_end_and_keep_the_next_command_out_until_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "run_study", lambda arguments, console: None)
    monkeypatch.setattr(command, "end_like_ctrl_c", lambda: None)
    arguments = ["--config", "x.json", "--out", str(tmp_path)]
    family: list[int] = []
    try:
        with subprocess.Popen([sys.executable, "-c", _STUDY, *arguments], stdout=subprocess.DEVNULL) as study:
            _wait_until((tmp_path / "started").exists)
            family += [int(pid) for pid in (tmp_path / "started").read_text().split()]
            study.kill()
        assert command.main(arguments) == 1
        assert "processes of one that was killed" in capsys.readouterr().out
        (tmp_path / "let_go").touch()
        _wait_until(lambda: not any(map(_alive, family)))
        _wait_until(lambda: command.main(arguments) == 0)
    finally:
        for pid in filter(_alive, family):
            psutil.Process(pid).kill()
