"""Does the cells of a plan that are missing, one after the other, and says how long the rest will take."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console

from flare_app.steps import Steps
from flare_app.study.plan import Cell


class Worker(Protocol):
    """Does a cell; see :class:`flare_app.study.cells.Cells`."""

    def folder(self, cell: Cell) -> Path: ...

    def outputs(self, cell: Cell) -> list[Path]: ...

    def do(self, cell: Cell) -> None: ...


class Ledger:
    """Which cells are done: a marker of each says with which settings, and after which others, it was.

    Args:
        out: the study's folder.
        worker: knows what a finished cell has written.
        console: for what is done.
    """

    def __init__(self, out: Path, worker: Worker, console: Console) -> None:
        self._steps = Steps(out, console)
        self._worker = worker

    def seconds(self, cell: Cell) -> float | None:
        """That a finished cell took; None when it is to be done, or done again."""
        if cell.after is not None and self.seconds(cell.after) is None:
            return None
        return self._steps.finished(cell.name, self._key(cell), self._after(cell), self._worker.outputs(cell))

    def outdated(self, cell: Cell) -> bool:
        """Whether it was done, but with other settings or from other models than it would be now."""
        return self.seconds(cell) is None and self._steps.was_done(cell.name)

    def do(self, cell: Cell) -> None:
        """Do it, and mark it as done."""
        worker = self._worker
        self._steps.do(
            cell.name,
            self._key(cell),
            self._after(cell),
            worker.folder(cell),
            worker.outputs(cell),
            lambda: worker.do(cell),
        )

    def _key(self, cell: Cell) -> dict[str, str]:
        return {"configuration": cell.configuration}

    def _after(self, cell: Cell) -> list[str]:
        return [] if cell.after is None else [cell.after.name]


def run_cells(cells: Sequence[Cell], ledger: Ledger, console: Console, on_evaluation: Callable[[Cell], None]) -> None:
    """Do what is missing.

    Args:
        cells: in an order in which each needs only earlier ones.
        ledger: does and remembers.
        console: shows progress.
        on_evaluation: called after each new evaluation.

    Raises:
        flare_app.steps.StepFailed: at the first cell that fails; those before it stay done.
    """
    seconds = {cell.name: ledger.seconds(cell) for cell in cells}
    todo = [cell for cell in cells if seconds[cell.name] is None]
    again = sum(ledger.outdated(cell) for cell in todo)
    changed = f", {again} done again since their settings or the bundle's configuration files changed" if again else ""
    console.print(f"{len(cells)} cells, {len(cells) - len(todo)} finished before{changed}", soft_wrap=True)
    known: dict[tuple[str, str, str, str], list[float]] = {}
    for cell in cells:
        spent = seconds[cell.name]
        if spent is not None:
            known.setdefault(cell.kind, []).append(spent / cell.steps)
    for number, cell in enumerate(todo, 1):
        left = time_left(todo[number - 1 :], known)
        console.print(f"cell {number}/{len(todo)}: {cell.name}; {left}", soft_wrap=True, highlight=False)
        ledger.do(cell)
        known.setdefault(cell.kind, []).append((ledger.seconds(cell) or 0.0) / cell.steps)
        if cell.stage == "evaluate":
            on_evaluation(cell)


def time_left(cells: Sequence[Cell], known: Mapping[tuple[str, str, str, str], Sequence[float]]) -> str:
    """What remains, in words: a step of a cell takes as long as one of those of its kind that are done.

    Args:
        cells: to be done.
        known: kind to the seconds for each step of finished cells.
    """
    rated = [cell for cell in cells if cell.kind in known]
    seconds = sum(statistics.fmean(known[cell.kind]) * cell.steps for cell in rated)
    unrated = len(cells) - len(rated)
    parts = [f"about {_clock(seconds)} left"] if rated else []
    parts += [f"{unrated} cells of a kind not yet timed"] if unrated else []
    return " and ".join(parts)


def _clock(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min" if minutes else f"{round(seconds)} s"
