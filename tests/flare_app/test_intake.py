from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.shareable import Shareable

from flare_app.aggregation import tensor_spec
from flare_app.averaging import PlainRound
from flare_app.exchange import FEATURES
from flare_app.intake import introductions, shares, updates, validations
from flare_app.protocol import with_report, with_tensors
from flare_app.records import RoundRecord, SiteRecord

WEIGHTS = {"w": torch.tensor([3.0, 4.0])}
REPORT = {
    "count": 5,
    "seconds": 2.0,
    "parts": {"exchange": 0.5, "training": 1.0},
    "peak_mib": 100.0,
    "metrics": {"loss": 1.0},
    "validation": {},
    "features_received": {"b": 40},
    "privacy": {"epsilon": 2.0, "delta": 1e-5, "noise_multiplier": 1.0, "releases": 3},
}


def _taken(report: dict[str, Any], peer_route: bool = True) -> tuple[str | None, RoundRecord, PlainRound]:
    record = RoundRecord(0, sites={site: SiteRecord() for site in "ab"})
    average = PlainRound(WEIGHTS, tensor_spec(WEIGHTS), 10.0, "ab")
    accept = updates(average, record, peer_route)
    return accept("a", with_tensors(DataKind.WEIGHT_DIFF, WEIGHTS, report)), record, average


@pytest.mark.parametrize("peer_route", [True, False])
def test_update_fills_the_record_and_the_average(peer_route: bool) -> None:
    problem, record, average = _taken(REPORT, peer_route)
    assert problem is None
    assert average.count == 5
    assert record.sites["a"] == SiteRecord(
        count=5,
        seconds=2.0,
        parts={"exchange": 0.5, "training": 1.0},
        metrics={"loss": 1.0},
        bytes_weights_up=8,
        bytes_features_down=40,
        features_from=["b"],
        update_norm=5.0,
        peak_mib=100.0,
        privacy=REPORT["privacy"],
    )
    assert record.sites["b"].bytes_features_up == (40 if peer_route else 0)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"count": 0}, "it trained on 0 slices"),
        ({"features_received": {"z": 1}}, "it has features of z, which were not asked for any"),
        ({"metrics": {"loss": float("inf"), "x": 1.0}}, "metrics that are no finite numbers: loss"),
        ({"validation": {"dice": float("nan")}}, "metrics that are no finite numbers: dice"),
        ({"parts": {"training": float("nan")}}, "metrics that are no finite numbers: training"),
        ({"seconds": "long"}, "could not convert string to float"),
        ({"privacy": {"epsilon": "low"}}, "must be real number, not str"),
        ({"features_received": {"b": None}}, "int() argument must be"),
        ({"metrics": None}, "'NoneType' object has no attribute 'items'"),
    ],
)
def test_nothing_of_a_reply_that_is_rejected_is_kept(change: dict[str, Any], problem: str) -> None:
    record = RoundRecord(0, sites={site: SiteRecord() for site in "ab"})
    average = PlainRound(WEIGHTS, tensor_spec(WEIGHTS), 10.0, "ab")
    accept = updates(average, record, peer_route=True)
    try:
        told = str(accept("a", with_tensors(DataKind.WEIGHT_DIFF, WEIGHTS, {**REPORT, **change})))
    except Exception as error:
        told = str(error)
    assert problem in told
    assert average.count == 0
    assert record == RoundRecord(0, sites={site: SiteRecord() for site in "ab"})


def test_introduction_must_be_complete() -> None:
    into: dict[str, dict[str, Any]] = {}
    whole = {
        "spec": {},
        "config_hash": "",
        "settings": {},
        "shares_features": True,
        "description": {},
        "resumed_round": 0,
    }
    assert introductions(into)("a", with_report(whole)) is None
    assert into == {"a": whole}
    with pytest.raises(ValueError, match="it does not tell its config_hash, spec"):
        introductions(into)("b", with_report({k: whole[k] for k in whole if k not in ("spec", "config_hash")}))
    with pytest.raises(ValueError, match="not in the form that was agreed"):
        introductions(into)("b", with_report({**whole, "spec": "w"}))
    with pytest.raises(TypeError, match="not JSON serializable"):
        introductions(into)("b", with_report({**whole, "settings": {"seed": torch.zeros(1)}}))
    assert list(into) == ["a"]


@pytest.mark.parametrize(
    ("relayed", "reply", "kept"),
    [
        (False, with_report({"rows": 3}), True),
        (False, with_report({}), False),
        (False, with_report({"rows": "many"}), False),
        (True, DXO(FEATURES, data={"features": torch.zeros(1, 2)}).to_shareable(), True),
        (True, DXO(FEATURES, data={"features": [1.0]}).to_shareable(), False),
        (True, DXO(FEATURES, data={"features": torch.zeros(2, 2), "partition": torch.zeros(1)}).to_shareable(), False),
        (True, with_report({"rows": 3}), False),
        (True, Shareable(), False),
    ],
)
def test_shares_are_kept_when_they_can_be_used(relayed: bool, reply: Shareable, kept: bool) -> None:
    into: dict[str, Shareable] = {}
    accept = shares(into, relayed)
    if kept:
        assert accept("a", reply) is None
    else:
        with pytest.raises((ValueError, KeyError)):
            accept("a", reply)
    assert into == ({"a": reply} if kept else {})


def test_validations_are_finite_numbers() -> None:
    into = {"a": SiteRecord()}
    validations(into)("a", with_report({"validation": {"dice": 0.5}}))
    assert into["a"].validation == {"dice": 0.5}
    with pytest.raises(ValueError, match="no finite numbers: dice"):
        validations(into)("a", with_report({"validation": {"dice": float("nan")}}))
    assert into["a"].validation == {"dice": 0.5}


def test_what_is_kept_can_be_written_as_json() -> None:
    report = {
        **REPORT,
        "metrics": {"loss": torch.tensor(1.5)},
        "privacy": {"epsilon": torch.tensor(2.0), "releases": 3},
    }
    problem, record, _ = _taken(report)
    assert problem is None
    assert json.loads(json.dumps(asdict(record)))["sites"]["a"]["metrics"] == {"loss": 1.5}
    assert record.sites["a"].privacy == {"epsilon": 2.0, "releases": 3}
