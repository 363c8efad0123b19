"""Commands in processes of their own: output into a log file, progress while they run, and no child left behind."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_TAIL = 25  # lines of the log that a failure shows
_GRACE_S = 5.0


@dataclass(frozen=True)
class Command:
    """What to run.

    Args:
        what: in a few words, for messages.
        arguments: program and its arguments.
        log: file for stdout and stderr; replaced.
        environment: variables on top of this process's own.
        outputs: files that it must leave behind.
    """

    what: str
    arguments: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    outputs: Sequence[Path] = ()


class CommandFailed(RuntimeError):
    """A command ended with an error, or without what it had to make; the message ends with the tail of its log."""

    def __init__(self, command: Command, reason: str) -> None:
        lines = command.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:]
        shown = "\n".join(f"    {line}" for line in lines) or "    (empty)"
        super().__init__(f"{command.what} {reason}. The end of its log, {command.log}:\n{shown}")


def run_together(
    commands: Sequence[Command], folder: Path, tick: Callable[[], None] = lambda: None, every_s: float = 0.3
) -> list[float]:
    """Run commands side by side and wait for all of them.

    Whatever ends the wait early (a failure, Ctrl-C) ends every process that they started, their children's included.

    Args:
        commands: what to run.
        folder: to run in.
        tick: called all along, for progress.
        every_s: how often.

    Returns:
        Seconds that each took.

    Raises:
        CommandFailed: for the first that fails.
    """
    started = time.monotonic()
    running: dict[int, subprocess.Popen[bytes]] = {}
    seconds = [0.0] * len(commands)
    family: dict[int, psutil.Process] = {}
    try:
        for index, command in enumerate(commands):
            running[index] = _start(command, folder)
        while running:
            time.sleep(every_s)
            tick()
            for process in running.values():
                _remember(process.pid, family)
            for index, process in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[index]
                seconds[index] = time.monotonic() - started
                _check(commands[index], code)
    finally:
        for process in running.values():
            _remember(process.pid, family)
        _end(list(family.values()))
        for process in running.values():
            process.wait()
    return seconds


def _start(command: Command, folder: Path) -> subprocess.Popen[bytes]:
    command.log.parent.mkdir(parents=True, exist_ok=True)
    with command.log.open("wb") as log:
        # A session of its own: the terminal's Ctrl-C reaches this process alone, which then ends the rest in order.
        return subprocess.Popen(
            list(command.arguments),
            cwd=folder,
            env={**os.environ, **command.environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _remember(pid: int, family: dict[int, psutil.Process]) -> None:
    """Note a process and its descendants: FLARE's sites are sessions of their own, which no signal to a group reaches."""
    try:
        parent = psutil.Process(pid)
        family.update({process.pid: process for process in (parent, *parent.children(recursive=True))})
    except psutil.NoSuchProcess:
        return


def _end(family: Sequence[psutil.Process]) -> None:
    # is_running also compares start times: an id that the system has given to another process since is left alone.
    alive = [process for process in family if process.is_running()]
    for process in alive:
        _signal(process.terminate)
    _, stubborn = psutil.wait_procs(alive, timeout=_GRACE_S)
    for process in stubborn:
        _signal(process.kill)
    psutil.wait_procs(stubborn, timeout=_GRACE_S)


def _signal(send: Callable[[], None]) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return


def _check(command: Command, code: int) -> None:
    if code != 0:
        raise CommandFailed(command, f"failed (exit code {code})")
    missing = [str(path) for path in command.outputs if not path.exists()]
    if missing:
        raise CommandFailed(command, f"ended without error but did not write {', '.join(missing)}")
