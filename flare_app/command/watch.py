"""``fcl watch``: rounds and sites of a running job, live, from the server's own files on this machine."""

from __future__ import annotations

import time
from argparse import ArgumentTypeError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from flare_app.run_folder import RunFolder

_POLL_S = 0.5
_LOOK_AGAIN_S = 5.0  # for a newer job: all of the workspace is searched


def add_parser(commands: Any) -> None:
    """Add ``watch`` to the commands of ``fcl``."""
    parser = commands.add_parser(
        "watch",
        help="rounds and sites of a running job, live",
        description="Ends with the job: 0 when all rounds are done, 1 when it failed. Of a checkpoint_dir outside the "
        "workspace nobody can tell that the job failed: it ends with 0 after the final validation, or by --patience. "
        "When a newer job begins, that one is watched. Ctrl-C leaves the job alone.",
    )
    parser.add_argument("workspace", type=Path, help="of the simulator or the server, or the job's checkpoint_dir")
    parser.add_argument(
        "--patience", type=_seconds, metavar="S", help="end with 1 when nothing has changed for so long (never)"
    )
    parser.set_defaults(run=_run, json=False)


def _run(arguments: Namespace) -> int:
    console = Console()
    try:
        return watch(arguments.workspace, console, arguments.patience)
    except KeyboardInterrupt:
        console.print("no longer watched; the job goes on")
        return 130


def watch(folder: Path, console: Console, patience_s: float | None = None, poll_s: float = _POLL_S) -> int:
    """Show the run in a folder whose job began last until it ends.

    Returns:
        0 when all its rounds are done; 1 when it failed, was aborted, or nothing changed for ``patience_s``.

    Raises:
        ValueError: when there is no such folder.
    """
    run = _begun(folder, console, patience_s, poll_s)
    while run is not None:
        seen = _watch_one(run, folder, console, patience_s, poll_s)
        if isinstance(seen, int):
            return seen
        console.print("a newer job has begun, which is watched now", highlight=False)
        run = seen
    return _give_up(console, patience_s)


def _watch_one(
    run: RunFolder, folder: Path, console: Console, patience_s: float | None, poll_s: float
) -> int | RunFolder:
    """Show one run; the exit code when it has ended, or the run of a job that began while nothing changed in this."""
    from flare_app.meter import Meter
    from flare_app.rounds_view import look_at_lines

    lines: list[dict[str, Any]] = []
    read: tuple[int, int] | None = None
    changed = looked = time.monotonic()
    with Meter(console, "rounds", run.total) as meter:
        while True:
            # Before the log of rounds: what is written before the end is then read after it.
            ended, failure = run.end()
            earlier, state = lines, _state(run.log)
            if state is not None and state != read:
                read, lines = state, run.lines() or lines  # FLARE takes the log away with a job that has ended
                meter.show(*look_at_lines(lines, run.total))
            if run.complete(lines) or ended:
                return _verdict(run, lines, failure, console)
            now = time.monotonic()
            if len(lines) != len(earlier):
                changed = now
            elif now - looked > _LOOK_AGAIN_S:
                looked = now
                if (newer := _newer(run, folder)) is not None:
                    return newer
            if patience_s is not None and now - changed > patience_s:
                return _give_up(console, patience_s)
            time.sleep(poll_s)


def _state(log: Path) -> tuple[int, int] | None:
    """Tells whether it was written to; None where there is none."""
    try:
        found = log.stat()
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns


def _newer(run: RunFolder, folder: Path) -> RunFolder | None:
    found = _latest(folder)
    # A log alone is of a job that is over, whenever that was.
    newer = found is not None and found.run_dir is not None and found.began > run.began
    return found if newer else None


def _latest(folder: Path) -> RunFolder | None:
    from flare_app.run_folder import latest_run

    try:
        return latest_run(folder)
    except FileNotFoundError:  # FLARE removed a job's folder in the middle of the search
        return None


def _begun(folder: Path, console: Console, patience_s: float | None, poll_s: float) -> RunFolder | None:
    """The run whose job began last, waited for; None when patience is over."""
    began, told = time.monotonic(), False
    while (run := _latest(folder)) is None:
        if not told:
            console.print(f"waiting for a job in {folder}", soft_wrap=True, highlight=False)
            told = True
        if patience_s is not None and time.monotonic() - began > patience_s:
            return None
        time.sleep(poll_s)
    return run


def _verdict(run: RunFolder, lines: list[dict[str, Any]], failure: str | None, console: Console) -> int:
    done = sum(1 for line in lines if line["count"])
    if run.complete(lines) or (run.total is None and failure is None):
        console.print(f"finished: {done} rounds; fcl report {run.workspace}", soft_wrap=True, highlight=False)
        return 0
    reason = failure or "it was aborted"
    of = "" if run.total is None else f" of {run.total}"
    text = f"the job ended after {done}{of} rounds: {reason}"
    console.print(text, style="red", soft_wrap=True, highlight=False, markup=False)
    return 1


def _give_up(console: Console, patience_s: float | None) -> int:
    console.print(f"nothing has changed for {patience_s:g} s: no longer watched", highlight=False)
    return 1


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if value <= 0:
        raise ArgumentTypeError(f"must be a positive number of seconds, got {text!r}")
    return value
