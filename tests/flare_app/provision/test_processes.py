from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flare_app.provision.processes import Processes

# Starts another process in a session of its own, as FLARE does for jobs, and never ends by itself.
_PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
print("started", flush=True)
time.sleep(600)
"""


@pytest.fixture
def processes() -> Iterator[Processes]:
    processes = Processes()
    yield processes
    processes.end(grace_s=0)


def _start(processes: Processes, name: str, folder: Path) -> None:
    log = folder / f"{name}.log"
    processes.start(name, [sys.executable, "-S", "-c", _PARENT], folder, log, {})
    deadline = time.monotonic() + 30
    while "started" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)


def test_children_are_found_and_ended_even_when_their_parent_was_killed(processes: Processes, tmp_path: Path) -> None:
    _start(processes, "site", tmp_path)
    (child,) = processes.children("site")
    parent = next(process for process in processes.all() if process != child)
    parent.kill()
    while processes.running("site"):
        time.sleep(0.02)
    assert processes.all() == [child]
    processes.end("site")
    assert processes.all() == []
    assert not child.is_running()


def test_ending_one_leaves_the_others(processes: Processes, tmp_path: Path) -> None:
    _start(processes, "site-1", tmp_path)
    _start(processes, "site-10", tmp_path)
    processes.end("site-1", grace_s=0)
    assert (processes.running("site-1"), processes.running("site-10")) == (False, True)
    assert len(processes.all()) == 2


def test_another_process_ends_them_by_their_mark(processes: Processes, tmp_path: Path) -> None:
    _start(processes, "site", tmp_path)
    assert Processes().all() == []
    Processes(processes.mark).end(grace_s=0)
    assert processes.all() == []


def test_a_name_is_given_once(processes: Processes, tmp_path: Path) -> None:
    _start(processes, "site", tmp_path)
    with pytest.raises(ValueError, match="site is running already"):
        processes.start("site", ["true"], tmp_path, tmp_path / "log", {})
