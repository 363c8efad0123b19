from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from fcl.networks.weights import CheckpointError
from flare_app.state import RunState, SiteState, SiteStates, random_state, seed_everything, set_random_state


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
    assert loaded.sites == {
        "a": {"accepted": 1, "rejected": 0},
        "b": {"accepted": 1, "rejected": 0},
        "c": {"accepted": 0, "rejected": 1},
    }


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert RunState.load(tmp_path) is None


def test_damaged_state_gives_way_to_the_previous_and_two_damaged_ones_are_an_error(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        _state(number).save(tmp_path)
    (tmp_path / "last.pt").write_bytes(b"half")
    loaded = RunState.load(tmp_path)
    assert loaded is not None
    assert loaded.round == 2
    (tmp_path / "previous.pt").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"none of .*last.pt, .*previous.pt can be read"):
        RunState.load(tmp_path)


def test_site_states_keep_two_and_go_back_by_one(tmp_path: Path) -> None:
    states = SiteStates(tmp_path / "site")
    assert states.load(5) is None
    for number in range(1, 5):
        states.save(SiteState(number, {"bank": torch.full((3,), number)}, random_state()))
    assert sorted(file.name for file in (tmp_path / "site").iterdir()) == ["round_00003.pt", "round_00004.pt"]
    for wanted, found in ((4, 4), (3, 3), (9, 4)):
        state = states.load(wanted)
        assert state is not None
        assert state.round == found
        assert state.participant["bank"].tolist() == [found] * 3
    assert states.load(2) is None
    (tmp_path / "site" / "round_00004.pt").write_bytes(b"half")
    state = states.load(4)
    assert state is not None
    assert state.round == 3
    states.clear()
    assert states.load(9) is None


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
