from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from flare_app.steps import StepFailed
from flare_app.study.cells import Cells
from flare_app.study.loading import load_study
from flare_app.study.plan import Cell, plan
from flare_app.study.run import Ledger, run_cells, time_left
from flare_app.study.settings import Study

from .conftest import SPLIT, FakeCells


class _Counting(FakeCells):
    """Counts what it does, and is cut short at one cell."""

    done: list[str]
    cut: str

    def do(self, cell: Cell) -> None:
        if cell.name == self.cut:
            self.folder(cell).mkdir(parents=True)
            raise KeyboardInterrupt
        self.done.append(cell.name)
        super().do(cell)


def _worker(cells: Cells, cut: str = "") -> _Counting:
    worker = _Counting(**vars(cells))
    object.__setattr__(worker, "done", [])
    object.__setattr__(worker, "cut", cut)
    return worker


def _run(study: Study, worker: _Counting, console: Console) -> None:
    run_cells(plan(study, study.select(), SPLIT), Ledger(worker.out, worker, console), console, lambda cell: None)


def test_a_cut_loses_one_cell(study: Study, cells: FakeCells, console: Console) -> None:
    cut = _worker(cells, "finetune_fcl_n1_local_fold0_seed0")
    with pytest.raises(KeyboardInterrupt):
        _run(study, cut, console)
    rest, idle = _worker(cells), _worker(cells)
    _run(study, rest, console)
    everything = [cell.name for cell in plan(study, study.select(), SPLIT)]
    assert cut.done + rest.done == everything
    assert rest.done[0] == cut.cut
    _run(study, idle, console)
    assert idle.done == []


def test_a_changed_setting_redoes_what_depends_on_it(study_file: Path, cells: FakeCells, console: Console) -> None:
    _run(load_study([study_file]), _worker(cells), console)
    again, said = _worker(cells), Console(file=io.StringIO(), width=200)
    _run(load_study([study_file], changes={"finetune::local::steps": 9}), again, said)
    assert again.done
    assert isinstance(said.file, io.StringIO)
    assert "18 cells, 10 finished before, 8 done again since their settings" in said.file.getvalue()
    assert all("_local_" in name for name in again.done)
    pretrained = _worker(cells)
    _run(load_study([study_file], changes={"finetune::local::steps": 9, "pretrain::steps": 9}), pretrained, console)
    assert pretrained.done[0] == "pretrain_fcl_fold0_seed0"
    assert not [name for name in pretrained.done if "random" in name]


def test_a_lost_checkpoint_is_made_again_with_what_follows(study: Study, cells: FakeCells, console: Console) -> None:
    _run(study, _worker(cells), console)
    (cells.out / "cells" / "pretrain_fcl_fold0_seed0" / "model.pt").unlink()
    again = _worker(cells)
    _run(study, again, console)
    assert {name.split("_")[1] for name in again.done} == {"fcl"}


def test_a_failing_cell_ends_the_study_and_keeps_the_rest(study: Study, cells: FakeCells, console: Console) -> None:
    class Failing(_Counting):
        def do(self, cell: Cell) -> None:
            if cell.arm == "fcl" and cell.stage == "evaluate":
                raise StepFailed("the log")
            super().do(cell)

    worker = Failing(**vars(cells))
    object.__setattr__(worker, "done", [])
    object.__setattr__(worker, "cut", "")
    with pytest.raises(StepFailed, match="the log"):
        _run(study, worker, console)
    ledger = Ledger(worker.out, worker, console)
    assert [ledger.seconds(c) is None for c in plan(study, study.select(), SPLIT)][:5] == [False] * 5


def test_progress_names_the_cell_and_the_time_left(study: Study, cells: FakeCells) -> None:
    console = Console(file=io.StringIO(), width=200)
    _run(study, _worker(cells), console)
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert "18 cells, 0 finished before" in printed
    assert "cell 1/18: pretrain_fcl_fold0_seed0; 18 cells of a kind not yet timed" in printed
    assert "cell 18/18: evaluate_fcl_n2_federated_fold0_seed0; about 0 s left" in printed


def test_time_left_is_that_of_like_cells() -> None:
    local, federated = (Cell("finetune", "a", 0, 0, mode, 1, {"where": "sites"}) for mode in ("local", "federated"))
    known = {local.kind: [100.0, 140.0]}
    assert time_left([local] * 2, known) == "about 4 min left"
    assert time_left([local] * 60 + [federated], known) == "about 2 h 00 min left and 1 cells of a kind not yet timed"
    assert time_left([], known) == ""


def test_time_left_grows_with_the_steps_and_does_not_mix_methods() -> None:
    spec = {"where": "sites", "rounds": 3, "steps": 10}
    short, longer, other = (
        Cell("finetune", "a", 0, 0, "local", 1, {**spec, **own})
        for own in ({}, {"rounds": 9}, {"method": "mean_teacher"})
    )
    assert time_left([longer], {short.kind: [4.0]}) == "about 6 min left"
    assert time_left([other], {short.kind: [4.0]}) == "1 cells of a kind not yet timed"


def test_markers_hold_the_configuration(study: Study, cells: FakeCells, console: Console) -> None:
    _run(study, _worker(cells), console)
    first = plan(study, study.select(), SPLIT)[0]
    marker = json.loads((cells.out / "steps" / f"{first.name}.json").read_text())
    assert marker["key"]["arguments"] == {"configuration": first.configuration}
