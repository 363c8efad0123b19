"""Runs a job in FLARE's simulator, in processes of its own, and reads what it left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fcl.networks.weights import read_card, read_weights
from flare_app.job import RESULTS, JobSettings, export_job
from flare_app.records import read_rounds


@dataclass(frozen=True)
class Workspace:
    """A simulator's workspace after a run.

    Args:
        root: its folder.
        code: exit code of the simulator, 0 when the job finished.
        output: all that was printed, by server and sites.
    """

    root: Path
    code: int
    output: str
    results: Path

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """The lines of ``rounds.jsonl``."""
        return read_rounds(self.results / "rounds.jsonl")

    def weights(self, name: str = "last.pt") -> dict[str, Tensor]:
        """Global weights of a checkpoint."""
        return read_weights(self.results / name)

    def card(self, name: str = "last.pt") -> dict[str, Any]:
        """What a checkpoint says of itself."""
        return read_card(self.results / name)

    def site(self, name: str) -> Path:
        """Folder of what the bundle wrote at a site."""
        return self.root / name / "simulate_job" / "fcl"

    def events(self, site: str) -> dict[str, list[tuple[int, float]]]:
        """TensorBoard scalars that a site streamed to the server: tag to (step, value)."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        accumulator = EventAccumulator(str(self.root / "server/simulate_job/tb_events" / site))
        accumulator.Reload()
        return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def run_job(
    job: JobSettings | Path,
    workspace: Path,
    sites: int = 2,
    threads: int | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 300,
) -> Workspace:
    """Run a job by ``nvflare simulator`` and wait.

    Args:
        job: settings (exported beside the workspace first), or an exported job folder.
        workspace: folder to run in.
        sites: number of clients, ``site-1``, ...
        threads: of the simulator; default: one for each client.
        env: variables on top of this process's own.
        timeout_s: after which the simulator and its children are ended.
    """
    if isinstance(job, JobSettings):
        checkpoints = Path(job.checkpoint_dir) / "server" if job.checkpoint_dir else None
        folder = export_job(job, workspace.parent / f"{workspace.name}_job")
    else:
        checkpoints, folder = None, job
    command = [str(Path(sys.executable).parent / "nvflare"), "simulator", str(folder), "-w", str(workspace)]
    command += ["-n", str(sites), "-t", str(threads or sites)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return Workspace(workspace, process.returncode, output, checkpoints or workspace / RESULTS)
