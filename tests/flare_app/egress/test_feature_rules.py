"""What of features may leave, by which route, how many rows of a round; what may not is replaced by none."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from nvflare.apis.controller_spec import Task
from nvflare.apis.dxo import from_shareable
from nvflare.apis.shareable import Shareable

from flare_app.egress import EgressError, EgressPolicy
from flare_app.egress.rules import RowsPerRound, examine, examine_request
from flare_app.exchange import sampled
from flare_app.protocol import Header, report_of, tensors_of, with_report
from tests.flare_app.egress.payloads import DECLARED, examined, features, unit_rows, weights, with_headers, with_meta


@pytest.mark.parametrize(
    ("payload", "policy", "why"),
    [
        (features(), {"features": []}, "the policy shows no features"),
        (features(), {"features": ["prototypes"]}, "the policy shows no features"),
        (features(kind="prototypes"), {"features": ["features"]}, "the policy shows no prototypes"),
        (features(volumes=1), {}, "a cohort of 1 volumes, the least is 2"),
        (features(volumes=0), {}, "a cohort of 0 volumes, the least is 2"),
        (features(), {"max_epsilon": 4.0}, "no noise that promises anything, and the policy asks for it"),
        (features(epsilon=4.5), {"max_epsilon": 4.0}, "epsilon 4.5 at delta 1e-05"),
        (features(epsilon=3.5), {"max_epsilon": 4.0, "max_delta": 1e-6}, "epsilon 3.5 at delta 1e-05"),
        (features(features=torch.full((8, 6), math.nan)), {"features": []}, "the policy shows no features"),
        (features(), {"routes": ["relay"]}, "the policy shows no features by the route 'peer'"),
        (features(), {"routes": []}, "the policy shows no features by the route 'peer'"),
    ],
)
def test_features_that_may_not_be_shown_are_replaced_by_none(
    payload: Shareable, policy: dict[str, Any], why: str
) -> None:
    kind = payload["DXO"]["meta"]["kind"]
    release = examined("get_features", with_headers(payload, **{Header.ROUND: 5}), **policy)
    assert release.withheld == why
    left = tensors_of(release.payload, "FCL_FEATURES")
    assert {name: tuple(tensor.shape) for name, tensor in left.items()} == {"features": (0, 6), "partition": (0,)}
    assert release.payload["DXO"]["meta"] == {"kind": kind, "round": 5, "volumes": 0}
    assert [entry["bytes"] for entry in release.entries] == [0, 0]


@pytest.mark.parametrize(
    "policy",
    [
        {"max_rows": 8},
        {"min_volumes": 3},
        {"max_feature_length": 6},
        {"max_partitions": 4},
        {"max_epsilon": 2.0},
        {"max_epsilon": 2.0, "max_delta": 1e-5},
    ],
)
def test_features_at_a_limit_leave(policy: dict[str, Any]) -> None:
    payload = features(volumes=3, epsilon=2.0)
    release = examined("share", payload, **policy)
    assert (release.payload is payload, release.withheld) == (True, None)


def test_rows_that_are_equal_count_towards_a_payload() -> None:
    """They count once for the round, yet a tensor of a million equal rows is no set of features."""
    equal = {"features": unit_rows(1).half().repeat(9, 1), "partition": torch.zeros(9, dtype=torch.int16)}
    assert examined("share", features(**equal), max_rows=9).entries
    with pytest.raises(EgressError) as error:
        examined("share", features(**equal), max_rows=8)
    assert error.value.detail == "9 rows, at most 8 may leave"


def test_the_oldest_round_that_is_counted_is_not_past() -> None:
    policy = EgressPolicy(max_rows=8)
    rows = RowsPerRound(policy.max_rows)
    for number in (*range(5, 13), 5):
        examine(policy, rows, DECLARED, "get_features", with_meta(features(), round=number))
    with pytest.raises(EgressError) as error:
        examine(policy, rows, DECLARED, "get_features", with_meta(features(), round=4))
    assert error.value.detail == "round 4 is long past"


@pytest.mark.parametrize(
    ("policy", "rows"),
    [
        ({}, 8),
        ({"features": ["prototypes"]}, 8),
        ({"features": []}, 0),
        ({"min_volumes": 4}, 0),
        ({"max_epsilon": 1.0}, 0),
        ({"routes": ["peer"]}, 8),
        ({"routes": ["relay"]}, 0),
    ],
)
def test_site_whose_features_are_withheld_says_it_has_none(policy: dict[str, Any], rows: int) -> None:
    release = examined("share", with_report({"rows": 8, "volumes": 3, "privacy": None}), **policy)
    assert report_of(release.payload)["rows"] == rows
    assert (report_of(release.payload)["volumes"] == 0) == (rows == 0)


@pytest.mark.parametrize(
    ("task", "routes", "rows"),
    [
        ("share", ["peer", "relay"], 8),
        ("share", ["relay"], 8),
        ("share", ["peer"], 0),
        ("get_features", ["peer"], 8),
        ("get_features", ["relay"], 0),
    ],
)
def test_features_leave_by_the_routes_of_the_policy(task: str, routes: list[str], rows: int) -> None:
    """What answers the server's own task passes through it in clear, whatever the job said."""
    left = examined(task, features(), routes=routes).payload
    assert len(tensors_of(left, "FCL_FEATURES")["features"]) == rows


