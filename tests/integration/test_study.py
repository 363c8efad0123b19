"""A study from the command line to its report, with real trainings on a tiny phantom."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from flare_app.study import __main__ as command

TRAINING = {"rounds": 1, "steps": 2, "validate_every": 1, "set": {"batch_size": 4}}
STUDY: dict[str, Any] = {
    "title": "Tiny",
    "data": "phantom",
    "phantom": {"seed": 0},
    "sites": 2,
    "patients": 2,
    "folds": 2,
    "references": ["random"],
    "set": {"spatial_size": [32, 32], "pixdim": [6.0, 6.0], "channels": [4, 8], "norm": ["group", {"num_groups": 2}]},
    "pretrain": {"where": "federation", **TRAINING},
    "finetune": {"local": {"where": "sites", **TRAINING}},
    "arms": {"random": {}, "fcl": {"pretrain": {"method": "fcl", "exchange": "features"}}},
    "run": {"annotated": [1], "seeds": [0], "folds": [0]},
}


@pytest.mark.slow
def test_study_goes_on_where_it_stopped_and_reports_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("FCL_CACHE_DIR", str(tmp_path / "phantom"))
    monkeypatch.setattr(command, "end_like_ctrl_c", lambda: None)
    (tmp_path / "study.json").write_text(json.dumps(STUDY))
    out = tmp_path / "out"

    def run_study(*options: str) -> str:
        assert (
            command.main(["--config", str(tmp_path / "study.json"), "--out", str(out), "--threads", "1", *options]) == 0
        )
        return capsys.readouterr().out

    first = run_study("--arms", "random")
    assert "2 cells, 0 finished before" in first
    rest = run_study()
    assert "6 cells, 2 finished before" in rest
    assert "finetune_random" not in rest
    with (out / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    # Arms, sites' models, held-out patients, phases, structures.
    assert len(rows) == 2 * 2 * 2 * 2 * 3
    assert {row["model"] for row in rows} == {"site-1", "site-2"}
    kept = sorted(str(file.relative_to(out / "cells")) for file in (out / "cells").rglob("*.pt"))
    assert kept == [
        "finetune_fcl_n1_local_fold0_seed0/site-1.pt",
        "finetune_fcl_n1_local_fold0_seed0/site-2.pt",
        "finetune_random_n1_local_fold0_seed0/site-1.pt",
        "finetune_random_n1_local_fold0_seed0/site-2.pt",
        "pretrain_fcl_fold0_seed0/model.pt",
    ]
    assert not list((out / "cells").rglob("predictions"))
    assert "encoder" in (out / "logs" / "finetune_fcl_n1_local_fold0_seed0.log").read_text()
    page = (out / "report.html").read_text()
    for what in ("Label efficiency", "Feature space", "Worst volumes", "Bytes and minutes", "fcl − random"):
        assert what in page, what
    assert "http" not in re.sub('base64,[^"]*', "", page)
