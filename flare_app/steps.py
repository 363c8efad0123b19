"""Steps of a long command: each a process with its log and a progress display, done once and skipped when repeated."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from flare_app.meter import Look, Meter
from flare_app.processes import end_family

_TAIL = 25  # lines of a log that a failure shows
_POLL_S = 0.3
# A line of fcl.engines.Progress: "fine-tuning: epoch 3/10, loss 0.71, 00:10 gone, 00:20 left".
_PROGRESS = re.compile(r"progress: [\w-]+: (?:(?:step|epoch) (\d+)/(\d+)|\d+ done)(?:, (.*))?, \S+ gone, \S+ left")


class StepFailed(RuntimeError):
    """A step's process ended with an error."""


def run_process(command: Sequence[str], log: Path, meter: Meter, look: Callable[[], tuple[int, str] | Look]) -> None:
    """Run ``command`` with its output in ``log``; its processes end with this one, also when this one is killed.

    Args:
        command: program and arguments.
        log: file for stdout and stderr, replaced.
        meter: shows how far it is.
        look: asked again and again: how much is done, and the latest values.

    Raises:
        StepFailed: when it ends with an error; the message has the end of the log and its path.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    supervised = [sys.executable, "-m", "flare_app.supervisor", *command]
    with (
        open(log, "wb") as stream,
        subprocess.Popen(
            supervised,
            stdin=subprocess.PIPE,  # closed when this process is gone
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            close_fds=False,  # the lock of a folder, see alone_with_children
        ) as process,
    ):
        try:
            while process.poll() is None:
                meter.show(*look())
                time.sleep(_POLL_S)
        finally:
            if process.poll() is None:
                end_family(psutil.Process(process.pid))
    if process.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL:])
        raise StepFailed(f"{tail}\n\nThe command ended with code {process.returncode}. The whole log: {log}")
    meter.show(*look())


def read_progress(log: str, total: int) -> tuple[int, str]:
    """How much of ``total`` the log of a training or evaluation says is done, and its latest values."""
    done, values = 0, ""
    for part, whole, shown in _PROGRESS.findall(log):
        done, values = (round(total * int(part) / int(whole)) if part else total), shown or values
    return done, values


class Steps:
    """Does each step once: a marker file says with which arguments, and after which results, it was finished."""

    def __init__(self, workspace: Path, console: Console) -> None:
        self._folder = workspace / "steps"
        self._console = console
        self.seconds: dict[str, float] = {}

    def do(
        self,
        name: str,
        arguments: Mapping[str, Any],
        after: Sequence[str],
        folder: Path,
        outputs: Sequence[Path],
        work: Callable[[], None],
    ) -> None:
        """Do ``work`` unless its outputs are there, made with these arguments from the present results of ``after``.

        Args:
            name: of the step.
            arguments: JSON values that its result depends on.
            after: names of the steps whose results it uses.
            folder: that it writes; removed before it starts.
            outputs: files that a finished step has written.
            work: the step.
        """
        marker = self._marker(name)
        seconds = self.finished(name, arguments, after, outputs)
        if seconds is not None:
            self.seconds[name] = seconds
            self._console.print(f"{name}: finished before, in {folder}")
            return
        marker.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        began = time.monotonic()
        work()
        missing = [str(file) for file in outputs if not file.exists()]
        if missing:
            raise StepFailed(f"{name} ended without writing {', '.join(missing)}")
        self.seconds[name] = time.monotonic() - began
        self._folder.mkdir(parents=True, exist_ok=True)
        key = self._key(arguments, after)
        marker.write_text(json.dumps({"key": key, "finished": time.time(), "seconds": self.seconds[name]}))
        self._console.print(f"{name}: done in {self.seconds[name]:.0f} s")

    def finished(
        self, name: str, arguments: Mapping[str, Any], after: Sequence[str], outputs: Sequence[Path]
    ) -> float | None:
        """Seconds that the step took, when it need not be done again; else None. Arguments as in :meth:`do`."""
        known = _read_json(self._marker(name))
        same = known.get("key") == self._key(arguments, after) and all(file.exists() for file in outputs)
        return known["seconds"] if same else None

    def was_done(self, name: str) -> bool:
        """Whether the step was finished once, with whatever arguments."""
        return bool(_read_json(self._marker(name)))

    def _key(self, arguments: Mapping[str, Any], after: Sequence[str]) -> dict[str, Any]:
        finished = {step: _read_json(self._marker(step)).get("finished") for step in after}
        return {"arguments": dict(arguments), "after": finished}

    def _marker(self, name: str) -> Path:
        return self._folder / f"{name}.json"


def _read_json(file: Path) -> dict[str, Any]:
    """Its content; nothing when it is missing or was cut short."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
