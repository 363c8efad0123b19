from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from fcl.evaluation import CaseScore, ClassScore, write_csv
from flare_app.study.cells import Cells
from flare_app.study.data import Cohort
from flare_app.study.loading import load_study
from flare_app.study.plan import Cell
from flare_app.study.settings import Study

TRAINING = {"where": "federation", "rounds": 2, "steps": 3, "validate_every": 1}
CONTENT: dict[str, Any] = {
    "title": "A study",
    "data": "phantom",
    "sites": 2,
    "folds": 2,
    "references": ["random"],
    "pretrain": TRAINING,
    "finetune": {"local": {**TRAINING, "where": "sites"}, "federated": TRAINING},
    "arms": {
        "random": {},
        "fcl": {"label": "FCL", "published": "FCL", "pretrain": {"method": "fcl", "exchange": "features"}},
        "fcl_slow": {
            "pretrain": {"method": "fcl", "exchange": "features"},
            "finetune": {"local": {"set": {"learning_rate": 0.0001}}},
        },
    },
    "run": {"annotated": [1, 2], "seeds": [0], "arms": ["random", "fcl"], "folds": [0]},
    "presets": {"small": {}, "large": {"pretrain": {"rounds": 9}, "run": {"annotated": [1]}}},
}
SPLIT = {"sites": {name: {"folds": [[f"{name}a"], [f"{name}b", f"{name}c"]]} for name in ("site-1", "site-2")}}


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    file = tmp_path / "study.json"
    file.write_text(json.dumps(CONTENT))
    return file


@pytest.fixture
def study(study_file: Path) -> Study:
    return load_study([study_file])


def arms_file(folder: Path, **arms: Any) -> Path:
    """A file with arms to lay over the study's own."""
    file = folder / "arms.json"
    file.write_text(json.dumps({"arms": arms}))
    return file


class FakeCells(Cells):
    """Writes at once what a cell would have written after training."""

    def do(self, cell: Cell) -> None:
        self.folder(cell).mkdir(parents=True)
        for file in self.outputs(cell):
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.name == "scores.csv":
                _write_scores(file, 0.5 + 0.1 * cell.annotated + (0.05 if cell.arm == "fcl" else 0.0))
            elif file.name == "features.npz":
                rng = np.random.default_rng(0)
                np.savez(file, features=rng.normal(size=(12, 4)), partition=np.arange(12) % 4)
            elif file.name.endswith("validation.csv"):
                file.write_text("epoch,steps,mean_dice,dice_a\n1,3,0.300000,0.2\n2,6,0.400000,\n")
            elif file.name == "rounds.jsonl":
                file.write_text("".join(json.dumps(_line(number)) + "\n" for number in range(3)))
            else:
                file.write_text(cell.name)


def _write_scores(file: Path, dice: float) -> None:
    cases = [
        CaseScore(f"{patient}_{phase}", patient, phase, {name: _score(value) for name in "ab"})
        for patient, shift in (("site-1a", 0.0), ("site-2a", 0.1))
        for phase, value in (("ED", dice + shift), ("ES", dice - shift))
    ]
    write_csv(cases, file)
    Figure(figsize=(0.2, 0.2)).savefig(file.parent / "overlay_worst_site-2a_ES.png")


def _score(dice: float) -> ClassScore:
    return ClassScore(dice, 2.0, 1.0, in_truth=True, in_prediction=True)


def _line(number: int) -> dict[str, Any]:
    sizes = {f"bytes_{what}": 2**20 for what in ("weights_down", "weights_up", "features_down", "features_up")}
    validation = {"partition_knn": 0.3 + 0.1 * number, "mean_dice": 0.5, "count": 2.0}
    sites = {name: {**sizes, "validation": validation} for name in ("site-1", "site-2")}
    return {
        "round": number,
        "count": 4,
        "metrics": {"loss": 3.0 - number},
        "validation": {"partition_knn": 0.3 + 0.1 * number, "mean_dice": 0.5},
        "sites": sites,
    }


@pytest.fixture
def cells(tmp_path: Path, console: Console) -> FakeCells:
    out = tmp_path / "out"
    cohort = Cohort(tmp_path / "data", out / "split.json", SPLIT, patients=6, volumes=12, labelled=12)
    return FakeCells(out, cohort, "phantom", 1, console)
