"""``fcl report``: a page about one federated run."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flare_app.command.show import print_json

if TYPE_CHECKING:
    from fcl.evaluation.run_facts import Run
    from flare_app.run_folder import RunFolder

# Settings of the server's side that a reader must know; those that are at their defaults too.
_SETTINGS = ("exchange", "route", "encryption", "weight_bits", "feature_bits", "min_sites", "task_timeout_s")

_CARD = ("stage", "method", "rounds", "sites", "epsilon", "data_license")


def add_parser(commands: Any) -> None:
    """Add ``report`` to the commands of ``fcl``."""
    parser = commands.add_parser("report", help="a page about one federated run, finished or not")
    parser.add_argument(
        "workspace", type=Path, help="of the simulator, a downloaded result, a checkpoint_dir, or a rounds.jsonl"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (report.html in the workspace)")
    parser.add_argument(
        "--json", action="store_true", help="what the page shows, for programs; the page itself only with --out"
    )
    parser.set_defaults(run=_run)


def _run(arguments: Namespace) -> int:
    from fcl.evaluation.run_facts import run_facts
    from fcl.evaluation.run_report import write_run_report

    run = describe_run(one_run(arguments.workspace))
    if arguments.json:
        print_json(run_facts(run))
    if arguments.out or not arguments.json:
        folder = arguments.workspace if arguments.workspace.is_dir() else arguments.workspace.parent
        page = write_run_report(arguments.out or folder / "report.html", run)
        print(page, file=sys.stderr if arguments.json else sys.stdout)
    return 0


def one_run(folder: Path) -> RunFolder:
    """The run in a folder.

    Raises:
        ValueError: when there is none, or more than one.
    """
    from flare_app.records import ROUNDS_FILE
    from flare_app.run_folder import find_runs

    runs = find_runs(folder)
    if not runs:
        raise ValueError(
            f"no {ROUNDS_FILE} in {folder} or the folders in it, so that there is no run to report on. Give the "
            "workspace of a simulated job, the folder of a downloaded result, or a job's checkpoint_dir; the server "
            "writes the first line when the first round is done. Runs at one site are watched with TensorBoard"
        )
    if len(runs) > 1:
        listed = "".join(f"\n  {shlex.quote(str(run.log))}: {len(run.lines())} lines" for run in runs)
        raise ValueError(f"{folder} holds {len(runs)} runs; name one of them (the newest is first):{listed}")
    return runs[0]


def describe_run(folder: RunFolder) -> Run:
    """All that is known of a run.

    Raises:
        ValueError: when its log cannot be read.
    """
    from fcl.evaluation.federation_log import read_rounds
    from fcl.evaluation.run_facts import Run
    from flare_app.records import site_states

    problems: list[str] = []
    lines = read_rounds(folder.log, problems)
    if not lines:
        raise ValueError("; ".join(problems) + ". The server writes the first line when the first round is done")
    ended, failure = folder.end()
    configuration = _configuration(folder)
    notes = [f"The log is damaged, the rest of it is shown: {problem}" for problem in problems]
    egress, damaged = _egress(folder)
    notes += [f"The manifest of {site} has {count} lines that cannot be read." for site, count in damaged.items()]
    name = folder.meta.get("name") or folder.log.parent.name
    return Run(
        title=f"Federated run: {name}",
        lines=lines,
        states=[site_states(line) for line in lines],
        total=folder.total,
        ended=True if folder.complete(lines) else ended,
        failure=failure,
        egress=egress,
        notes=notes,
        facts=_facts(folder, configuration),
        configuration=configuration,
    )


def _configuration(folder: RunFolder) -> dict[str, Any]:
    """The job's own, of server and sites, and the card of the newest checkpoint beside the log."""
    from fcl.networks.weights import CheckpointError, read_card
    from flare_app.state import LAST, PREVIOUS

    card: dict[str, Any] = {}
    for name in (LAST, PREVIOUS):  # a running job may be replacing one of them
        try:
            card = read_card(folder.log.parent / name)
            break
        except (CheckpointError, FileNotFoundError):
            continue
    return {"job_id": folder.job_id, "server": folder.controller, "sites": folder.executor, "card": card}


def _facts(folder: RunFolder, configuration: Mapping[str, Any]) -> dict[str, str]:
    from fcl.evaluation.page import machine_facts

    server, sites, card = (configuration[name] for name in ("server", "sites", "card"))
    changed = datetime.fromtimestamp(folder.log.stat().st_mtime).astimezone()
    facts = {"Log of rounds": str(folder.log), "Last line written": changed.strftime("%Y-%m-%d %H:%M %Z")}
    if configuration["job_id"]:
        facts["Job"] = str(configuration["job_id"])
    if sites:
        facts["Configuration"] = ", ".join(map(str, sites.get("config", [])))
        facts["Changed settings"] = _listed(sites.get("overrides") or {}) or "none"
        facts["Seed"] = str(sites.get("seed", 0))
    if server:
        facts["Federation"] = _listed({name: server[name] for name in _SETTINGS if name in server})
    if card:
        facts["Configuration hash"] = str(card.get("config_hash", "–"))
        facts["Checkpoint"] = _listed({name: card[name] for name in _CARD if card.get(name, "unknown") != "unknown"})
        facts["Versions of the run"] = ", ".join(f"{name} {text}" for name, text in card.get("versions", {}).items())
    return {**facts, "Page written on": ", ".join(machine_facts().values())}


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _egress(folder: RunFolder) -> tuple[dict[str, dict[str, dict[str, Any]]] | None, dict[str, int]]:
    """Totals of each site's manifest by receiver, of this job where it is known, and unreadable lines."""
    from flare_app.egress.manifest import read_manifest
    from flare_app.egress.summary import summarise

    found, damaged = {}, {}
    for site, file in folder.manifests().items():
        lines, unreadable = read_manifest(file)
        own = [line for line in lines if folder.job_id is None or line.get("job") == folder.job_id]
        if own:
            found[site] = {receiver: asdict(total) for receiver, total in summarise(own).items()}
        if unreadable:
            damaged[site] = unreadable
    return found or None, damaged
