"""Whole jobs in one process whose weights and features travel in fewer bits, and to fewer sites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import DataKind
from torch import Tensor

from fcl.networks.weights import read_weights
from flare_app.egress import read_manifest
from flare_app.records import read_rounds
from flare_app.routing import choose_peers
from tests.flare_app.loopback import Federation

SITES = ["site-1", "site-2", "site-3"]
BYTES = {32: 288, 16: 160, 8: 128, 4: 96}  # 8 x 8 weights, their scales, 8 biases
FEATURES = {16: 16 * (8 * 2 + 2), 8: 16 * (8 + 2)}  # 16 rows of 8, their partitions


def _equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def _checked(federation: Federation) -> Federation:
    """Runs it; in each round, and at the end, all that took part hold the bits that the server has."""
    rounds, held = federation.controller._round, federation.executors

    def checked(number: int) -> Any:
        before = federation.controller._state.weights
        record = rounds(number)
        assert record.accepted
        for site in record.accepted:
            assert _equal(held[site]._weights.current, before), (site, number)
        return record

    federation.controller._round = checked  # type: ignore[method-assign]
    federation.run()
    assert federation.panics == []
    last = read_weights(federation.results / "last.pt")
    assert all(_equal(executor._weights.current, last) for executor in held.values())
    return federation


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("exchange", ["none", "features"])
def test_server_and_sites_hold_the_same_bits_and_the_log_counts_them(tmp_path: Path, bits: int, exchange: str) -> None:
    controller = {"num_rounds": 5, "exchange": exchange, "weight_bits": bits}
    federation = _checked(Federation(tmp_path, SITES, controller, job_policy={}))
    begin = {"share" if exchange == "features" else "train", "validate"}
    kinds = [kind for site, task, kind in federation.sent if site == "site-2" and task in begin]
    assert kinds == [DataKind.WEIGHTS, *[DataKind.WEIGHT_DIFF] * 5]
    records = read_rounds(federation.results / "rounds.jsonl")
    sizes = [(r["sites"]["site-2"]["bytes_weights_down"], r["sites"]["site-2"]["bytes_weights_up"]) for r in records]
    assert sizes == [(BYTES[32], BYTES[bits]), *[(BYTES[bits], BYTES[bits])] * 4, (BYTES[bits], 0)]
    plain = Federation(tmp_path / "plain", SITES, {**controller, "weight_bits": 32}).run()
    ours, theirs = (read_weights(run.results / "last.pt")["encoder.weight"] for run in (federation, plain))
    moved = theirs - _initial(plain)
    assert float((ours - theirs).norm()) < {16: 1e-3, 8: 0.05, 4: 0.5}[bits] * float(moved.norm())


def _initial(federation: Federation) -> Tensor:
    """The weight that the run began with."""
    (reply,) = [reply for _, task, reply in federation.replies if task == "initial_weights"]
    return reply["DXO"]["data"]["encoder.weight"]


def test_site_that_misses_rounds_gets_the_weights_in_full_and_then_their_change_again(tmp_path: Path) -> None:
    controller = {"num_rounds": 7, "weight_bits": 8, "task_timeout_s": 7, "min_sites": 1}
    fail = {"overrides": {"fail": {"site-3/1": "raise", "site-3/3": "nan"}}}
    federation = _checked(Federation(tmp_path, SITES, controller, fail, silent={"site-2": ["train/1"]}))
    records = read_rounds(federation.results / "rounds.jsonl")
    down = {s: [r["sites"].get(s, {}).get("bytes_weights_down") for r in records] for s in SITES}
    full, change = BYTES[32], BYTES[8]
    assert down["site-1"] == [full, *[change] * 7]
    assert down["site-2"] == [full, change, None, full, *[change] * 4]  # lost in round 1, invited in 2, back in 3
    assert down["site-3"] == [full, change, full, change, full, *[change] * 3]  # failed in 1, rejected in 3
    assert records[3]["rejected"] == {"site-3": "NaN or infinite values in encoder.bias"}


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("stop_after", [1, 3])
def test_resume_equals_an_uninterrupted_run(tmp_path: Path, bits: int, stop_after: int) -> None:
    lean = {"weight_bits": bits, "feature_bits": 8, "fan_out": 1, "pull_rows": 5}
    arguments = {"num_rounds": 4, "exchange": "features", **lean}
    whole = Federation(tmp_path / "whole", SITES, arguments).run()
    state = str(tmp_path / "state")
    first = Federation(tmp_path / "first", SITES, {**arguments, "checkpoint_dir": state}, {"checkpoint_dir": state})
    rounds = first.controller._round

    def interrupted(number: int) -> Any:
        if number == stop_after:
            raise KeyboardInterrupt
        return rounds(number)

    first.controller._round = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        first.run()
    again = {**arguments, "checkpoint_dir": state, "resume": True}
    second = _checked(Federation(tmp_path / "second", SITES, again, {"checkpoint_dir": state}))
    assert _equal(read_weights(second.results / "last.pt"), read_weights(whole.results / "last.pt"))


def test_site_without_the_base_of_a_change_says_so_and_gets_all_next_time(tmp_path: Path) -> None:
    federation = Federation(tmp_path, SITES, {"num_rounds": 4, "weight_bits": 8})
    rounds = federation.controller._round

    def forgetful(number: int) -> Any:
        if number == 2:
            federation.executors["site-2"]._weights._round = None
        return rounds(number)

    federation.controller._round = forgetful  # type: ignore[method-assign]
    _checked(federation)
    records = read_rounds(federation.results / "rounds.jsonl")
    assert [sorted(record["rejected"]) for record in records] == [[], [], ["site-2"], [], []]
    assert "and holds none: it needs them in full" in records[2]["rejected"]["site-2"]
    assert [record["sites"]["site-2"]["bytes_weights_down"] for record in records[2:4]] == [BYTES[8], BYTES[32]]


def _sets(federation: Federation, site: str) -> dict[str, Tensor]:
    participant = federation.executors[site]._participant
    return {peer: entry.features for peer, entry in participant.peers.items()}  # type: ignore[union-attr]


@pytest.mark.parametrize("bits", [16, 8])
def test_same_sets_reach_the_sites_by_either_route(tmp_path: Path, bits: int) -> None:
    controller = {"num_rounds": 2, "exchange": "features", "feature_bits": bits, "fan_out": 2, "pull_rows": 5}
    sites = [*SITES, "site-4"]
    peer, relay = (
        Federation(tmp_path / route, sites, {**controller, "route": route}, job_policy={}).run()
        for route in ("peer", "relay")
    )
    assert peer.panics == relay.panics == []
    for site in sites:
        left, right = _sets(peer, site), _sets(relay, site)
        assert _equal(left, right)
        assert {len(rows) for rows in left.values()} == {5}
        assert all(torch.allclose(rows.norm(dim=1), torch.ones(5)) for rows in left.values())
    assert _equal(*(read_weights(run.results / "last.pt") for run in (peer, relay)))
    for route, sent in ((peer, 2 * FEATURES[bits] * 5 // 16), (relay, FEATURES[bits])):
        for record in read_rounds(route.results / "rounds.jsonl")[:2]:
            for entry in record["sites"].values():
                assert entry["bytes_features_down"] == 2 * FEATURES[bits] * 5 // 16
                assert entry["bytes_features_up"] == sent


@pytest.mark.parametrize("count", [4, 8])
def test_cost_of_a_site_does_not_grow_with_the_sites(tmp_path: Path, count: int) -> None:
    sites = [f"site-{number}" for number in range(1, count + 1)]
    controller = {"num_rounds": 3, "exchange": "features", "fan_out": 2, "pull_rows": 4}
    federation = Federation(tmp_path, sites, controller, job_policy={"max_rows": 16}).run()
    assert federation.panics == []
    for record in read_rounds(federation.results / "rounds.jsonl")[:3]:
        for entry in record["sites"].values():
            assert (entry["bytes_features_down"], entry["bytes_features_up"]) == (2 * 4 * 18, 2 * 4 * 18)
    expected = [choose_peers(number, sites, sites, 2) for number in range(3)]
    assert sorted(federation.pulls) == sorted((s, peers) for chosen in expected for s, peers in chosen.items())


def test_all_that_is_asked_together_counts_against_the_rows_of_a_round(tmp_path: Path) -> None:
    """Samples of one snapshot for many peers are rows of it, not further ones: 16 at most, where 3 x 10 are sent."""
    sites = [*SITES, "site-4"]
    controller = {"num_rounds": 1, "exchange": "features", "pull_rows": 10}
    passed = Federation(tmp_path / "16", sites, controller, job_policy={"max_rows": 16}).run()
    record = read_rounds(passed.results / "rounds.jsonl")[0]
    assert all(len(entry["features_from"]) == 3 for entry in record["sites"].values())
    refused = Federation(tmp_path / "10", sites, controller, job_policy={"max_rows": 10}).run()
    assert refused.panics == []  # a peer that asks for more does not end a site's part
    record = read_rounds(refused.results / "rounds.jsonl")[0]
    assert sum(len(entry["features_from"]) for entry in record["sites"].values()) < 3 * 4
    for site in sites:
        lines, _ = read_manifest(refused.engines[site].root / "egress" / f"{site}.jsonl")
        assert {line["rule"] for line in lines if line["event"] == "refused"} == {"features.rows"}


def test_resumed_server_optimizer_ends_with_the_bits_of_an_uninterrupted_run(tmp_path: Path) -> None:
    controller = {"weight_bits": 8, "server_optimizer": {"name": "Adam", "lr": 0.01}, "exchange": "features"}
    whole = Federation(tmp_path / "whole", SITES, {**controller, "num_rounds": 4, "checkpoint_dir": "state"}).run()
    for rounds, resume in ((2, False), (4, True)):
        where = {"checkpoint_dir": "state", "resume": resume}
        parts = Federation(
            tmp_path / "parts", SITES, {**controller, **where, "num_rounds": rounds}, {"checkpoint_dir": "state"}
        ).run()
    assert whole.panics == parts.panics == []
    ours, theirs = (read_weights(run.results / "last.pt") for run in (parts, whole))
    assert _equal(ours, theirs)
    averaged = Federation(tmp_path / "averaged", SITES, {"num_rounds": 4, "exchange": "features"}).run()
    assert not _equal(theirs, read_weights(averaged.results / "last.pt"))
