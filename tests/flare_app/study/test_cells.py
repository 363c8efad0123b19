from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fcl.evaluation.features import FEATURES_FILE
from fcl.evaluation.history import HISTORY_FILE
from flare_app.job import RESULTS
from flare_app.meter import Meter
from flare_app.steps import StepFailed
from flare_app.study import cells as module
from flare_app.study.bundle_runs import runs_done
from flare_app.study.cells import Cells
from flare_app.study.data import Cohort
from flare_app.study.plan import Cell

from .conftest import SPLIT, TRAINING

PRETRAINED = {**TRAINING, "method": "fcl", "exchange": "features", "set": {"batch_size": 4}}
FEDERATED = Cell("pretrain", "fcl", 1, 7, training=PRETRAINED)


@pytest.fixture
def cells(tmp_path: Path, console: Console) -> Cells:
    cohort = Cohort(tmp_path / "data", tmp_path / "out" / "split.json", SPLIT, 6, 12, 12)
    return Cells(tmp_path / "out", cohort, "phantom", 5, console)


class _Process:
    """Stands for a process: writes what it would have written, keeps its command."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, write: Callable[[list[str]], None], looks: bool = False
    ) -> None:
        self.command: list[str] = []
        self._write = write
        self._looks = looks
        monkeypatch.setattr(module, "run_process", self)

    def __call__(self, command: list[str], log: Path, meter: Meter, look: Callable[[], tuple[int, str]]) -> None:
        self.command = command
        self._write(command)
        if self._looks:
            look()

    def options(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, value in zip(self.command[5::2], self.command[6::2], strict=True):
            found.setdefault(name, []).append(value)
        return found


def _job(command: list[str]) -> None:
    results = Path(command[command.index("--workspace") + 1]) / RESULTS
    results.mkdir(parents=True)
    (results / "last.pt").write_text("weights")
    (results / "rounds.jsonl").write_text("{}\n")


def _bundle(names: list[str]) -> Callable[[list[str]], None]:
    def write(command: list[str]) -> None:
        for run in json.loads(Path(command[-1]).read_text()):
            folder = Path(run["options"]["output_dir"])
            (folder / "predictions").mkdir(parents=True)
            for name in names:
                (folder / name).write_text(folder.name)

    return write


def _runs(cells: Cells, cell: Cell) -> list[dict[str, Any]]:
    return json.loads((cells.folder(cell) / "runs.json").read_text())


def _files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_federation_is_a_job_of_which_weights_and_log_stay(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    process = _Process(monkeypatch, _job)
    cells.do(FEDERATED)
    assert process.command[1:5] == ["-m", "flare_app.job", "run", "fcl_pretrain"]
    options = process.options()
    assert options["--sites"] == ["2"]
    assert options["--rounds"] == ["2"]
    assert options["--seed"] == ["7"]
    assert options["--method"] == ["fcl"]
    assert options["--exchange"] == ["features"]
    assert options["--set"] == ["batch_size=4", "steps_per_epoch=3", "fold=1"]
    assert "--pretrained" not in options
    folder = cells.folder(FEDERATED)
    assert _files(folder) == ["model.pt", "rounds.jsonl", "site_settings.json"]
    settings = json.loads((folder / "site_settings.json").read_text())
    assert (settings["threads"], settings["site"], settings["data"]) == (2, "{SITE_NAME}", "phantom")
    assert cells.outputs(FEDERATED) == [folder / "model.pt", folder / "rounds.jsonl"]


def test_a_federation_without_all_sites_fails(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    common = {"seconds": 1.0, "metrics": {}, "validation": {}, "sites": {}, "accepted": ["site-1"]}
    lines = [
        {**common, "round": 0, "rejected": {}, "left_out": {}, "resting": ["site-2"]},
        {**common, "round": 1, "rejected": {"site-2": "no answer"}, "left_out": {}, "resting": []},
        # The final validation, after which the weights are what they were.
        {**common, "round": 2, "rejected": {"site-1": "late"}, "left_out": {"site-2": "absent"}, "resting": []},
    ]

    def write(command: list[str]) -> None:
        _job(command)
        rounds = Path(command[command.index("--workspace") + 1]) / RESULTS / "rounds.jsonl"
        rounds.write_text("".join(json.dumps(line) + "\n" for line in lines))

    _Process(monkeypatch, write, looks=True)
    with pytest.raises(StepFailed, match=r"Missing were site-2 from round 2 on \(no answer\)\. The whole log: .*\.log"):
        cells.do(FEDERATED)
    del lines[1]
    shutil.rmtree(cells.folder(FEDERATED))
    cells.do(FEDERATED)


def test_fine_tuning_in_a_federation_starts_from_the_encoder(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    process = _Process(monkeypatch, _job)
    cells.do(Cell("finetune", "fcl", 0, 3, "federated", 2, {**TRAINING, "set": {}}, FEDERATED))
    options = process.options()
    assert options["--pretrained"] == [str(cells.folder(FEDERATED) / "model.pt")]
    assert options["--set"] == ["steps_per_epoch=3", "fold=0", "annotated=2", "split_seed=3"]
    assert "--method" not in options


def test_fine_tuning_starts_from_an_encoder_of_another_study(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    process = _Process(monkeypatch, _job)
    cells.do(Cell("finetune", "moved", 0, 0, "federated", 1, {**TRAINING, "set": {}, "encoder": "/there/model.pt"}))
    assert process.options()["--pretrained"] == ["/there/model.pt"]


def test_sites_alone_are_runs_of_one_command(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    process = _Process(monkeypatch, _bundle(["model_last.pt", "model.pt", "resume.pt", HISTORY_FILE]))
    cell = Cell("finetune", "fcl", 0, 3, "local", 1, {**TRAINING, "where": "sites", "set": {}}, FEDERATED)
    cells.do(cell)
    runs = _runs(cells, cell)
    assert [run["options"]["site"] for run in runs] == ["site-1", "site-2"]
    assert [Path(file).name for file in runs[0]["config_file"]] == ["finetune.json", "phantom.json"]
    shown = {
        key: runs[0]["options"][key] for key in ("annotated", "split_seed", "max_epochs", "steps_per_epoch", "seed")
    }
    assert shown == {"annotated": 1, "split_seed": 3, "max_epochs": 2, "steps_per_epoch": 3, "seed": 3}
    assert {run["options"]["pretrained"] for run in runs} == {str(cells.folder(FEDERATED) / "model.pt")}
    assert process.command[process.command.index("--threads") + 1] == "5"
    kept = ["site-1.pt", "site-1_validation.csv", "site-2.pt", "site-2_validation.csv"]
    assert _files(cells.folder(cell)) == ["runs.json", *kept]
    assert sorted(cells.outputs(cell)) == [cells.folder(cell) / name for name in kept]
    assert {run["options"]["val_interval"] for run in runs} == {1}
    assert (cells.folder(cell) / "site-2.pt").read_text() == "work_site-2"


@pytest.mark.parametrize(("every", "interval", "kept"), [(0, 2, False), (1, 1, True), (5, 2, True)])
def test_validations_stay_where_they_are_asked_for(
    every: int, interval: int, kept: bool, cells: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Process(monkeypatch, _bundle(["model_last.pt", HISTORY_FILE]))
    training = {**TRAINING, "where": "pool", "validate_every": every, "set": {}}
    cell = Cell("finetune", "fcl", 0, 3, "local", 1, training)
    cells.do(cell)
    (run,) = _runs(cells, cell)
    assert run["options"]["val_interval"] == interval
    assert _files(cells.folder(cell)) == [*(["all_validation.csv"] if kept else []), "model.pt", "runs.json"]
    assert len(cells.outputs(cell)) == 1 + kept


def test_some_of_the_sites_can_stand_for_all(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    _Process(monkeypatch, _bundle(["model_last.pt", "model.pt", "resume.pt", HISTORY_FILE]))
    training = {**TRAINING, "where": "sites", "alone": 1, "set": {}}
    cell = Cell("finetune", "fcl", 0, 3, "local", 1, training, FEDERATED)
    cells.do(cell)
    assert [run["options"]["site"] for run in _runs(cells, cell)] == ["site-1"]
    assert cells.outputs(cell) == [cells.folder(cell) / name for name in ("site-1.pt", "site-1_validation.csv")]
    assert set(cells.evaluations(Cell("evaluate", "fcl", 0, 3, "local", 1, {}, cell))) == {"site-1"}


def test_sites_go_on_from_encoders_of_their_own_a_federation_from_the_first(
    cells: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Cell("pretrain", "local_cl", 0, 0, training={**PRETRAINED, "where": "sites"})
    _Process(monkeypatch, _bundle(["model.pt", HISTORY_FILE]))
    local = Cell("finetune", "local_cl", 0, 0, "local", 1, {**TRAINING, "where": "sites", "set": {}}, own)
    cells.do(local)
    names = [Path(run["options"]["pretrained"]).name for run in _runs(cells, local)]
    assert names == ["site-1.pt", "site-2.pt"]
    process = _Process(monkeypatch, _job)
    cells.do(Cell("finetune", "local_cl", 0, 0, "federated", 1, {**TRAINING, "set": {}}, own))
    assert process.options()["--pretrained"] == [str(cells.folder(own) / "site-1.pt")]


def test_pooled_training_takes_the_steps_of_all_sites(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    _Process(monkeypatch, _bundle(["model.pt"]))
    cell = Cell("pretrain", "centralised", 0, 0, training={**PRETRAINED, "where": "pool"})
    cells.do(cell)
    (run,) = _runs(cells, cell)
    assert run["options"]["steps_per_epoch"] == 2 * 3
    assert "site" not in run["options"]
    assert [Path(file).name for file in run["config_file"]] == ["pretrain.json", "fcl.json", "phantom.json"]
    assert _files(cells.folder(cell)) == ["model.pt", "runs.json"]


def test_evaluation_keeps_scores_and_draws_the_worst_volume_of_each_model(
    cells: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = Cell("finetune", "fcl", 1, 0, "local", 1, {**TRAINING, "where": "sites"})
    cell = Cell("evaluate", "fcl", 1, 0, "local", 1, {"set": {"largest_component": True}}, tuned)
    _Process(monkeypatch, _bundle(["scores.csv"]))
    cells.do(cell)
    runs = _runs(cells, cell)
    assert [Path(run["options"]["ckpt"]).name for run in runs] == ["site-1.pt", "site-2.pt"]
    assert {(run["options"]["fold"], run["options"]["largest_component"]) for run in runs} == {(1, True)}
    # Each model on the patients of all sites.
    assert not any("site" in run["options"] for run in runs)
    assert all(run["options"]["overlays"] == ["worst"] for run in runs)
    assert _files(cells.folder(cell)) == ["runs.json", "site-1/scores.csv", "site-2/scores.csv"]
    assert not list(cells.folder(cell).rglob("predictions"))


def test_features_are_of_a_random_and_of_the_pretrained_encoder(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    _Process(monkeypatch, _bundle([FEATURES_FILE]))
    cell = Cell("features", "fcl", 1, 7, training={"set": {"partitions": 6}}, after=FEDERATED)
    cells.do(cell)
    runs = _runs(cells, cell)
    assert [Path(file).name for file in runs[0]["config_file"]] == ["finetune.json", "features.json", "phantom.json"]
    assert ["pretrained" in run["options"] for run in runs] == [False, False, True, True]
    assert {run["options"]["partitions"] for run in runs} == {6}
    assert all(file.is_file() for file in cells.outputs(cell))


def test_runs_done_are_read_from_the_log() -> None:
    assert runs_done("") == 0
    assert runs_done("x\nrun 1/3 done\nepoch 3/10, loss 1.0\nrun 2/3 done\n") == 2
