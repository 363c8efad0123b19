from __future__ import annotations

from collections import Counter

import pytest
import torch
from nvflare.apis.dxo import from_dict, from_shareable

from fcl.federation import FeatureSet
from flare_app.exchange import Exchange, encode, no_features, rows_in
from flare_app.intake import Shared
from flare_app.protocol import Header
from flare_app.routing import choose_peers, feature_payloads

SITES = [f"site-{number}" for number in range(1, 11)]


@pytest.mark.parametrize("fan_out", [1, 3, 9])
def test_each_site_asks_and_is_asked_by_fan_out_others(fan_out: int) -> None:
    chosen = choose_peers(0, SITES, SITES, fan_out)
    assert sorted(chosen) == sorted(SITES)
    for site, peers in chosen.items():
        assert len(set(peers)) == fan_out
        assert site not in peers
    assert Counter(peer for peers in chosen.values() for peer in peers) == Counter(dict.fromkeys(SITES, fan_out))


@pytest.mark.parametrize("fan_out", [None, 9, 100])
def test_all_others_where_fan_out_does_not_bind(fan_out: int | None) -> None:
    assert choose_peers(3, SITES, SITES, fan_out) == {s: sorted(set(SITES) - {s}) for s in SITES}


def test_choice_is_another_in_each_round_and_the_same_when_it_is_done_again() -> None:
    rounds = [choose_peers(number, SITES, SITES, 2) for number in range(40)]
    assert rounds[7] == choose_peers(7, list(reversed(SITES)), set(SITES), 2)
    assert rounds[0] != rounds[1]
    met = Counter((site, peer) for chosen in rounds for site, peers in chosen.items() for peer in peers)
    assert len(met) == 90  # everyone meets everyone


def test_sites_that_offer_nothing_ask_and_are_not_asked() -> None:
    offering = SITES[:4]
    chosen = choose_peers(0, SITES, offering, 2)
    assert {peer for peers in chosen.values() for peer in peers} == set(offering)
    assert all(len(peers) == 2 for peers in chosen.values())
    assert choose_peers(0, SITES, [], 2) == {site: [] for site in SITES}
    assert choose_peers(0, ["a", "b"], ["a"], 2) == {"a": [], "b": ["a"]}


def test_peer_route_tells_names_one_payload_for_all_where_all_ask_all() -> None:
    shared = {site: Shared(0 if site == "c" else 3) for site in "cab"}
    ((payload, sites),) = feature_payloads(Exchange("features"), 0, shared, shared)
    assert (payload.get_header(Header.PEERS), sites) == (["a", "b"], ["a", "b", "c"])
    payloads = feature_payloads(Exchange("features", fan_out=1), 0, shared, shared)
    told = {sites[0]: payload.get_header(Header.PEERS) for payload, sites in payloads}
    assert told == choose_peers(0, ["a", "b", "c"], ["a", "b"], 1)


def _shown(rows: int) -> FeatureSet:
    return FeatureSet(torch.eye(8)[:rows], torch.zeros(rows, dtype=torch.int64), 2) if rows else no_features(8)


def test_relay_forwards_the_chosen_peers_and_a_sample_of_each() -> None:
    rows = {site: 0 if site == "site-3" else 6 for site in SITES}
    shared = {site: Shared(count, encode(_shown(count), "features", 4)) for site, count in rows.items()}
    payloads = feature_payloads(Exchange("features", "relay", fan_out=2, pull_rows=4), 4, shared, shared)
    chosen = choose_peers(4, SITES, [site for site in SITES if site != "site-3"], 2)
    for payload, sites in payloads:
        sets = from_shareable(payload).data
        assert sorted(sets) == chosen[sites[0]]
        assert {rows_in(from_dict(entry)) for entry in sets.values()} == {4}
    assert [sites for _, sites in payloads] == [[site] for site in sorted(SITES)]
