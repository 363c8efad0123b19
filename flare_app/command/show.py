"""Tables for people, JSON for programs. Problems name files, so they are for the site's own terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fcl.data.problems import DataProblems, Problem


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(document, indent=1, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> None:
    """A table as wide as the terminal."""
    table = Table(*columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left")
    for row in rows:
        table.add_row(*("" if cell is None else _plain(str(cell)) for cell in row))
    Console().print(table)


def print_problems(problems: Sequence[Problem], kind: str = "problem") -> None:
    """All of them in one table, in the order found; where lines are not wrapped for a person, one a line."""
    console = Console(stderr=False)
    if not problems:
        return
    console.print(f"{len(problems)} {kind}{'s' if len(problems) > 1 else ''}:", highlight=False)
    if console.is_terminal:
        print_table(("", "file", "what", "way out"), [(i, p.file, p.what, p.fix) for i, p in enumerate(problems, 1)])
        return
    for number, problem in enumerate(problems, 1):
        console.print(f"  {number}. {problem}", markup=False, highlight=False, soft_wrap=True)


def report_problems(error: ValueError, as_json: bool) -> int:
    """Show what ended a command; 1 for problems in the data, 2 for arguments that make no sense."""
    if isinstance(error, DataProblems):
        if as_json:
            print_json({"problems": [asdict(problem) for problem in error.problems]})
        else:
            print_problems(error.problems)
        return 1
    print(f"fcl: {error}", file=sys.stderr)
    return 2


def _plain(text: str) -> str:
    """Square brackets in file names are no markup."""
    return text.replace("[", "\\[")
