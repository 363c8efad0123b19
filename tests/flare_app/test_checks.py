from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from flare_app.averaging import PlainAveraging
from flare_app.checks import KEY, Signature, other_plan, other_run, restarting_sites
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


REPORT = {"spec": {"w": "float32 [2]"}, "config_hash": "aa", "settings": {"seed": 1}, "shares_features": True}
SIGNATURE = Signature({"w": "float32 [2]"}, "aa", {"seed": 1})


@pytest.mark.parametrize(
    ("other", "exchanging", "message"),
    [
        ({}, True, None),
        (
            {"spec": {"w": "float32 [3]"}},
            False,
            "it has another architecture than the other sites: w is float32 [3], not float32 [2]",
        ),
        (
            {"config_hash": "bb"},
            False,
            "it has another version of the bundle or of its config files than the other sites",
        ),
        ({"shares_features": False}, True, "it runs a method that has no features to share: set exchange to 'none'"),
        ({"shares_features": False}, False, None),
    ],
)
def test_misfit_says_what_is_different(other: dict[str, object], exchanging: bool, message: str | None) -> None:
    assert SIGNATURE.misfit({**REPORT, **other}, exchanging) == message


@pytest.mark.parametrize(("hashes", "expected"), [("aa", "a"), ("abb", "b"), ("ab", "a"), ("ba", "b"), ("cabb", "b")])
def test_signature_is_that_of_most_and_of_the_first_by_name_when_even(hashes: str, expected: str) -> None:
    reports = {f"site-{i}": {**REPORT, "config_hash": value} for i, value in reversed(list(enumerate(hashes)))}
    assert Signature.of_most(reports).config_hash == expected


def test_site_with_another_encryption_key_does_not_fit() -> None:
    encrypted = Signature(SIGNATURE.spec, "cc", {"seed": 1, KEY: "k1"})
    fitting = {**REPORT, "config_hash": "cc", "settings": {"seed": 1, KEY: "k1"}}
    assert encrypted.misfit(fitting, exchanging=False) is None
    other = {**REPORT, "config_hash": "dd", "settings": {"seed": 1, KEY: "k2"}}
    assert "another encryption key than those of the other sites" in str(encrypted.misfit(other, exchanging=False))


def test_checkpoint_of_another_run() -> None:
    found = RunState({"w": torch.zeros(2)}, config_hash="aa")
    assert other_run(found, SIGNATURE, PlainAveraging()) is None
    renamed = Signature({"v": "float32 [2]"}, "aa", {})
    assert "another architecture: missing v; unknown w" in str(other_run(found, renamed, PlainAveraging()))
    changed = Signature({"w": "float32 [2]"}, "bb", {})
    assert "another configuration (hash aa, now bb" in str(other_run(found, changed, PlainAveraging()))


def test_checkpoint_of_another_plan_of_the_server() -> None:
    adam, sgd = {"name": "Adam", "lr": 0.01}, {"name": "SGD", "lr": 1.0}
    settings = {"weight_bits": 32, "server_optimizer": adam}
    found = RunState({}, round=4, server_settings=settings)
    assert other_plan(found, 4, settings) is None
    assert "has 4 rounds done, and num_rounds is 2" in str(other_plan(found, 2, settings))
    assert other_plan(found, 6, {"weight_bits": 8, "server_optimizer": sgd}) == (
        "the checkpoint to resume from was made with another configuration (weight_bits was 32, now 8; "
        "server_optimizer was {'name': 'Adam', 'lr': 0.01}, now {'name': 'SGD', 'lr': 1.0}): restore "
        "that one, or start in a new checkpoint_dir"
    )


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ({KEY: "k1"}, {}, "was made with encryption of weights"),
        ({}, {KEY: "k1"}, "was made without encryption of weights"),
        ({KEY: "k1"}, {KEY: "k2"}, "was encrypted with another key"),
    ],
)
def test_checkpoint_of_another_encryption(before: dict[str, str], now: dict[str, str], message: str) -> None:
    found = RunState({"w": torch.zeros(2)}, config_hash="aa", settings=before)
    assert message in str(other_run(found, Signature(SIGNATURE.spec, "aa", now), PlainAveraging()))
