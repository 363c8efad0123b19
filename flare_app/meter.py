"""How far something long is: a bar on a terminal, with what it is doing beneath, and lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text


class Look(NamedTuple):
    """What was seen of it.

    Args:
        done: how much of the total.
        values: the latest, in words.
        left_s: seconds that it will take from now; None lets the meter judge by its own clock.
        below: what to show beneath the bar.
    """

    done: int
    values: str
    left_s: float | None = None
    below: RenderableType | None = None


class Meter:
    """Shows how far a step is.

    Args:
        console: to show it on; where that is no terminal, there is a line for each advance.
        what: heads the bar and the lines.
        total: None where nobody knows.
    """

    def __init__(self, console: Console, what: str, total: int | None) -> None:
        self._console, self._what, self._total = console, what, total
        self._began, self._seen = time.monotonic(), (0, "")
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[place]}"))
        times = (TimeElapsedColumn(), _Left(), TextColumn("{task.fields[shown]}"))
        self._bar = _Bar(*columns, *times, console=console) if console.is_terminal else None
        fields: dict[str, Any] = {"place": "", "shown": "", "deadline": None}
        self._task = self._bar.add_task(what, total=total, **fields) if self._bar else None

    def __enter__(self) -> Meter:
        if self._bar is not None:
            self._bar.start()
        else:
            self._console.print(f"{self._what} ...")
        return self

    def __exit__(self, *reason: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, values: str, left_s: float | None = None, below: RenderableType | None = None) -> None:
        """See :class:`Look`."""
        if (done, values) == self._seen:
            return
        self._seen, now = (done, values), time.monotonic()
        place = str(done) if self._total is None else f"{done}/{self._total}"
        if left_s is None and self._total is not None and done:
            left_s = (now - self._began) / done * (self._total - done)
        if self._bar is not None and self._task is not None:
            self._bar.below = below
            deadline = None if left_s is None else now + left_s
            self._bar.update(self._task, completed=done, place=place, shown=values, deadline=deadline)
            return
        parts = [f"  {self._what} {place}", values, "" if left_s is None else f"about {left_s:.0f} s left"]
        self._console.print(", ".join(part for part in parts if part), soft_wrap=True, highlight=False)


class _Bar(Progress):
    """With something beneath it."""

    below: RenderableType | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.below is not None:
            yield self.below


class _Left(ProgressColumn):
    """Time left, counted down between two looks."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        deadline = task.fields["deadline"]
        if deadline is None:
            return Text("")
        minutes, seconds = divmod(round(max(0.0, deadline - time.monotonic())), 60)
        return Text(f"{minutes}:{seconds:02d} left", style="progress.remaining")
