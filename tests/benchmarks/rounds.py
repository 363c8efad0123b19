"""What a federated round costs beside the training: its wall clock less the slowest site's own training, by parts.

    python -m tests.benchmarks.rounds --out runs/benchmarks/rounds.md
    python -m tests.benchmarks.rounds --light --settings simulator
    python -m tests.benchmarks.rounds --rounds 4 --set steps_per_epoch=40 --settings simulator provisioned

Runs the job ``fcl_pretrain`` in FLARE's simulator and on a provisioned consortium, both on this machine, and reads
``rounds.jsonl``. With ``--light``, sites train nothing and send what the real ones send: the time left is overhead
alone. Sites share this machine's cores, so a part that computes (sharing, validation) takes longer than it would at a
hospital, and a round of training ends when the slowest of them ends.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fcl.commandline import key_value
from flare_app.job import JOBS
from flare_app.provision.consortium import Consortium, run_consortium
from flare_app.records import ROUNDS_FILE, read_rounds
from tests.benchmarks.simulated import run_job, run_parser, tabulate

LIGHT = Path(__file__).parent / "light_bundle"
SETTINGS = ("simulator", "provisioned")


@dataclass(frozen=True)
class Row:
    """Seconds of a round, median over the rounds after the first.

    Args:
        setting: where it ran.
        sites: how many.
        round: wall clock, from the end of the round before.
        training: of the site that trained longest.
        overhead: the rest, the sum of what follows.
        validation: of the global weights at that site.
        sharing: longest time in which a site made the features that peers pull.
        exchange: in which that site waited for its peers' features and took them.
        saving: of that site's state.
        average: at the server before, between and after its tasks: payloads and the average.
        checkpoint: log and checkpoint at the server.
        tasks: what is left: tasks and results on their way, waiting to be fetched, decoded and checked.
    """

    setting: str
    sites: int
    round: float
    training: float
    overhead: float
    validation: float
    sharing: float
    exchange: float
    saving: float
    average: float
    checkpoint: float
    tasks: float


def parts_of(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a :class:`Row` of one line of ``rounds.jsonl``."""
    sites = line["sites"].values()
    slowest = max(sites, key=lambda site: site["seconds"])["parts"]
    at_server = line["parts"]
    whole = line["seconds"] + at_server["before"]
    training = max(site["parts"]["training"] for site in sites)
    known = {
        "validation": slowest["validation"],
        "sharing": max(site["parts"].get("sharing", 0.0) for site in sites),
        "exchange": slowest.get("exchange", 0.0),
        "saving": slowest["saving"],
        "average": line["seconds"] - at_server.get("sharing", 0.0) - at_server["training"],
        "checkpoint": at_server["before"],
    }
    overhead = whole - training
    left = overhead - sum(known.values())
    return {"round": whole, "training": training, "overhead": overhead, **known, "tasks": left}


def summarise(setting: str, lines: Sequence[dict[str, Any]]) -> Row:
    """The row of a run from the lines of its ``rounds.jsonl``.

    Raises:
        ValueError: when no round follows the first, which is not measured: sites warm up in it.
    """
    trained = [line for line in lines if line["accepted"] and line["parts"]][1:]
    if not trained:
        raise ValueError(f"the run of {setting} has fewer than two rounds")
    each = [parts_of(line) for line in trained]
    medians = {name: statistics.median(parts[name] for parts in each) for name in each[0]}
    return Row(setting, len(trained[0]["sites"]), **medians)


def as_markdown(rows: Sequence[Row]) -> str:
    """The table."""
    names = [entry.name for entry in fields(Row)][2:]
    lines = [
        f"| setting | sites | {' | '.join(names)} | overhead of a minute of training |",
        "|---" * (len(names) + 3) + "|",
    ]
    for row in rows:
        shown = " | ".join(f"{getattr(row, name):.2f}" for name in names)
        lines.append(f"| {row.setting} | {row.sites} | {shown} | {100 * row.overhead / 60:.1f} % |")
    return "\n".join(lines) + "\n"


def _consortium(workspace: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    settings = replace(
        JOBS["fcl_pretrain"],
        rounds=arguments.rounds,
        seed=arguments.seed,
        overrides=dict(map(key_value, arguments.set)),
        bundle_root=str(LIGHT) if arguments.light else None,
    )
    what = Consortium(workspace, settings, arguments.sites, preflight=False)
    return read_rounds(run_consortium(what, Console(file=sys.stderr)) / ROUNDS_FILE)


def run(setting: str, workspace: Path, arguments: argparse.Namespace) -> Row:
    """Run in one setting; raises ``RuntimeError`` with the end of its output when it fails."""
    if setting == "provisioned":
        return summarise(setting, _consortium(workspace / setting, arguments))
    options = ["--bundle-root", str(LIGHT)] if arguments.light else []
    return summarise(setting, run_job("fcl_pretrain", workspace / setting, arguments, options))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; gives the exit code: 1 when a run failed."""
    parser = run_parser(__doc__, Path("runs/rounds"))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="WHERE")
    parser.add_argument("--light", action="store_true", help="sites that train nothing")
    arguments = parser.parse_args(argv)
    workspace = arguments.workspace.resolve()
    return tabulate(arguments.settings, lambda where: run(where, workspace, arguments), as_markdown, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
