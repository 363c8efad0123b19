"""A provisioned federation for tests: FLARE's own processes, certificates made on the spot, loopback, mutual TLS.

In a test module:

    @pytest.fixture(scope="module")
    def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
        with provisioned(tmp_path_factory.mktemp("federation"), sites=2) as federation:
            yield federation

    def test_it(federation: Federation) -> None:
        result = federation.run(replace(FAKE, rounds=2))
        assert result.completed, result.explain()
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fcl.networks.weights import read_card, read_weights
from flare_app.job import JobSettings, export_job
from flare_app.provision.kits import make_kits, on_this_machine, read_project, with_encryption
from flare_app.provision.submission import Outcome, download, follow, outcome, progress, submit
from flare_app.provision.system import System, free_port, wait_until
from flare_app.records import ROUNDS_FILE, read_rounds


@dataclass(frozen=True)
class Job:
    """A submitted job.

    Args:
        id: FLARE's.
        settings: it was made from; None for a folder.
        live: folder at the server with its checkpoints and log of rounds while it runs.
    """

    id: str
    settings: JobSettings | None
    live: Path


@dataclass(frozen=True)
class Result:
    """A job that has ended.

    Args:
        outcome: what the submitter learns.
        results: folder of weights and log of rounds: fetched with FLARE's API, or the checkpoint_dir at the server.
        download: folder that FLARE's API fetched; None when it gave none.
        output: all that server and job process printed at the server since the system started.
    """

    outcome: Outcome
    results: Path
    download: Path | None
    output: str

    @property
    def status(self) -> str:
        return self.outcome.status

    @property
    def completed(self) -> bool:
        return self.outcome.completed

    def explain(self) -> str:
        """For the message of an assertion."""
        return f"{self.outcome.explain()}\n{self.output[-6000:]}"

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """The lines of ``rounds.jsonl``; empty when there is none."""
        file = self.results / ROUNDS_FILE
        return read_rounds(file) if file.exists() else []

    def weights(self, name: str = "last.pt") -> dict[str, Tensor]:
        """Global weights of a checkpoint."""
        return read_weights(self.results / name)

    def card(self, name: str = "last.pt") -> dict[str, Any]:
        """What a checkpoint says of itself."""
        return read_card(self.results / name)


class Federation(System):
    """The system with what tests do to it; for ``kill``, ``restart``, ``log``, ``kits`` and others see there."""

    @property
    def server(self) -> str:
        return self.kits.server

    @property
    def sites(self) -> list[str]:
        return list(self.kits.sites)

    def begin(self, job: JobSettings | Path) -> Job:
        """Submit settings, or a job folder, and do not wait."""
        settings = job if isinstance(job, JobSettings) else None
        folder = export_job(job, self.workspace / "jobs") if isinstance(job, JobSettings) else job
        with self.session() as session:
            job_id = submit(session, folder)
        live = self.kits[self.server] / job_id / "fcl"
        if settings is not None and settings.checkpoint_dir is not None:
            chosen = Path(settings.checkpoint_dir)
            live = chosen / "server" if chosen.is_absolute() else self.kits[self.server] / chosen
        return Job(job_id, settings, live)

    def rounds_done(self, job: Job) -> int:
        """Rounds in the log at the server right now."""
        file = job.live / ROUNDS_FILE
        return len(read_rounds(file)) if file.exists() else 0

    def wait_rounds(self, job: Job, rounds: int, timeout_s: float = 240) -> None:
        """Wait until so many rounds are done."""
        if not wait_until(lambda: self.rounds_done(job) >= rounds, timeout_s, poll_s=0.05):
            raise AssertionError(f"{self.rounds_done(job)} of {rounds} rounds after {timeout_s} s\n{self.tail()}")

    def wait_job_processes(self, *names: str, timeout_s: float = 240) -> None:
        """Wait until the named server or sites run the process of a job."""
        if not wait_until(lambda: all(self.job_processes(name) for name in names), timeout_s, poll_s=0.05):
            raise AssertionError(f"no process of a job at all of {names} after {timeout_s} s\n{self.tail()}")

    def wait_idle(self, timeout_s: float = 60) -> None:
        """Wait until no process of a job is left at any site or the server."""
        if not wait_until(lambda: not any(self.job_processes(name) for name in self.names), timeout_s):
            raise AssertionError(f"a job still runs after {timeout_s} s\n{self.tail()}")

    def status(self, job: Job) -> str:
        """FLARE's word for the job right now."""
        with self.session() as session:
            return progress(session, job.id).status

    def abort(self, job: Job) -> None:
        with self.session() as session:
            session.abort_job(job.id)

    def end(self, job: Job, timeout_s: float = 300) -> Result:
        """Wait until the job has ended and fetch what it left."""
        with self.session() as session:
            ended = follow(session, job.id, timeout_s=timeout_s)
            return self._result(session, job, ended)

    def look(self, job: Job) -> Result:
        """The job as it is, ended or not (after a restart of the server FLARE never ends it)."""
        with self.session() as session:
            return self._result(session, job, outcome(session, job.id))

    def run(self, job: JobSettings | Path, timeout_s: float = 300) -> Result:
        """Submit, wait, fetch."""
        return self.end(self.begin(job), timeout_s)

    def tail(self) -> str:
        """The end of all logs."""
        return "\n".join(f"-- {name}\n{self.log(name)[-3000:]}" for name in self.names)

    def _result(self, session: Any, job: Job, ended: Outcome) -> Result:
        output = self.log(self.server)
        if job.settings is not None and job.settings.checkpoint_dir is not None:
            return Result(ended, job.live, None, output)
        try:
            results = download(session, job.id, self.workspace / "downloads")
        except Exception:  # a job that was refused, or failed at its start, has no result
            return Result(ended, job.live, None, output)
        return Result(ended, results, self.workspace / "downloads" / job.id, output)


@contextmanager
def provisioned(
    workspace: Path,
    sites: int = 2,
    env: Mapping[str, str] | None = None,
    env_of: Mapping[str, Mapping[str, str]] | None = None,
    python: Path | None = None,
    start: bool = True,
    encryption: bool = False,
) -> Iterator[Federation]:
    """Kits for the first ``sites`` hospitals of the project (``hospital-a``, ...), started and connected.

    Args:
        workspace: empty folder for kits, logs, jobs and downloads.
        sites: 1 to 4.
        env: variables for all processes, such as ``{"FAKE_FAILURES": ...}``.
        env_of: variables for some of them; ``{"localhost": {"PYTHONPATH": folder}}`` puts a ``sitecustomize.py`` of a
            test into the server's processes.
        python: interpreter of all processes.
        encryption: whether the kits hold contexts for jobs that encrypt weights.
        start: False leaves starting to the test, which may change kits first.
    """
    project = on_this_machine(read_project(), free_port(), sites)
    kits = make_kits(with_encryption(project) if encryption else project, workspace / "kits")
    with Federation(kits, workspace, {"OMP_NUM_THREADS": "1", **(env or {})}, env_of, python) as federation:
        if start:
            federation.start()
            federation.wait_ready()
        yield federation


def clean_python(folder: Path) -> Path:
    """An interpreter that has all requirements, and neither ``fcl`` nor ``flare_app``.

    A virtual environment that sees this one's packages as plain files: the ``.pth`` by which an editable install finds
    its sources is read in an environment's own folder only.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(folder)], check=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (own / "requirements.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder / "bin/python3"
