from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from opacus.accountants import RDPAccountant
from opacus.accountants.utils import get_noise_multiplier

from fcl.privacy import PrivacyLedger, epsilon_of

DELTA = 1e-5


def ledger(file: Path | None, *patients: str, scope: str = "features") -> PrivacyLedger:
    return PrivacyLedger(patients or ("a", "b"), DELTA, scope, file)


@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.0, 1.0, 1), (2.0, 1.0, 14), (1.1, 0.05, 200)])
def test_epsilon_is_that_of_opacus(noise: float, rate: float, steps: int) -> None:
    accountant = RDPAccountant()
    for _ in range(steps):
        accountant.step(noise_multiplier=noise, sample_rate=rate)
    assert epsilon_of([(noise, rate, steps)], DELTA) == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-6)


def test_epsilon_of_gaussian_releases_is_near_the_closed_form() -> None:
    # Of Renyi orders, optimised over all: R / (2 z^2) + sqrt(2 R ln(1/delta)) / z; opacus' conversion is tighter.
    for noise, releases in ((2.0, 1), (4.0, 20), (30.0, 10)):
        classic = releases / (2 * noise**2) + math.sqrt(2 * releases * math.log(1 / DELTA)) / noise
        assert 0.75 * classic < epsilon_of([(noise, 1.0, releases)], DELTA) <= classic


def test_noise_chosen_by_opacus_for_an_epsilon_meets_it() -> None:
    noise = get_noise_multiplier(
        target_epsilon=3.0, target_delta=DELTA, sample_rate=1.0, steps=10, accountant="rdp", epsilon_tolerance=0.01
    )
    assert epsilon_of([(noise, 1.0, 10)], DELTA) == pytest.approx(3.0, abs=0.02)


def test_spending_only_grows() -> None:
    account = ledger(None)
    assert (account.epsilon(), account.releases) == (0.0, 0)
    seen = [0.0]
    for number in range(1, 6):
        foretold = account.epsilon((1.5, 1.0, 1))
        assert account.spend(1.5)
        assert account.epsilon() == foretold > seen[-1]
        assert account.releases == number
        seen.append(account.epsilon())
    assert seen[5] < 5 * seen[1]


def test_budget_refuses_before_it_is_passed_and_writes_nothing(tmp_path: Path) -> None:
    account = ledger(tmp_path / "ledger.json")
    two = epsilon_of([(1.5, 1.0, 2)], DELTA)
    assert [account.spend(1.5, budget=two) for _ in range(4)] == [True, True, False, False]
    assert account.epsilon() == pytest.approx(two)
    assert json.loads((tmp_path / "ledger.json").read_text())["entries"][0]["steps"] == 2


def test_another_job_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "ledger.json"
    first = ledger(file)
    first.spend(1.0)
    first.spend(2.0)
    second = ledger(file)
    assert second.history() == [(1.0, 1.0, 1), (2.0, 1.0, 1)]
    # Both are open at once, as two jobs at a site are.
    second.spend(2.0)
    assert first.releases == 3
    assert list(file.parent.glob("*.tmp")) == []


def test_who_joins_the_patients_does_not_reset_the_others(tmp_path: Path) -> None:
    file = tmp_path / "ledger.json"
    ledger(file, "a", "b").spend(1.0, steps=5)
    assert ledger(file, "c").releases == 0
    joined = ledger(file, "b", "c")
    assert joined.releases == 5
    joined.spend(1.0)
    assert [ledger(file, name).releases for name in ("a", "b", "c")] == [5, 6, 1]


def test_scopes_are_kept_apart(tmp_path: Path) -> None:
    file = tmp_path / "ledger.json"
    ledger(file, scope="weights").spend(1.0, 0.1, 50)
    assert ledger(file).epsilon() == 0.0
    assert ledger(file, scope="weights").history() == [(1.0, 0.1, 50)]


@pytest.mark.parametrize("with_file", [True, False])
def test_resuming_an_older_state_gives_nothing_back(tmp_path: Path, with_file: bool) -> None:
    file = tmp_path / "ledger.json" if with_file else None
    account = ledger(file)
    account.spend(1.0)
    older = account.state_dict()
    account.spend(1.0, steps=3)
    resumed = ledger(file) if with_file else account
    resumed.load_state_dict(older)
    assert resumed.releases == 4


def test_a_saved_state_makes_up_for_a_lost_file(tmp_path: Path) -> None:
    file = tmp_path / "ledger.json"
    account = ledger(file)
    account.spend(1.0, steps=3)
    state = json.loads(json.dumps(account.state_dict()))
    file.unlink()
    resumed = ledger(file)
    resumed.load_state_dict(state)
    assert resumed.history() == account.history() == [(1.0, 1.0, 3)]


@pytest.mark.parametrize("content", ["", "{", '{"version": 2, "entries": []}', '{"version": 1, "entries": [{}]}'])
def test_an_unreadable_ledger_stops_sharing(tmp_path: Path, content: str) -> None:
    file = tmp_path / "ledger.json"
    file.write_text(content)
    with pytest.raises(ValueError, match="privacy ledger"):
        ledger(file)
    file.unlink()
    account = ledger(file)
    file.write_text(content)
    with pytest.raises(ValueError, match="privacy ledger"):
        account.spend(1.0)