def test_rows_are_counted_over_a_round_and_a_snapshot_once_for_all_peers() -> None:
    policy = EgressPolicy(max_rows=20)
    rows = RowsPerRound(policy.max_rows)
    for seed in (0, 0, 1, 1, 0):
        examine(policy, rows, None, "get_features", features(seed=seed))
    with pytest.raises(EgressError) as error:
        examine(policy, rows, None, "get_features", features(seed=2))
    assert error.value.detail == "24 rows in round 5, at most 20 may leave"
    examine(policy, rows, None, "get_features", with_meta(features(seed=2), round=6))
    for number in range(7, 40):
        examine(policy, rows, None, "get_features", with_meta(features(seed=2), round=number))
    assert len(rows._sent) == 8
    with pytest.raises(EgressError, match=r"features\.rows"):  # else a round that is forgotten had no limit any more
        examine(policy, rows, None, "get_features", with_meta(features(seed=3), round=6))


def test_samples_of_a_snapshot_count_as_its_rows() -> None:
    policy = EgressPolicy(max_rows=8)
    rows = RowsPerRound(policy.max_rows)
    for asker in "abcdefgh":
        sample = sampled(from_shareable(features()), 3, "me", asker)
        assert len(examine(policy, rows, None, "get_features", sample.to_shareable()).entries) == 2
    assert 3 < len(rows._sent[5]) <= 8
    with pytest.raises(EgressError, match=r"features\.rows"):
        examine(policy, rows, None, "get_features", features(seed=1))


@pytest.mark.parametrize(
    ("request_", "allowed"),
    [
        (Task("get_features", with_headers(Shareable(), **{Header.ROUND: 3})).data, True),
        (Task("get_features", with_headers(Shareable(), **{Header.ROUND: 3, Header.PULL_ROWS: 64})).data, True),
        (with_headers(Shareable(), **{Header.ROUND: 3, Header.PULL_ROWS: -1}), False),
        (with_headers(Shareable(), **{Header.ROUND: 3, Header.PULL_ROWS: "patient007"}), False),
        (with_headers(Shareable(), **{Header.ROUND: 3, Header.PEERS: 3}), False),
        (Task("train", with_headers(Shareable(), **{Header.ROUND: 3})).data, False),
        (with_headers(Shareable(), note="patient007"), False),
        (weights(), False),
        (features(), False),
    ],
)
def test_requests_to_peers_carry_nothing(request_: Shareable, allowed: bool) -> None:
    if allowed:
        examine_request(request_)
    else:
        with pytest.raises(EgressError):
            examine_request(request_)
