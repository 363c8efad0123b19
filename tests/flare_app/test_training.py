from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fcl.networks.weights import read_weights
from flare_app.participation import taking_part
from flare_app.protocol import TaskName
from flare_app.records import read_rounds, site_states
from tests.flare_app.loopback import THREE_SITES, Federation

FOUR = [f"site-{number}" for number in range(1, 5)]
TURNS = {"num_rounds": 6, "exchange": "features", "sites_per_round": 2, "min_sites": 2, "task_timeout_s": 7}


def _turns(root: Path, fail: dict[str, str], sites: list[str] = FOUR, **more: Any) -> Federation:
    executor = {"overrides": {"fail": fail}, **more.pop("executor", {})}
    silent = more.pop("silent", None)
    return Federation(root, sites, {**TURNS, **more}, executor, silent=silent)


@pytest.mark.parametrize("settings", [{"exchange": "none"}, {"route": "relay"}, {"weight_bits": 8, "fan_out": 1}, {}])
def test_sites_that_rest_step_in_for_one_that_fails_at_its_turn(
    tmp_path: Path, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    federation = _turns(tmp_path, {"site-1/*": "raise"}, **settings).run()
    assert federation.panics == []
    *rounds, _ = read_rounds(federation.results / "rounds.jsonl")
    needed = 0
    for number, record in enumerate(rounds):
        turn = taking_part(number, FOUR, 2)
        assert len(record["accepted"]) == 2
        assert set(record["rejected"]) == {"site-1"}.intersection(turn)
        assert sorted([*record["resting"], *record["accepted"], *record["rejected"]]) == FOUR
        assert record["validation"]["mean_dice"] > 0
        assert all(record["sites"][site]["validation"] for site in FOUR if site not in record["rejected"])
        (other,) = set(turn) - {"site-1"} if "site-1" in turn else [""]
        if not other:
            continue
        needed += 1
        (stand_in,) = set(record["accepted"]) - {other}
        assert record["sites"][stand_in]["count"] > 0
        assert record["sites"][stand_in]["features_from"] == ([] if settings.get("exchange") else [other])
        assert site_states(record)[stand_in] == "answered"
        assert f"round {number + 1}: {stand_in} must step in, whose turn it is not" in caplog.text
    assert needed == 3


def _fails_to_share(federation: Federation) -> Federation:
    """Site-1, in every round that it is asked in, and before anything of it has changed."""

    def share(*_: Any) -> Any:
        raise FileNotFoundError

    federation.executors["site-1"]._tasks[TaskName.SHARE] = share
    return federation


def test_a_resumed_job_has_the_same_sites_step_in_to_the_same_bits(tmp_path: Path) -> None:
    whole = _fails_to_share(_turns(tmp_path / "whole", {})).run()
    state = {"checkpoint_dir": str(tmp_path / "state")}
    first = _fails_to_share(_turns(tmp_path / "first", {}, executor=state, **state))
    first.cut_before(3)
    second = _fails_to_share(_turns(tmp_path / "second", {}, executor=state, resume=True, **state)).run()
    assert second.panics == whole.panics == []
    assert second.accepted() == whole.accepted()
    assert all("1" not in sites for sites in whole.accepted()[:-1])
    expected, found = (read_weights(federation.results / "last.pt") for federation in (whole, second))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_sites_step_in_where_nobody_whose_turn_it_is_shares(tmp_path: Path) -> None:
    turn = taking_part(0, FOUR, 2)
    federation = _turns(tmp_path, {}, num_rounds=1, silent={site: ["share/0"] for site in turn}).run()
    assert federation.panics == []
    record = read_rounds(federation.results / "rounds.jsonl")[0]
    assert record["accepted"] == sorted(set(FOUR) - set(turn))
    assert record["rejected"] == dict.fromkeys(turn, "no answer to 'share' within 7 s")
    assert federation.asked_for("train") == [[site[-1] for site in record["accepted"]]]


def test_without_enough_to_step_in_the_job_fails_and_tells_of_the_turns(tmp_path: Path) -> None:
    turn = taking_part(0, THREE_SITES, 2)
    (resting,) = set(THREE_SITES) - set(turn)
    federation = _turns(tmp_path, dict.fromkeys((f"{site}/0" for site in turn), "raise"), THREE_SITES).run()
    (reason,) = federation.panics
    assert reason.startswith(
        f"round 1: 0 of 3 sites gave a usable result, 2 are needed ({resting} could step in: sites_per_round gives "
        "turns). "
    )
    assert all(f"{site}: FileNotFoundError" in reason for site in turn)
