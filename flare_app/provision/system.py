"""A provisioned federation on this machine: a process for the server, one for each site, mutual TLS, loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from flare_app.provision.kits import Kits, ProvisionError, make_kits, on_this_machine, read_project
from flare_app.provision.processes import Processes
from flare_app.provision.submission import admin_session

if TYPE_CHECKING:
    from nvflare.fuel.flare_api.flare_api import Session

_POLL_S = 0.25
_TAIL = 30  # lines of a log that a failure shows
RUNNING_FILE = "running.json"


class System:
    """Starts, watches and ends the processes of a consortium whose kits all lie on this machine.

    As a context it ends everything it started, whatever happens inside.

    Args:
        kits: of a server named ``localhost`` and its sites.
        workspace: folder for the logs of the processes.
        env: variables for all processes.
        env_of: variables for some of them, by name of the server or site.
        python: interpreter of all processes; this one by default.
    """

    def __init__(
        self,
        kits: Kits,
        workspace: Path,
        env: Mapping[str, str] | None = None,
        env_of: Mapping[str, Mapping[str, str]] | None = None,
        python: Path | None = None,
    ) -> None:
        self.kits = kits
        self.workspace = workspace
        self.processes = Processes()
        self._log_before: dict[str, int] = {}
        self._env = dict(env or {})
        self.env_of: dict[str, dict[str, str]] = {name: dict(values) for name, values in (env_of or {}).items()}
        self._python = python or Path(sys.executable)

    @classmethod
    def create(cls, workspace: Path, sites: int | None = None, **options: Any) -> System:
        """Make kits in ``workspace`` for the first ``sites`` hospitals of the project file; see :class:`System`."""
        project = on_this_machine(read_project(), free_port(), sites)
        return cls(make_kits(project, workspace / "kits"), workspace, **options)

    def __enter__(self) -> System:
        return self

    def __exit__(self, *reason: object) -> None:
        self.stop()

    @property
    def names(self) -> list[str]:
        """Server first, then the sites."""
        return [self.kits.server, *self.kits.sites]

    def log_file(self, name: str) -> Path:
        """What the server or a site, and their job processes, have printed."""
        return self.workspace / "logs" / f"{name}.log"

    def log(self, name: str) -> str:
        """Content of :meth:`log_file`."""
        file = self.log_file(name)
        return file.read_text(errors="replace") if file.exists() else ""

    # -- processes -----------------------------------------------------------------------------------------------------

    def start(self, name: str | None = None) -> None:
        """Start the server or a site, by default all of them; ready when :meth:`wait_ready` returns."""
        for each in self.names if name is None else [name]:
            self._log_before[each] = len(self.log(each))
            self.processes.start(each, *self._command(each), self._environment(each))
        self._note()

    def _command(self, name: str) -> tuple[list[str], Path, Path]:
        # In the kit's folder: FLARE puts the working directory on the path of its processes.
        return ["bash", str(self.kits[name] / "startup/sub_start.sh"), "--once"], self.kits[name], self.log_file(name)

    def _environment(self, name: str) -> dict[str, str]:
        # The script runs the first python3 on the path.
        path = f"{self._python.parent}{os.pathsep}{os.environ.get('PATH', '')}"
        return {"PATH": path, **self._env, **self.env_of.get(name, {})}

    def kill(self, name: str) -> None:
        """End the server or a site and its job processes as a power failure would."""
        self.processes.end(name, grace_s=0)

    def kill_job_process(self, name: str) -> int:
        """End the job process of the server or a site with SIGKILL, and nothing else; gives its pid.

        Raises:
            ProvisionError: when it has none.
        """
        jobs = self.job_processes(name)
        if not jobs:
            raise ProvisionError(f"{name} runs no job now")
        jobs[0].kill()
        return jobs[0].pid

    def job_processes(self, name: str) -> list[Any]:
        """Of the server or a site, as ``psutil.Process``."""
        return self.processes.children(name)

    def restart(self, name: str) -> None:
        """Kill the server or a site and start it from the same kit; returns when all that run are connected."""
        self.kill(name)
        self.start(name)
        self.wait_ready()

    def stop(self) -> None:
        """End everything that was started here."""
        self.processes.end()
        (self.workspace / RUNNING_FILE).unlink(missing_ok=True)

    def _note(self) -> None:
        """For another process, which may have to end what this one, killed, could not."""
        own = psutil.Process()
        note = {"mark": self.processes.mark, "pid": own.pid, "since": own.create_time()}
        (self.workspace / RUNNING_FILE).write_text(json.dumps(note) + "\n")

    def wait_ready(self, timeout_s: float = 180.0) -> None:
        """Wait until the server answers and every site that was started has registered.

        Raises:
            ProvisionError: when one ends before, or time is over; with the end of its log.
        """
        expected = [name for name in self.names if self.processes.running(name)]
        missing = set(expected[1:])

        def ready() -> bool:
            ended = [name for name in expected if not self.processes.running(name)]
            if ended:
                tails = "\n".join(f"-- {name}\n{tail(self.log_file(name))}" for name in ended)
                raise ProvisionError(f"ended at start: {', '.join(ended)}\n{tails}")
            try:
                with self.session(timeout_s=5.0) as session:
                    connected = {client.name for client in session.get_connected_client_list()}
                    missing.difference_update(name for name in connected if self._registered(name))
            except Exception:  # FLARE raises whatever happened while the server comes up
                return False
            return not missing

        if not wait_until(ready, timeout_s):
            problem = (
                f"these have not connected: {', '.join(sorted(missing))}" if missing else "the server gives no answer"
            )
            raise ProvisionError(f"after {timeout_s:.0f} s {problem}\n{tail(self.log_file(self.kits.server))}")

    def _registered(self, site: str) -> bool:
        """Whether the site says so since its last start: the server still lists who was here before it (a preflight
        check, an earlier process), and a job submitted now would go without the site."""
        return f"Successfully registered client:{site} " in self.log(site)[self._log_before.get(site, 0) :]

    # -- administration ------------------------------------------------------------------------------------------------

    @contextmanager
    def session(self, role: str = "lead", timeout_s: float = 20.0) -> Iterator[Session]:
        """A session of FLARE's API as the project's ``lead``, or another role of it."""
        with admin_session(self.kits[self.kits.users[role]], timeout_s) as session:
            yield session

    def preflight(self, name: str, timeout_s: float = 120.0) -> str:
        """FLARE's own check of a kit: the server's before it runs, a site's when the server does; gives its report.

        Raises:
            ProvisionError: with the report, when something is wrong.
        """
        command = [str(self._python), "-m", "nvflare.cli", "preflight-check", "-p", str(self.kits[name])]
        done = subprocess.run(
            command,
            cwd=self.kits[name],
            env={**os.environ, **self._environment(name)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode != 0:
            raise ProvisionError(f"the kit of {name} does not pass:\n{done.stdout}")
        return done.stdout


def end_leftovers(workspace: Path) -> int:
    """End what a system left in ``workspace`` whose process was killed; gives how many processes.

    Raises:
        ProvisionError: when that process lives: the workspace is in use.
    """
    file = workspace / RUNNING_FILE
    if not file.is_file():
        return 0
    note = json.loads(file.read_text())
    if psutil.pid_exists(note["pid"]) and psutil.Process(note["pid"]).create_time() == note["since"]:
        raise ProvisionError(
            f"{workspace} is in use by process {note['pid']}: interrupt that, or use another workspace"
        )
    left = Processes(note["mark"])
    found = len(left.all())
    left.end()
    file.unlink()
    return found


def wait_until(condition: Callable[[], bool], timeout_s: float, poll_s: float = _POLL_S) -> bool:
    """Ask until ``condition`` holds; False when it does not within ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(poll_s)
    return True


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tail(file: Path, lines: int = _TAIL) -> str:
    """The last lines of a log."""
    return "\n".join(file.read_text(errors="replace").splitlines()[-lines:]) if file.exists() else ""
