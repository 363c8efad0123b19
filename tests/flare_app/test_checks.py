from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from flare_app.checks import disagreement, other_run, restarting_sites
from flare_app.state import RunState


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        (SimpleNamespace(threads=4, gpu=None), False),
        (SimpleNamespace(threads=5, gpu=None), False),
        (SimpleNamespace(threads=3, gpu=None), True),
        (SimpleNamespace(threads=1, gpu="0,1,2,3"), False),
        (SimpleNamespace(threads=1, gpu="[0,1],[2,3]"), True),
        (SimpleNamespace(threads=4, gpu="0"), False),
        (SimpleNamespace(threads=1, gpu="0"), True),
        (SimpleNamespace(), False),
        (None, False),
    ],
)
def test_simulator_that_would_restart_the_sites(arguments: object, refused: bool) -> None:
    problem = restarting_sites(arguments, 4)
    assert (problem is not None) == refused
    if problem:
        assert "Run it with -t 4" in problem


REPORT = {"spec": {"w": "float32 [2]"}, "config_hash": "aa", "shares_features": True}


@pytest.mark.parametrize(
    ("other", "exchanging", "message"),
    [
        ({}, True, None),
        ({"spec": {"w": "float32 [3]"}}, False, "b has another architecture than a: w is float32 [3], not float32 [2]"),
        ({"config_hash": "bb"}, False, "b has another version of the bundle or of its config files than a"),
        ({"shares_features": False}, True, "b runs a method that has no features to share: set exchange to 'none'"),
        ({"shares_features": False}, False, None),
    ],
)
def test_disagreement_names_the_site(other: dict[str, object], exchanging: bool, message: str | None) -> None:
    assert disagreement({"a": REPORT, "b": {**REPORT, **other}}, exchanging) == message


def test_checkpoint_of_another_run() -> None:
    found = RunState({"w": torch.zeros(2)}, config_hash="aa")
    assert other_run(found, {"w": "float32 [2]"}, "aa") is None
    assert "another architecture: missing v; unknown w" in str(other_run(found, {"v": "float32 [2]"}, "aa"))
    assert "another configuration (hash aa, now bb" in str(other_run(found, {"w": "float32 [2]"}, "bb"))
