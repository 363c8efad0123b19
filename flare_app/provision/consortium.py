"""A whole consortium on this machine: data, kits, processes, a job followed to its end, everything ended."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from flare_app.job import JobSettings, export_job
from flare_app.meter import Look, Meter
from flare_app.provision.kits import ProvisionError
from flare_app.provision.submission import Outcome, Progress, download, follow, submit
from flare_app.provision.system import System, end_leftovers
from flare_app.records import ROUNDS_FILE, read_rounds
from flare_app.rounds_view import look_at_rounds

if TYPE_CHECKING:
    from nvflare.fuel.flare_api.flare_api import Session

_PATIENTS = 4  # of each hospital


@dataclass(frozen=True)
class Consortium:
    """What to run.

    Args:
        workspace: folder for data, kits, logs, checkpoints and the result.
        settings: of the job; its ``checkpoint_dir`` is set to the workspace's.
        sites: hospitals of the project file that take part.
        preflight: check each kit by FLARE's own command first (10 s each).
        resume: go on from the checkpoints that an earlier run left in the workspace.
    """

    workspace: Path
    settings: JobSettings
    sites: int = 4
    preflight: bool = True
    resume: bool = False

    @property
    def checkpoints(self) -> Path:
        return self.workspace / "checkpoints"

    @property
    def phantom(self) -> Path:
        return self.workspace / f"phantom-{self.sites}"


def run_consortium(what: Consortium, console: Console) -> Path:
    """Run it; gives the folder of the result.

    Raises:
        ProvisionError: when a part of it fails, or another run uses the workspace.
    """
    what.workspace.mkdir(parents=True, exist_ok=True)
    end_leftovers(what.workspace)
    if what.resume and not what.checkpoints.is_dir():
        raise ProvisionError(f"{what.workspace} holds no checkpoints to resume from")
    stale = [what.workspace / "logs", what.workspace / "kits", *([] if what.resume else [what.checkpoints])]
    for folder in stale:
        shutil.rmtree(folder, ignore_errors=True)
    _make_phantom(what)
    threads = str(max(1, (os.cpu_count() or 1) // what.sites))  # the sites share this machine
    system = System.create(
        what.workspace, what.sites, env={"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    )
    console.print(f"kits of {len(system.names)} participants: {system.kits.folder}", soft_wrap=True, highlight=False)
    with system:
        _configure_sites(what, system)
        _start(what, system, console)
        return _run_job(what, system, console)


def _make_phantom(what: Consortium) -> None:
    if (what.phantom / "split.json").is_file():
        return
    command = [sys.executable, "-m", "fcl.data.phantom", "--out", str(what.phantom)]
    command += ["--sites", str(what.sites), "--patients", str(_PATIENTS), "--folds", "2"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ProvisionError(f"the phantom cannot be made:\n{done.stdout}{done.stderr}")


def _configure_sites(what: Consortium, system: System) -> None:
    """What the engineer of each hospital does: say where its data lie, in a file of its own."""
    for number, site in enumerate(system.kits.sites, start=1):
        settings = {
            "dataset_dir": str(what.phantom),
            "data": "phantom",
            "split_file": str(what.phantom / "split.json"),
            "site": f"site-{number}",
            "cache_dir": str(what.workspace / "cache" / site),
        }
        (system.kits[site] / "local/fcl_site.json").write_text(json.dumps(settings, indent=2) + "\n")


def _start(what: Consortium, system: System, console: Console) -> None:
    server, *sites = system.names
    if what.preflight:
        system.preflight(server)  # it needs the port free
    system.start(server)
    system.wait_ready()
    if what.preflight:
        with ThreadPoolExecutor(2) as pool:  # they start a site each
            list(pool.map(system.preflight, sites))
        console.print(f"preflight check passed: {', '.join(system.names)}")
    for site in sites:
        system.start(site)
    system.wait_ready()
    console.print(f"server and {len(sites)} sites are connected, mutual TLS on the loopback interface")


def watch(
    session: Session, job_id: str, console: Console, rounds: int | None = None, log: Path | None = None
) -> Outcome:
    """Follow a job with a bar on a terminal, and silently elsewhere.

    Args:
        session: of who may view it.
        job_id: FLARE's.
        console: to show it on.
        rounds: in all; without it the bar begins with the first round.
        log: the server's log of rounds, where the server runs on this machine.
    """
    if not console.is_terminal:
        return follow(session, job_id)
    with ExitStack() as stack:
        meters: list[Meter] = []

        def show(seen: Progress) -> None:
            total = rounds or seen.total
            if total and not meters:
                meters.append(stack.enter_context(Meter(console, "rounds", total)))
            for meter in meters:
                look = look_at_rounds(log, total) if log is not None else Look(seen.done, seen.short())
                meter.show(*(look if look.done else Look(seen.done, seen.short())))

        return follow(session, job_id, show)


def _run_job(what: Consortium, system: System, console: Console) -> Path:
    settings = replace(
        what.settings, checkpoint_dir=str(what.checkpoints), resume=what.resume, min_sites=min(2, what.sites)
    )
    folder = export_job(settings, what.workspace / "jobs")
    with system.session() as session:
        job_id = submit(session, folder)
        console.print(f"submitted {settings.name} as {job_id}", highlight=False)
        ended = watch(session, job_id, console, settings.rounds, what.checkpoints / "server" / ROUNDS_FILE)
        if not ended.completed:
            raise ProvisionError(f"{ended.explain()}\nlogs: {what.workspace / 'logs'}")
        results = download(session, job_id, what.workspace / "results")
    last = [line for line in read_rounds(results / ROUNDS_FILE) if line["metrics"]][-1]
    done = f"{last['round'] + 1} rounds, {len(last['accepted'])} sites, loss {last['metrics']['loss']:.4g}"
    console.print(f"{ended.status}: {done}", highlight=False)
    console.print(f"weights and log of rounds: {results}", soft_wrap=True, highlight=False)
    return results
