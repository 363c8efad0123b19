"""How far a command is, read from the files that it writes, and shown as bars or, without a terminal, as lines."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from flare_app.records import read_rounds


@dataclass(frozen=True)
class Status:
    """How far something is.

    Args:
        done, total: steps (rounds, epochs).
        text: values worth showing.
        left_s: estimate of what remains; None when not known.
    """

    done: int
    total: int
    text: str = ""
    left_s: float | None = None


Watch = Callable[[], Status | None]

_EPOCH = re.compile(r"epoch (\d+)/(\d+)(?:, (.*?))?, (?:[\d:]+) gone, ([\d:]+) left")
_DONE = re.compile(r"step (\d+)/(\d+)()(?:, .*)?, (?:[\d:]+) gone, ([\d:]+) left")


def watch_rounds(file: Path, total: int) -> Watch:
    """Follow the controller's ``rounds.jsonl``; a file of an earlier run must be gone before."""

    def look() -> Status | None:
        lines = read_rounds(file) if file.exists() else []
        rounds = [line for line in lines if line["round"] < total]
        if not rounds:
            return None
        parts = [f"loss {rounds[-1]['metrics']['loss']:.2f}"] if "loss" in rounds[-1]["metrics"] else []
        known = [line["validation"]["partition_knn"] for line in lines if "partition_knn" in line["validation"]]
        parts += [f"kNN {known[-1]:.2f}"] if known else []
        pace = sum(line["seconds"] for line in rounds) / len(rounds)
        return Status(len(rounds), total, ", ".join(parts), pace * (total - len(rounds)))

    return look


def watch_log(file: Path) -> Watch:
    """Follow the progress lines that :class:`fcl.engines.Progress` writes into a log without a terminal."""

    def look() -> Status | None:
        text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
        found = [*_EPOCH.finditer(text)] or [*_DONE.finditer(text)]
        if not found:
            return None
        done, total, values, left = found[-1].groups()
        return Status(int(done), int(total), values or "", _seconds(left))

    return look


class Display:
    """One line for each watched command; a context manager.

    Args:
        watches: name to watch.
        console: to draw on.
    """

    def __init__(self, watches: Mapping[str, Watch], console: Console) -> None:
        self.watches = dict(watches)
        self.console = console
        self._width = max(map(len, self.watches))
        self._said: dict[str, int] = {}
        self._bars: Progress | None = None
        self._ids: dict[str, TaskID] = {}
        # What is left was estimated when the last step ended; it counts down from then.
        self._seen: dict[str, tuple[Status, float]] = {}

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._bars = Progress(
                TextColumn(f"{{task.description:<{self._width}}}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=self.console,
            )
            self._bars.start()
            for name in self.watches:
                self._ids[name] = self._bars.add_task(name, total=None, text="starting", left="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.tick()
        if self._bars is not None:
            self._bars.stop()

    def tick(self) -> None:
        """Look again and show what is new."""
        for name, watch in self.watches.items():
            status = watch()
            if status is None:
                continue
            if name not in self._seen or self._seen[name][0] != status:
                self._seen[name] = (status, time.monotonic())
            if self._bars is None:
                self._say(name, status)
            else:
                self._draw(name, status)

    def _draw(self, name: str, status: Status) -> None:
        assert self._bars is not None
        gone = time.monotonic() - self._seen[name][1]
        left = "" if status.left_s is None else f"{_clock(max(0.0, status.left_s - gone))} left"
        self._bars.update(
            self._ids[name], completed=status.done, total=status.total, text=status.text, left=left, refresh=True
        )

    def _say(self, name: str, status: Status) -> None:
        """A line for each new tenth of the way: a log is read later, and by people."""
        tenth = 10 * status.done // max(1, status.total)
        if self._said.get(name) == tenth:
            return
        self._said[name] = tenth
        left = "" if status.left_s is None else f", about {_clock(status.left_s)} left"
        values = f", {status.text}" if status.text else ""
        self.console.print(f"  {name}: {status.done}/{status.total}{values}{left}", highlight=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _seconds(clock: str) -> float:
    total = 0
    for part in clock.split(":"):
        total = 60 * total + int(part)
    return float(total)
