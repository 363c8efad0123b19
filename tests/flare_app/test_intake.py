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
from flare_app.intake import Declared, Shared, introductions, shares, updates, validations
from flare_app.protocol import with_report, with_tensors
from flare_app.records import RoundRecord, SiteRecord

WEIGHTS = {"w": torch.tensor([3.0, 4.0])}
DECLARED = {"a": Declared(slices=5, validation_volumes=2), "b": Declared(slices=7, validation_volumes=0)}
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


def _taken(
    report: dict[str, Any], peer_route: bool = True, validates: bool = True
) -> tuple[str | None, RoundRecord, PlainRound]:
    record = RoundRecord(0, sites={site: SiteRecord() for site in "ab"})
    average = PlainRound(WEIGHTS, tensor_spec(WEIGHTS), 10.0, "ab")
    accept = updates(average, record, peer_route, DECLARED, validates)
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


def test_a_private_training_tells_no_times() -> None:
    times = ("seconds", "parts", "peak_mib")
    problem, record, average = _taken({name: value for name, value in REPORT.items() if name not in times})
    assert (problem, average.count) == (None, 5)
    entry = record.sites["a"]
    assert (entry.count, entry.seconds, entry.parts, entry.peak_mib) == (5, 0.0, {}, 0.0)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"count": 0}, "it reports 0 slices"),
        ({"count": 6}, "it reports 6 slices, more than the 5 that it can have"),
        ({"count": 2**63}, "more than the 5 that it can have"),
        ({"count": "5"}, "it reports '5' slices"),
        ({"features_received": {"z": 1}}, "it has features of z, which were not asked for any"),
        ({"metrics": {"loss": float("inf"), "x": 1.0}}, "metrics that are no finite numbers: loss"),
        ({"validation": {"dice": float("nan")}}, "metrics that are no finite numbers: dice"),
        ({"validation": {"dice": 0.9, "count": 3.0}}, "it validated on 3 volumes, and said that it has 2"),
        ({"validation": {"dice": 0.9, "count": -1.0}}, "it validated on -1 volumes"),
        ({"validation": {"dice": 0.9, "count": 0}}, "it validated on 0 volumes"),
        ({"validation": {"dice": 0.9, "count": 2.0**60}}, "and said that it has 2"),
        ({"parts": {"training": float("nan")}}, "metrics that are no finite numbers: training"),
        ({"seconds": "long"}, "must be real number, not str"),
        ({"peak_mib": float("nan")}, "no finite numbers: peak_mib"),
        ({"metrics": {"loss": 2**63}}, "no finite numbers: loss"),
        ({"metrics": {"loss": 10**400}}, "too large to convert to float"),
        ({"metrics": {"x\nServer runner finished.": 1.0}}, "names of metrics that are not"),
        ({"metrics": {"x" * 65: 1.0}}, "names of metrics that are not"),
        ({"metrics": {1: 1.0}}, "names of metrics that are not"),
        ({"metrics": {f"m{number}": 1.0 for number in range(65)}}, "65 metrics, more than 64"),
        ({"privacy": {"epsilon": "low"}}, "must be real number, not str"),
        ({"features_received": {"b": None}}, "bytes of features that it received are no whole numbers"),
        ({"features_received": {"b": 10**400}}, "bytes of features that it received are no whole numbers"),
        ({"metrics": None}, "object of type 'NoneType'"),
    ],
)
def test_nothing_of_a_reply_that_is_rejected_is_kept(change: dict[str, Any], problem: str) -> None:
    record = RoundRecord(0, sites={site: SiteRecord() for site in "ab"})
    average = PlainRound(WEIGHTS, tensor_spec(WEIGHTS), 10.0, "ab")
    accept = updates(average, record, True, DECLARED, True)
    try:
        told = str(accept("a", with_tensors(DataKind.WEIGHT_DIFF, WEIGHTS, {**REPORT, **change})))
    except Exception as error:
        told = str(error)
    assert problem in told
    assert average.count == 0
    assert record == RoundRecord(0, sites={site: SiteRecord() for site in "ab"})


def test_a_validation_that_was_not_asked_for_chooses_no_model() -> None:
    report = {**REPORT, "validation": {"mean_dice": 1.0, "count": 2.0}}
    assert _taken(report)[0] is None
    problem, record, average = _taken(report, validates=False)
    assert problem == "it validated, which this round asks of nobody"
    assert (average.count, record.sites["a"].validation) == (0, {})


