"""Does one cell of a study: a federation in FLARE's simulator, each site alone, or all data in one place."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console

import fcl
from flare_app.job import RESULTS
from flare_app.meter import Look, Meter
from flare_app.records import ROUNDS_FILE, read_rounds
from flare_app.rounds_view import look_at_rounds
from flare_app.steps import StepFailed, read_progress, run_process
from flare_app.study.bundle_runs import runs_done
from flare_app.study.data import Cohort
from flare_app.study.plan import STAGES, Cell
from flare_app.study.settings import steps_together

MODEL = "model.pt"
SCORES = "scores.csv"
STATES = ("before", "after")
# A configuration of the bundle, overlays between it and the data's, and options.
_Run: TypeAlias = tuple[str, list[str], Mapping[str, Any]]
_ALL = "all"  # stands for the model of all sites where others have one for each


@dataclass(frozen=True)
class Cells:
    """Does cells and knows where they keep what they made.

    Args:
        out: the study's folder.
        cohort: its patients.
        data: overlay in the bundle's ``configs/data``.
        threads: of torch, for all processes together.
        console: shows progress.
    """

    out: Path
    cohort: Cohort
    data: str
    threads: int
    console: Console

    def folder(self, cell: Cell) -> Path:
        return self.out / "cells" / cell.name

    def log(self, cell: Cell) -> Path:
        return self.out / "logs" / f"{cell.name}.log"

    def rounds(self, cell: Cell) -> Path:
        """The federation's log of rounds; there is none where no federation trained."""
        return self.folder(cell) / ROUNDS_FILE

    def models(self, cell: Cell) -> dict[str, Path]:
        """Whose model, to its file: ``all``, or each site."""
        if cell.training["where"] == "sites":
            sites = self.cohort.sites[: cell.training.get("alone")]
            return {site: self.folder(cell) / f"{site}.pt" for site in sites}
        return {_ALL: self.folder(cell) / MODEL}

    def histories(self, cell: Cell) -> dict[str, Path]:
        """Whose fine-tuning, to the file of its validations; none in a federation, whose log of rounds has them."""
        from fcl.evaluation.history import HISTORY_FILE

        training = cell.training
        if cell.stage != "finetune" or training["where"] == "federation" or not training["validate_every"]:
            return {}
        return {who: self.folder(cell) / f"{who}_{HISTORY_FILE}" for who in self.models(cell)}

    def evaluations(self, cell: Cell) -> dict[str, Path]:
        """Whose model, to the folder of its scores."""
        assert cell.after is not None
        return {who: self.folder(cell) / who for who in self.models(cell.after)}

    def features(self, cell: Cell) -> dict[str, dict[str, Path]]:
        """State of the encoder, to each site's file of features."""
        from fcl.evaluation.features import FEATURES_FILE

        return {
            state: {site: self.folder(cell) / state / site / FEATURES_FILE for site in self.cohort.sites}
            for state in STATES
        }

    def outputs(self, cell: Cell) -> list[Path]:
        """Files that a finished cell has written."""
        if cell.stage == "evaluate":
            return [folder / SCORES for folder in self.evaluations(cell).values()]
        if cell.stage == "features":
            return [file for files in self.features(cell).values() for file in files.values()]
        logs = [self.rounds(cell)] if cell.training["where"] == "federation" else []
        return [*self.models(cell).values(), *self.histories(cell).values(), *logs]

    def do(self, cell: Cell) -> None:
        """Do it, and remove what nothing needs afterwards.

        Raises:
            StepFailed: when a process ends with an error, or not all sites took part in a federation.
        """
        if cell.stage == "evaluate":
            self._evaluate(cell)
        elif cell.stage == "features":
            self._write_features(cell)
        elif cell.training["where"] == "federation":
            self._federate(cell)
        else:
            self._train_here(cell)

    def _federate(self, cell: Cell) -> None:
        """A job in the simulator; of its workspace the last global weights and the log of rounds stay."""
        training, folder = cell.training, self.folder(cell)
        folder.mkdir(parents=True)
        workspace, settings = folder / "workspace", folder / "site_settings.json"
        sites = len(self.cohort.sites)
        threads = max(1, self.threads // sites)
        site = {"dataset_dir": str(self.cohort.dataset_dir), "data": self.data, "site": "{SITE_NAME}"}
        site |= {"split_file": str(self.cohort.split_file), "cache_dir": self._cache}
        settings.write_text(json.dumps({**site, "threads": threads}, indent=2))
        command = [sys.executable, "-m", "flare_app.job", "run", STAGES[cell.stage][2]]
        options = {
            "sites": sites,
            "workspace": workspace,
            "rounds": training["rounds"],
            "validate-every": training["validate_every"],
            "seed": cell.seed,
            "site-settings": settings,
            "method": training.get("method"),
            "exchange": training.get("exchange"),
            "sites-per-round": training.get("sites_per_round"),
            "pretrained": self._start(cell).get(_ALL),
        }
        for name, value in options.items():
            command += [f"--{name}", str(value)] if value is not None else []
        for key, value in self._keys(cell).items():
            command += ["--set", f"{key}={json.dumps(value)}"]
        rounds = workspace / RESULTS / ROUNDS_FILE

        def look() -> Look:
            self._require_all_sites(cell, rounds)  # hours before it ends
            return look_at_rounds(rounds, training["rounds"])

        with Meter(self.console, f"{cell.name}, rounds", training["rounds"]) as meter:
            run_process(command, self.log(cell), meter, look)
        shutil.move(workspace / RESULTS / "last.pt", folder / MODEL)
        shutil.move(rounds, folder / ROUNDS_FILE)
        shutil.rmtree(workspace)

    def _require_all_sites(self, cell: Cell, rounds: Path) -> None:
        lines = read_rounds(rounds) if rounds.is_file() else []
        missing = _missing([line for line in lines if line["round"] < cell.training["rounds"]])
        if missing:
            raise StepFailed(
                f"{cell.name}: without all sites it could not be compared with others. Missing were {missing}. "
                f"The whole log: {self.log(cell)}. Once that is mended, the same command does this cell again"
            )

    def _train_here(self, cell: Cell) -> None:
        """Each site alone, or all together; of a run the last weights stay, and its validations where it has any."""
        from fcl.evaluation.history import HISTORY_FILE

        base, overlays, _ = STAGES[cell.stage]
        training, start = cell.training, self._start(cell)
        method = [f"{overlays}/{training['method']}.json"] if training.get("method") else []
        pooled = training["where"] == "pool"
        runs: list[_Run] = []
        works: dict[str, Path] = {}
        for who in self.models(cell):
            works[who] = work = self.folder(cell) / f"work_{who}"
            encoder = start.get(who, start.get(_ALL))
            keys = self._keys(cell)
            if pooled:  # as many steps as the sites of a federation take together
                keys["steps_per_epoch"] = steps_together(training, len(self.cohort.sites))
            options = {
                **keys,
                "cache_dir": self._cache,
                "max_epochs": training["rounds"],
                "val_interval": min(training["validate_every"] or training["rounds"], training["rounds"]),
                "seed": cell.seed,
                "output_dir": str(work),
                **({} if pooled else {"site": who}),
                **({"pretrained": str(encoder)} if encoder else {}),
            }
            runs.append((base, [*method], options))
        self._run_bundle(cell, runs)
        for who, model in self.models(cell).items():
            work = works[who]
            shutil.move(next(work / name for name in ("model_last.pt", MODEL) if (work / name).is_file()), model)
        for who, history in self.histories(cell).items():
            shutil.move(works[who] / HISTORY_FILE, history)
        for work in works.values():
            shutil.rmtree(work)

    def _evaluate(self, cell: Cell) -> None:
        """Every model on the held-out patients of all sites; of the pictures only the worst volume's is drawn."""
        assert cell.after is not None
        models = self.models(cell.after)
        runs: list[_Run] = []
        for who, folder in self.evaluations(cell).items():
            keys = {"fold": cell.fold, "ckpt": str(models[who]), "output_dir": str(folder), "overlays": ["worst"]}
            runs.append(("evaluate.json", [], {**cell.training["set"], **keys}))
        self._run_bundle(cell, runs)
        for folder in self.evaluations(cell).values():
            shutil.rmtree(folder / "predictions")

    def _write_features(self, cell: Cell) -> None:
        assert cell.after is not None
        encoders = self.models(cell.after)
        runs: list[_Run] = []
        for state, files in self.features(cell).items():
            for site, file in files.items():
                keys = {"fold": cell.fold, "site": site, "seed": cell.seed, "cache_dir": self._cache}
                keys |= cell.training["set"]
                if state == "after":
                    keys["pretrained"] = str(encoders.get(site, encoders.get(_ALL)))
                runs.append(("finetune.json", ["features.json"], {**keys, "output_dir": str(file.parent)}))
        self._run_bundle(cell, runs)

    def _run_bundle(self, cell: Cell, runs: Sequence[_Run]) -> None:
        configs, folder, log = fcl.bundle_root() / "configs", self.folder(cell), self.log(cell)
        folder.mkdir(parents=True)
        common = {"dataset_dir": str(self.cohort.dataset_dir), "split_file": str(self.cohort.split_file)}
        entries = [
            {
                "config_file": [str(configs / name) for name in (base, *overlays, f"data/{self.data}.json")],
                "options": {**common, **options},
            }
            for base, overlays, options in runs
        ]
        (folder / "runs.json").write_text(json.dumps(entries, indent=2))
        command = [sys.executable, "-m", "flare_app.study.bundle_runs", "--threads", str(self.threads)]
        command += [str(folder / "runs.json")]

        def look() -> tuple[int, str]:
            text = log.read_text(errors="replace")
            return runs_done(text), read_progress(text, 1)[1]

        with Meter(self.console, f"{cell.name}, runs", len(runs)) as meter:
            run_process(command, log, meter, look)

    def _start(self, cell: Cell) -> dict[str, Path]:
        """Whose pre-trained encoder, to its file; nothing for a random start.

        Where each site has pre-trained an encoder of its own, a federation starts from the first site's: their mean
        would be that of networks that have little in common.
        """
        if cell.training.get("encoder"):
            return {_ALL: Path(cell.training["encoder"])}
        if cell.after is None:
            return {}
        encoders = self.models(cell.after)
        return {_ALL: next(iter(encoders.values())), **encoders}

    def _keys(self, cell: Cell) -> dict[str, Any]:
        """Keys of the bundle's configuration that a training is given."""
        annotated = {"annotated": cell.annotated, "split_seed": cell.seed} if cell.annotated else {}
        return {
            **cell.training["set"], "steps_per_epoch": cell.training["steps"], "fold": cell.fold, **annotated
        }  # fmt: skip

    @property
    def _cache(self) -> str:
        return str(self.out / "cache")


def _missing(lines: Sequence[Mapping[str, Any]]) -> str:
    """Sites that did not do their part in some round, with the round and the reason; those that rested did."""
    first: dict[str, str] = {}
    for line in lines:
        for site, reason in {**line["left_out"], **line["rejected"]}.items():
            first.setdefault(site, f"{site} from round {line['round'] + 1} on ({reason})")
    return ", ".join(first.values())


def all_threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
