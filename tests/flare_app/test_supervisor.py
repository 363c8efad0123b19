"""What a long command started ends with it, also where the command itself had no chance to end it."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil
import pytest

_SUPERVISED = [sys.executable, "-m", "flare_app.supervisor", sys.executable, "-c"]
_SLEEPER = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
print(os.getpid(), child.pid, flush=True)
time.sleep(300)
"""


@pytest.mark.parametrize(
    ("code", "expected"), [("pass", 0), ("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 128 + 9)]
)
def test_a_command_s_exit_code_is_passed_on(code: str, expected: int) -> None:
    with subprocess.Popen([*_SUPERVISED, code], stdin=subprocess.PIPE) as process:
        assert process.wait(timeout=120) == expected


@pytest.mark.parametrize("by_signal", [False, True])
def test_a_command_ends_when_its_starter_is_gone_or_it_is_told_to(by_signal: bool) -> None:
    with subprocess.Popen(
        [*_SUPERVISED, _SLEEPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        family = [int(pid) for pid in process.stdout.readline().split()]
        assert len(family) == 2
        if by_signal:
            process.send_signal(signal.SIGTERM)
        else:
            process.stdin.close()
        process.wait(timeout=120)
    assert not [pid for pid in family if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