WHOLE: dict[str, Any] = {
    "spec": {"w": "float32 [2]"},
    "config_hash": "",
    "settings": {},
    "shares_features": True,
    "description": {"slices": 24, "volumes": 2.0},
    "resumed_round": 0,
}


def test_introduction_must_be_complete() -> None:
    into: dict[str, dict[str, Any]] = {}
    assert introductions(into)("a", with_report(WHOLE)) is None
    assert into == {"a": WHOLE}
    with pytest.raises(ValueError, match="it does not tell its config_hash, spec"):
        introductions(into)("b", with_report({k: WHOLE[k] for k in WHOLE if k not in ("spec", "config_hash")}))
    with pytest.raises(TypeError, match="not JSON serializable"):
        introductions(into)("b", with_report({**WHOLE, "settings": {"seed": torch.zeros(1)}}))
    assert list(into) == ["a"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("spec", "w"),
        ("spec", {"w": 2}),
        ("spec", {"w": "float32 [2]", 1: "x"}),
        ("config_hash", 3),
        ("settings", []),
        ("shares_features", "yes"),
        ("description", {"volumes": 2}),
        ("description", {"slices": "24"}),
        ("description", {"slices": True}),
        ("description", {"slices": -1}),
        ("description", {"slices": 24, 1: 2}),
        ("description", {"slices": 24, "hospital": "General"}),
        ("description", {"slices": 24, "volumes": float("nan")}),
        ("resumed_round", "1"),
    ],
)
def test_introduction_that_would_break_what_is_done_with_it_later_is_refused(name: str, value: Any) -> None:
    into: dict[str, dict[str, Any]] = {}
    with pytest.raises(ValueError, match=f"not in the form that was agreed: {name}"):
        introductions(into)("b", with_report({**WHOLE, name: value}))
    with pytest.raises(TypeError, match="not supported between"):
        introductions(into)("b", with_report({**WHOLE, "settings": {"seed": 1, 2: 3}}))
    assert into == {}


def _features(**data: Any) -> Shareable:
    plain = {"features": torch.zeros(3, 2), "partition": torch.zeros(3)}
    return DXO(FEATURES, data={**plain, **data}).to_shareable()


@pytest.mark.parametrize(
    ("relayed", "reply", "rows"),
    [
        (False, with_report({"rows": 3}), 3),
        (False, with_report({}), None),
        (False, with_report({"rows": "many"}), None),
        (False, with_report({"rows": "10"}), None),
        (False, with_report({"rows": 3.0}), None),
        (False, with_report({"rows": -1}), None),
        (True, _features(), 3),
        (True, DXO(FEATURES, data={"features": torch.zeros(1, 2)}).to_shareable(), None),
        (True, _features(features=[1.0]), None),
        (True, _features(features=torch.tensor(1.0)), None),
        (True, _features(partition=torch.zeros(1)), None),
        (True, _features(partition=torch.zeros(3).to_sparse()), None),
        (True, _features(names=torch.zeros(3)), None),
        (True, with_report({"rows": 3}), None),
        (True, Shareable(), None),
    ],
)
def test_shares_are_kept_when_they_can_be_used(relayed: bool, reply: Shareable, rows: int | None) -> None:
    into: dict[str, Shared] = {}
    accept = shares(into, relayed)
    if rows is None:
        with pytest.raises((ValueError, KeyError, TypeError)):
            accept("a", reply)
        assert into == {}
        return
    assert accept("a", reply) is None
    assert into["a"].rows == rows
    assert (into["a"].features is not None) == relayed


def test_validations_are_finite_numbers_that_weigh_no_more_than_was_declared() -> None:
    into = {"a": SiteRecord(), "b": SiteRecord()}
    accept = validations(into, DECLARED)
    accept("a", with_report({"validation": {"dice": 0.5, "count": 2.0}}))
    accept("b", with_report({"validation": {}}))
    with pytest.raises(ValueError, match="no finite numbers: dice"):
        accept("a", with_report({"validation": {"dice": float("nan")}}))
    with pytest.raises(ValueError, match="it validated on 1 volumes, and said that it has 0"):
        accept("b", with_report({"validation": {"dice": 0.5}}))
    assert into["a"].validation == {"dice": 0.5, "count": 2.0}
    assert into["b"].validation == {}


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
