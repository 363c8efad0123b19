"""Who got what from this site: summarises its manifest.

Examples:
    python -m flare_app.egress egress/hospital-a.jsonl
    python -m flare_app.egress egress/hospital-a.jsonl --by round
    python -m flare_app.egress egress/hospital-a.jsonl --json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from flare_app.egress.manifest import read_manifest
from flare_app.egress.summary import GROUPS, Total, summarise

_COLUMNS = ("tensors", "rows", "MiB", "epsilon", "reports", "withheld", "refused")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; gives 0, or 1 when payloads were refused or lines cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m flare_app.egress", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", type=Path, help="egress/<site>.jsonl in the site's workspace")
    parser.add_argument("--by", choices=tuple(GROUPS), default="peer", help="one row for each of these (peer)")
    parser.add_argument("--json", action="store_true", help="the same for programs")
    arguments = parser.parse_args(argv)
    if not arguments.manifest.is_file():
        parser.error(f"{arguments.manifest} is no file")
    lines, damaged = read_manifest(arguments.manifest)
    totals = summarise(lines, arguments.by)
    refusals = [line for line in lines if line["event"] == "refused" and line.get("rule") != "stopped"]
    if arguments.json:
        document = {name: asdict(total) for name, total in totals.items()}
        print(json.dumps({"by": arguments.by, "totals": document, "refused": refusals, "damaged_lines": damaged}))
    else:
        _show(arguments.by, totals, refusals, damaged)
    return int(bool(refusals or damaged))


def _show(by: str, totals: dict[str, Total], refusals: list[dict[str, Any]], damaged: int) -> None:
    console = Console()
    table = Table(by, *_COLUMNS, box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for name, total in totals.items():
        table.add_row(
            name,
            str(total.tensors),
            str(total.rows),
            f"{total.bytes / 2**20:.2f}",
            "-" if total.epsilon is None else f"{total.epsilon:.3g}",
            str(total.reports),
            str(total.withheld),
            str(total.refused),
        )
    console.print(table)
    for line in refusals:
        console.print(
            f"refused {line['time']} job {line['job']} task {line['task']}, rule {line['rule']}: {line['why']}",
            style="red",
            markup=False,
            soft_wrap=True,
        )
    if damaged:
        console.print(f"{damaged} lines cannot be read", style="red")


if __name__ == "__main__":
    sys.exit(main())
