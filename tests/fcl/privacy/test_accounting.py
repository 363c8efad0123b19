from __future__ import annotations

import json
import math
import os
import stat
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from opacus.accountants import RDPAccountant
from opacus.accountants.analysis.rdp import compute_rdp
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


def test_steps_of_one_noise_at_other_rates_are_counted_each_at_its_own() -> None:
    account = ledger(None)
    account.spend(2.0, 0.25, 3)
    account.spend(2.0, 1.0, 1)
    assert account.epsilon() == pytest.approx(epsilon_of([(2.0, 0.25, 3), (2.0, 1.0, 1)], DELTA))
    assert account.epsilon() > 1.2 * epsilon_of([(2.0, 0.25, 4)], DELTA)


def test_a_ledger_is_written_by_one_job_at_a_time(tmp_path: Path) -> None:
    account = ledger(tmp_path / "ledger.json")
    with FileLock(tmp_path / "ledger.json.lock"):
        thread = threading.Thread(target=account.spend, args=(2.0,))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert not (tmp_path / "ledger.json").exists()
    thread.join(10)
    assert account.releases == 1


def test_a_budget_that_is_no_number_allows_nothing() -> None:
    assert not ledger(None).spend(100.0, budget=math.nan)


@pytest.mark.parametrize("delta", [0.0, 1.0, 2.0, math.nan])
def test_a_delta_that_is_none_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta must lie between 0 and 1"):
        PrivacyLedger(["a"], delta, "weights")


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


def test_the_budget_is_that_of_who_will_have_spent_most(tmp_path: Path) -> None:
    """Renyi curves cross: b has spent less than a, and more than a once both are in another release."""
    file = tmp_path / "ledger.json"
    ledger(file, "a").spend(2.0, 0.01, 500)
    ledger(file, "b").spend(8.0)
    assert ledger(file, "a").epsilon() > ledger(file, "b").epsilon()
    account = ledger(file, "a", "b")
    foretold = account.epsilon((4.0, 1.0, 1))
    assert foretold == epsilon_of([(8.0, 1.0, 1), (4.0, 1.0, 1)], DELTA) == pytest.approx(1.1432, abs=1e-4)
    assert not account.spend(4.0, budget=1.14)
    assert account.spend(4.0, budget=1.15)
    assert account.epsilon() == foretold


def test_many_patients_cost_no_more_than_their_kinds_of_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"p{number}" for number in range(300)]
    file = tmp_path / "ledger.json"
    computed = []

    def counting(**arguments: float) -> np.ndarray:
        computed.append((arguments["noise_multiplier"], arguments["q"]))
        return compute_rdp(**arguments)

    monkeypatch.setattr("opacus.accountants.analysis.rdp.compute_rdp", counting)
    for first in range(0, 300, 10):
        ledger(file, *names[first:]).spend(3.25, 0.11, 7, budget=100.0)
    account = ledger(file, *names)
    assert len(account._histories()) == 30
    assert account.epsilon((3.75, 0.11, 1)) > account.epsilon() == epsilon_of([(3.25, 0.11, 210)], DELTA)
    assert computed == [(3.25, 0.11), (3.75, 0.11)]


def test_no_epsilon_holds_for_who_was_shown_without_noise(tmp_path: Path) -> None:
    file = tmp_path / "ledger.json"
    ledger(file, "a", "b").spend(8.0)
    ledger(file, "b").note_plain()
    mixed = ledger(file, "a", "b", "c")
    assert (mixed.plain, mixed.epsilon()) == (True, math.inf)
    assert not mixed.spend(100.0, budget=1e9)
    assert (ledger(file, "a", "c").plain, ledger(file, "b").plain) == (False, True)
    assert ledger(file, "a", "c").epsilon() == epsilon_of([(8.0, 1.0, 1)], DELTA)
    assert ledger(file, "b", scope="weights").epsilon() == 0.0
    before = file.read_text()
    ledger(file, "b").note_plain()
    assert file.read_text() == before
    mixed.note_plain()
    assert ledger(file, "c").plain
    resumed = ledger(tmp_path / "new.json", "a")
    resumed.load_state_dict(json.loads(json.dumps(mixed.state_dict())))
    assert resumed.plain
    assert not ledger(None).plain
    with warnings.catch_warnings(action="error"):  # the accountant is not asked, and has nothing to say of its orders
        assert epsilon_of([(8.0, 1.0, 1), (0.0, 1.0, 1)], DELTA) == math.inf


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
    # Written back before anything is spent: the next job must know as well.
    assert ledger(file).releases == 3
    resumed.spend(1.0)
    resumed.spend(1.0)
    assert ledger(file).releases == 5
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_saved_state_adds_to_what_others_wrote_in_a_new_file(tmp_path: Path) -> None:
    file = tmp_path / "ledger.json"
    earlier, job = ledger(file), ledger(file)
    earlier.spend(4.0, steps=2)
    job.spend(4.0, steps=10)
    state = json.loads(json.dumps(job.state_dict()))
    assert "a" not in {part for release in state["releases"] for part in release}  # no names of patients
    file.unlink()
    ledger(file).spend(4.0, steps=6)
    for _ in range(2):  # resumed twice, it has not spent twice
        resumed = ledger(file)
        resumed.load_state_dict(state)
        assert resumed.releases == ledger(file).releases == 2 + 10 + 6
    assert ledger(file, "c").releases == 0


def test_an_older_copy_of_the_file_is_brought_up_to_the_saved_state(tmp_path: Path) -> None:
    file = tmp_path / "ledger.json"
    job = ledger(file, "a")
    ledger(file, "a").spend(2.0)
    job.spend(2.0, steps=3)
    older = file.read_text()
    job.spend(2.0, steps=4)
    state = job.state_dict()
    file.write_text(older)
    assert job.releases == 8
    resumed = ledger(file, "a")
    assert resumed.releases == 4
    resumed.load_state_dict(state)
    assert resumed.releases == ledger(file, "a").releases == 8


@pytest.mark.parametrize("content", ["", "{", '{"version": 1, "entries": []}', '{"version": 2, "entries": [{}]}'])
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


def test_the_file_with_the_patients_names_is_its_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "ledger.json"
    (tmp_path / "ledger.json.tmp").touch(0o644)  # of a crash
    before = os.umask(0o000)
    try:
        for _ in range(2):
            assert ledger(file).spend(1.5)
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            file.chmod(0o644)  # as earlier versions left it
    finally:
        os.umask(before)
    assert not (tmp_path / "ledger.json.tmp").exists()
