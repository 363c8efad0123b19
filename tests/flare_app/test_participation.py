from __future__ import annotations

import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from fcl.networks.weights import read_weights
from flare_app.controller import FCLController
from flare_app.participation import taking_part
from flare_app.records import read_rounds, site_states
from tests.flare_app.loopback import Federation

SITES = [f"site-{number}" for number in range(1, 11)]
FOUR = SITES[:4]


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 10])
def test_each_pass_asks_every_site_and_none_twice_in_a_round(count: int) -> None:
    length = -(-len(SITES) // count)
    for first in range(0, 5 * length, length):
        rounds = [taking_part(number, SITES, count) for number in range(first, first + length)]
        assert all(len(set(chosen)) == count for chosen in rounds)
        assert set(SITES) == {site for chosen in rounds for site in chosen}


def test_turns_are_even_and_meetings_vary() -> None:
    chosen = [taking_part(number, SITES, 4) for number in range(300)]
    counts = Counter(site for sites in chosen for site in sites)
    assert max(counts.values()) - min(counts.values()) < 30
    assert len({tuple(sites) for sites in chosen}) > 150


def test_choice_is_the_same_when_a_round_is_done_again() -> None:
    assert taking_part(7, SITES, 3) == taking_part(7, list(reversed(SITES)), 3)


@pytest.mark.parametrize("count", [None, 10, 100])
def test_all_where_the_number_does_not_bind(count: int | None) -> None:
    assert taking_part(3, SITES, count) == sorted(SITES)


@pytest.mark.parametrize("value", [0, 1, True, 2.0])
def test_numbers_that_make_no_quorum_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"sites_per_round must be a whole number of at least min_sites \(2\)"):
        FCLController(sites_per_round=value)


def test_turns_and_features_of_the_round_before_do_not_go_together() -> None:
    with pytest.raises(ValueError, match=r"overlap and sites_per_round do not go together.*: leave one of them out"):
        FCLController(exchange="features", overlap=True, sites_per_round=2)


def test_sites_whose_turn_it_is_not_rest_and_share_nothing(tmp_path: Path) -> None:
    settings = {"num_rounds": 4, "exchange": "features", "sites_per_round": 2, "validate_every": 1}
    federation = Federation(tmp_path, FOUR, settings).run()
    assert federation.panics == []
    *rounds, final = read_rounds(federation.results / "rounds.jsonl")
    for number, record in enumerate(rounds):
        chosen = taking_part(number, FOUR, 2)
        assert record["accepted"] == chosen
        assert record["resting"] == sorted(set(FOUR) - set(chosen))
        assert record["left_out"] == record["rejected"] == {}
        assert [record["sites"][site]["features_from"] for site in chosen] == [[chosen[1]], [chosen[0]]]
        assert set(site_states(record).values()) == {"answered", "resting"}
        validated = {site: entry["validation"]["mean_dice"] for site, entry in record["sites"].items()}
        assert sorted(validated) == FOUR  # or each round's mean would be of other sites
        assert record["validation"]["mean_dice"] == pytest.approx(statistics.fmean(validated.values()))
        assert all(record["sites"][site]["count"] == 0 for site in record["resting"])
    assert final["accepted"] == FOUR  # the finished weights are validated everywhere
    assert all(federation.controller._state.sites[site]["accepted"] == 2 for site in FOUR)


@pytest.mark.parametrize("bits", [32, 8])
def test_resume_equals_an_uninterrupted_run(tmp_path: Path, bits: int) -> None:
    settings = {
        "num_rounds": 5, "exchange": "features", "sites_per_round": 2, "weight_bits": bits, "validate_every": 2,
    }  # fmt: skip
    whole = Federation(tmp_path / "whole", FOUR, settings).run()
    state = {"checkpoint_dir": str(tmp_path / "state")}
    first = Federation(tmp_path / "first", FOUR, {**settings, **state, "validate_every": 0}, state)
    first.cut_before(3)
    second = Federation(tmp_path / "second", FOUR, {**settings, **state, "resume": True}, state).run()
    assert second.panics == []
    expected, found = (read_weights(federation.results / "last.pt") for federation in (whole, second))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
