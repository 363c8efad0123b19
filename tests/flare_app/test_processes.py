"""A command that is told to end takes with it what it started."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from flare_app.job import __main__ as command

_COMMAND = """
import subprocess, sys, time
from flare_app.processes import end_children, end_like_ctrl_c

end_like_ctrl_c()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
try:
    print(child.pid, flush=True)
    time.sleep(300)
except KeyboardInterrupt:
    sys.exit(130)
finally:
    end_children()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_command_and_children_in_other_sessions(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", _COMMAND], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.send_signal(number)
        assert process.wait(timeout=120) == 130
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_an_interrupted_job_says_so_and_ends_what_the_simulator_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def run_job(*arguments: object) -> int:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True))
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_job", run_job)
    monkeypatch.setattr(command, "end_like_ctrl_c", lambda: None)
    assert command.main(["run", "finetune", "--workspace", str(tmp_path)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not psutil.pid_exists(started[0].pid)
