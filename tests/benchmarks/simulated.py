"""What the benchmarks that run whole jobs in FLARE's simulator share: their options, a run, the table of what came."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from flare_app.job import RESULTS
from flare_app.records import ROUNDS_FILE, read_rounds

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MIB = 2**20

Row = TypeVar("Row", bound="DataclassInstance")


def run_parser(description: str | None, workspace: Path) -> argparse.ArgumentParser:
    """The options of every such benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="config key, set at all sites")
    parser.add_argument("--workspace", type=Path, default=workspace)
    parser.add_argument("--out", type=Path, help="file to write the table to as well, and JSON beside it")
    return parser


def run_job(
    job: str, workspace: Path, arguments: argparse.Namespace, options: Sequence[str], rounds: int | None = None
) -> list[dict[str, Any]]:
    """Run a job; gives the lines of its log of rounds.

    Args:
        job: its name.
        workspace: emptied first.
        arguments: those of :func:`run_parser`.
        options: further ones of ``flare_app.job run``.
        rounds: in place of those in ``arguments``.

    Raises:
        RuntimeError: with the end of its output when it fails.
    """
    command = [sys.executable, "-m", "flare_app.job", "run", job, "--workspace", str(workspace)]
    command += ["--sites", str(arguments.sites), "--rounds", str(rounds or arguments.rounds)]
    command += ["--seed", str(arguments.seed), *options]
    for setting in arguments.set:
        command += ["--set", setting]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError((result.stdout + result.stderr)[-2000:])
    return read_rounds(workspace / RESULTS / ROUNDS_FILE)


def tabulate(
    names: Iterable[str],
    measure: Callable[[str], Row],
    as_markdown: Callable[[Sequence[Row]], str],
    out: Path | None,
) -> int:
    """Measure one name after the other, show each line as it comes and then the table; gives the exit code.

    Args:
        names: of the runs.
        measure: makes one; its ``RuntimeError`` fails that one alone.
        as_markdown: the table of what was measured.
        out: file to write the table to as well, and the rows as JSON beside it.
    """
    rows: list[Row] = []
    failed = False
    for name in names:
        try:
            rows.append(measure(name))
            print(as_markdown(rows).splitlines()[-1], flush=True)
        except RuntimeError as error:
            failed = True
            print(f"{name} failed: {error}", file=sys.stderr, flush=True)
    table = as_markdown(rows)
    print(f"\n{table}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(table, encoding="utf-8")
        out.with_suffix(".json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return int(failed)
