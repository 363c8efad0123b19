"""Processes of this machine that can all be found and ended: each, and all that it starts, carries a mark."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

_MARK = "FCL_SYSTEM"


class Processes:
    """Named processes, each in a session of its own: an interrupt at the terminal reaches only who started them.

    FLARE puts the processes of jobs into sessions of their own too, and those outlive a parent that is killed. What
    they all inherit is their environment, so that is where they are looked for.

    Args:
        mark: of processes started earlier, to find those; a new one by default.
    """

    def __init__(self, mark: str | None = None) -> None:
        self.mark = mark or uuid.uuid4().hex
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str], folder: Path, log: Path, env: Mapping[str, str]) -> int:
        """Start a process and give its pid.

        Args:
            name: to speak of it; a running one of that name must have ended.
            command: program and arguments.
            folder: to run in.
            log: file that its output is added to.
            env: variables on top of this process's own.
        """
        if self.running(name):
            raise ValueError(f"{name} is running already")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            self._started[name] = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **env, _MARK: f"{self.mark}/{name}"},
            )
        return self._started[name].pid

    def running(self, name: str) -> bool:
        """Whether the process itself lives."""
        process = self._started.get(name)
        return process is not None and process.poll() is None

    def children(self, name: str) -> list[psutil.Process]:
        """What the named process started, and still lives."""
        own = self._started[name].pid if name in self._started else None
        return [process for process in self._marked(f"{self.mark}/{name}") if process.pid != own]

    def all(self) -> list[psutil.Process]:
        """Everything with the mark that lives."""
        return self._marked(f"{self.mark}/")

    def end(self, name: str | None = None, grace_s: float = 5.0) -> None:
        """End the named process, or all, and what they started: first asked to, then made to.

        Args:
            name: of the process; None for all.
            grace_s: time between the two; 0 kills at once.
        """
        prefix = f"{self.mark}/" if name is None else f"{self.mark}/{name}"
        members = self._marked(prefix)
        if grace_s > 0:
            for member in members:
                _send(member, terminate=True)
            psutil.wait_procs(members, timeout=grace_s)
        # One that was asked may have started another in the meantime: until none is left.
        while members := self._marked(prefix):
            for member in members:
                _send(member, terminate=False)
            psutil.wait_procs(members, timeout=1.0)
        for process in self._started.values():
            process.poll()  # takes the exit code, so that no zombie stays

    def _marked(self, value: str) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                mark = process.environ().get(_MARK, "") if process.status() != psutil.STATUS_ZOMBIE else ""
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            if mark == value or (value.endswith("/") and mark.startswith(value)):
                found.append(process)
        return found


def _send(process: psutil.Process, terminate: bool) -> None:
    try:
        process.terminate() if terminate else process.kill()
    except psutil.NoSuchProcess:
        return
