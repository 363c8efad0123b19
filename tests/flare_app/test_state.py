from __future__ import annotations

import errno
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from fcl.networks.weights import CheckpointError, read_card, read_weights
from flare_app.state import RunState, SiteState, SiteStates, random_state, seed_everything, set_random_state
from flare_app.storage import StorageError


def _state(round_number: int = 1) -> RunState:
    state = RunState(
        {"w": torch.full((2,), float(round_number))},
        round_number,
        config_hash="abc",
        settings={"config": ["configs/fake.json"], "seed": 3},
        best={"round": 1, "value": 0.5},
    )
    state.count_round(["a", "b"], ["c"])
    return state


def test_run_state_survives_the_disk(tmp_path: Path) -> None:
    _state().save(tmp_path)
    loaded = RunState.load(tmp_path)
    assert loaded is not None
    assert torch.equal(loaded.weights["w"], _state().weights["w"])
    assert loaded.state_dict() == _state().state_dict()
    assert loaded.card() == read_card(tmp_path / "last.pt") == json.loads((tmp_path / "last.card.json").read_text())
    assert loaded.sites == {
        "a": {"accepted": 1, "rejected": 0},
        "b": {"accepted": 1, "rejected": 0},
        "c": {"accepted": 0, "rejected": 1},
    }


def test_what_averaging_keeps_lies_beside_the_checkpoint_of_its_round_and_is_no_part_of_it(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        state = _state(number)
        state.averaging = {"w": torch.full((2,), number / 8)}
        state.save(tmp_path)
    assert _names(tmp_path) == ["last.card.json", "last.pt", "previous.pt", "resume_00002.pt", "resume_00003.pt"]
    assert read_weights(tmp_path / "last.pt").keys() == {"w"}
    for number, spoil in ((3, lambda file: file.write_bytes(b"damaged")), (2, lambda file: file.unlink())):
        loaded = RunState.load(tmp_path)
        assert loaded is not None
        assert (loaded.round, loaded.averaging["w"].tolist()) == (number, [number / 8] * 2)
        spoil(tmp_path / f"resume_{number:05d}.pt")  # then its checkpoint is of no use either
    with pytest.raises(CheckpointError):
        RunState.load(tmp_path)


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert RunState.load(tmp_path) is None


@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_damaged_state_gives_way_to_the_previous_and_two_damaged_ones_are_an_error(tmp_path: Path, damage: str) -> None:
    for number in (1, 2, 3):
        _state(number).save(tmp_path)
    for name, left in (("last.pt", 2), ("previous.pt", None)):
        file = tmp_path / name
        whole = file.read_bytes()
        middle = len(whole) // 2
        file.write_bytes(whole[:middle] if damage == "truncated" else whole[:40] + bytes(middle) + whole[40 + middle :])
        if left is not None:
            loaded = RunState.load(tmp_path)
            assert loaded is not None
            assert loaded.round == left
            assert loaded.weights["w"].tolist() == [left] * 2
    with pytest.raises(CheckpointError, match=r"none of .*last.pt, .*previous.pt can be read"):
        RunState.load(tmp_path)


def test_crash_between_the_two_renames_leaves_the_last_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        _state(number).save(tmp_path)
    original, calls = os.replace, []

    def replace(source: Path, target: Path) -> None:
        calls.append(Path(target).name)
        if calls[-1] == "last.pt":
            raise KeyboardInterrupt
        original(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        _state(3).save(tmp_path)
    assert calls == ["resume_00003.pt", "next.pt", "previous.pt", "last.pt"]
    assert read_card(tmp_path / "last.pt")["rounds"] == 2
    loaded = RunState.load(tmp_path)
    assert loaded is not None
    assert loaded.round == 2


def _full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("function", ["torch.save", "os.replace", "os.fsync"])
def test_full_disk_names_the_folder_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    _state(1).save(tmp_path / "server")
    states = SiteStates(tmp_path / "site")
    states.save(SiteState(1, {"bank": torch.ones(2)}, random_state()))
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with monkeypatch.context() as patched:
        patched.setattr(function, _full)
        with pytest.raises(
            StorageError, match=r"after round 2 cannot be written to .*/server: No space left on device"
        ):
            _state(2).save(tmp_path / "server")
        with pytest.raises(StorageError, match=r"state after round 2 cannot be written to .*/site: No space left"):
            states.save(SiteState(2, {"bank": torch.ones(2)}, random_state()))
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_folder_that_cannot_be_written_is_found_before_the_first_round(tmp_path: Path) -> None:
    SiteStates(tmp_path / "fine").check()
    assert list((tmp_path / "fine").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"this site's state cannot be written to .*/file/site: Not a directory"):
        SiteStates(tmp_path / "file/site").check()


def test_site_states_keep_three_and_go_back_by_two(tmp_path: Path) -> None:
    states = SiteStates(tmp_path / "site")
    assert states.load(5) is None
    for number in range(1, 6):
        states.save(SiteState(number, {"bank": torch.full((3,), number)}, random_state()))
    assert _names(tmp_path / "site") == ["round_00003.pt", "round_00004.pt", "round_00005.pt"]
    for wanted, found in ((5, 5), (4, 4), (3, 3), (9, 5)):
        state = states.load(wanted)
        assert state is not None
        assert state.round == found
        assert state.participant["bank"].tolist() == [found] * 3
    assert states.load(2) is None
    (tmp_path / "site" / "round_00005.pt").write_bytes(b"half")
    state = states.load(5)
    assert state is not None
    assert state.round == 4
    states.clear()
    assert states.load(9) is None


def test_rounds_that_are_done_anew_replace_the_later_ones(tmp_path: Path) -> None:
    states = SiteStates(tmp_path)
    for number in (1, 2, 3):
        states.save(SiteState(number, {}, {}))
    states.save(SiteState(2, {"again": True}, {}))
    assert _names(tmp_path) == ["round_00001.pt", "round_00002.pt"]
    state = states.load(3)
    assert state is not None
    assert state.participant == {"again": True}


def _names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def _draw() -> tuple[float, float, list[float]]:
    return random.random(), float(np.random.rand()), torch.rand(3).tolist()


def test_random_state_restores_all_generators_through_a_file(tmp_path: Path) -> None:
    seed_everything(3)
    np.random.randn()  # leaves a second Gaussian in store
    torch.save(random_state(), tmp_path / "rng.pt")
    expected = _draw()
    _draw()
    set_random_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert _draw() == expected
    seed_everything(3)
    first = _draw()
    seed_everything(4)
    assert _draw() != first
