"""What a folder tells of a federated run: its log of rounds and what lies around it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flare_app.records import ROUNDS_FILE, read_rounds

_SERVER_CONFIG = "config_fed_server.json"
_DEPLOYED_CONFIG = f"app_server/config/{_SERVER_CONFIG}"  # at the server; jobs at sites hold a copy
_CLIENT_CONFIG = "config_fed_client.json"
_SIMULATED_JOB = "simulate_job"  # the run folder, and the id, of every job in the simulator
_ENDED = "Server runner finished."  # FLARE's last word on a job, however it went
_FATAL = re.compile(r"FATAL_SYSTEM_ERROR received: (.*)")


@dataclass(frozen=True)
class RunFolder:
    """One run.

    Args:
        log: its ``rounds.jsonl``, which may not be there yet.
        workspace: where the user said that the run lies: configuration, logs and manifests are looked for here too.
    """

    log: Path
    workspace: Path

    def lines(self) -> list[dict[str, Any]]:
        """Whole lines of the log so far."""
        return read_rounds(self.log) if self.log.is_file() else []

    @cached_property
    def run_dir(self) -> Path | None:
        """The server's folder of the job; None where only checkpoints lie here."""
        beside = self.log.parent.parent
        if list(beside.glob(f"app*/config/{_SERVER_CONFIG}")) or (beside / "meta.json").is_file():
            return beside
        configs = [*self.workspace.rglob(f"app*/config/{_SERVER_CONFIG}")]
        # Checkpoints often lie in the server's workspace, which has a startup folder, and the job's folder beside them.
        for above in self.log.parents:
            if (above / "startup").is_dir():
                configs += above.glob(f"*/{_DEPLOYED_CONFIG}")
        own = [file for file in configs if _log_of(file).resolve() == self.log.resolve()]
        return max(own, key=lambda file: file.stat().st_mtime).parents[2] if own else None

    @cached_property
    def began(self) -> float:
        """When FLARE set up the job, as time of a file; where its folder is gone, when the log changed last."""
        marks = [self.log] if self.run_dir is None else [self.run_dir / "meta.json", self.log]
        return next((file.stat().st_mtime for file in marks if file.is_file()), 0.0)

    @cached_property
    def _configs(self) -> Path | None:
        """The folder of the job's configuration."""
        if self.run_dir is None:
            return None
        # Beside a downloaded result lies the job as it was submitted.
        found = [
            *self.run_dir.glob(f"app*/config/{_SERVER_CONFIG}"),
            *self.run_dir.parent.glob(f"job/**/{_SERVER_CONFIG}"),
        ]
        return found[0].parent if found else None

    @cached_property
    def controller(self) -> dict[str, Any]:
        """Settings of the server's side; empty where there is no job configuration."""
        return _controller(self._configs / _SERVER_CONFIG) if self._configs else {}

    @cached_property
    def executor(self) -> dict[str, Any]:
        """Settings of the sites' side that the job has for all of them; empty where there is no job configuration."""
        executors = _read_json(self._configs / _CLIENT_CONFIG).get("executors") if self._configs else None
        return dict(executors[0].get("executor", {}).get("args", {})) if executors else {}

    @property
    def total(self) -> int | None:
        """Rounds in all."""
        return self.controller.get("num_rounds")

    @cached_property
    def meta(self) -> dict[str, Any]:
        """What FLARE knows of the job."""
        return _read_json(self.run_dir / "meta.json") if self.run_dir else {}

    @property
    def job_id(self) -> str | None:
        """FLARE's."""
        simulated = self.run_dir is not None and self.run_dir.name == _SIMULATED_JOB
        return self.meta.get("job_id") or (_SIMULATED_JOB if simulated else None)

    def complete(self, lines: list[dict[str, Any]]) -> bool:
        """Whether these are all lines of the run; without its configuration only a final validation tells."""
        if not lines:
            return False
        if self.total is None:
            return not lines[-1]["count"] and not lines[-1]["metrics"]
        validated = self.controller.get("validate_every", 1) > 0  # then a last line follows the rounds
        return lines[-1]["round"] + 1 >= self.total + validated

    def end(self) -> tuple[bool | None, str | None]:
        """Whether the server's own log says that the job is over (None: no log), and why it failed."""
        if self.run_dir is None:
            return None, None
        # A job's own log in a provisioned system; in the simulator that of the server.
        simulated = self.run_dir.name == _SIMULATED_JOB
        if not simulated and not self.run_dir.is_dir():
            return True, f"FLARE has put its folder away; how it ended says the command `follow {self.run_dir.name}`"
        file = (self.run_dir.parent if simulated else self.run_dir) / "log.txt"
        if not file.is_file():
            return None, None
        text = file.read_text(errors="replace")
        reasons = _FATAL.findall(text)
        return _ENDED in text or bool(reasons), reasons[-1] if reasons else None

    def manifests(self) -> dict[str, Path]:
        """Site to its egress manifest, of those that lie here."""
        root = self.workspace
        if self.run_dir is not None and self.run_dir.name == _SIMULATED_JOB:
            root = self.run_dir.parent.parent
        return {file.stem: file for file in sorted(root.rglob("egress/*.jsonl"))}


def find_runs(folder: Path) -> list[RunFolder]:
    """The runs in a folder, the one that changed last first; copies of one log count once.

    Args:
        folder: a workspace, a downloaded result, a folder of checkpoints, or a ``rounds.jsonl`` itself.

    Raises:
        ValueError: when there is no such folder.
    """
    if folder.is_file():
        return [RunFolder(folder.resolve(), folder.resolve().parent)]
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist: give the workspace of a run, or its {ROUNDS_FILE}")
    files = sorted(folder.resolve().rglob(ROUNDS_FILE), key=lambda file: file.stat().st_mtime, reverse=True)
    runs: dict[bytes, RunFolder] = {}
    for file in files:
        run, content = RunFolder(file, folder.resolve()), file.read_bytes()
        # Of a result and the checkpoints that it is a copy of, the one that lies beside its configuration.
        if content not in runs or (runs[content].meta == {} and run.meta):
            runs[content] = run
    return list(runs.values())


def latest_run(folder: Path) -> RunFolder | None:
    """The run whose job began last, which may not have finished a round yet; None where there is none.

    Raises:
        ValueError: as :func:`find_runs`.
    """
    runs = find_runs(folder)
    for config in folder.resolve().rglob(_DEPLOYED_CONFIG):
        run_dir = config.parents[2]
        # Not in a downloaded result, whose job is over.
        if run_dir.name == _read_json(run_dir / "meta.json").get("job_id", _SIMULATED_JOB):
            runs.append(RunFolder(_log_of(config), folder.resolve()))
    return max(runs, key=lambda run: run.began, default=None)


def _log_of(config: Path) -> Path:
    """Where a job of this configuration, deployed at the server, writes its log of rounds."""
    run_dir, chosen = config.parents[2], _controller(config).get("checkpoint_dir")
    if not chosen:
        return run_dir / "fcl" / ROUNDS_FILE
    return (Path(chosen) / "server" if Path(chosen).is_absolute() else run_dir.parent / chosen) / ROUNDS_FILE


def _controller(config: Path) -> dict[str, Any]:
    workflows = _read_json(config).get("workflows") or [{}]
    return dict(workflows[0].get("args", {}))


def _read_json(file: Path) -> dict[str, Any]:
    """Its content; nothing when it is missing or damaged."""
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError):
        return {}
