from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flare_app.protocol import TaskName, path_like
from flare_app.records import read_rounds
from tests.flare_app.loopback import THREE_SITES, Federation

REASON = (
    "its saved state is of other data or settings: set its data, batch_size and device back to what they were, or move "
    "the saved state away and begin afresh from the global weights; files and folder are in the log of site-2"
)


def _federation(root: Path, name: str, rounds: int, **controller: Any) -> Federation:
    state = str(root / "state")
    settings = {"num_rounds": rounds, "exchange": "features", "checkpoint_dir": state, **controller}
    return Federation(root / name, THREE_SITES, settings, {"checkpoint_dir": state})


def _sets_batch_size(federation: Federation, size: int) -> None:
    local = federation.root / "site-2" / "local"
    local.mkdir(parents=True, exist_ok=True)
    (local / "fcl_site.json").write_text(json.dumps({"batch_size": size}))


def _between(federation: Federation, number: int, action: Any) -> Federation:
    """Something is done at a site before a round."""
    round_of = federation.controller._round

    def begin(at: int) -> Any:
        if at == number:
            action()
        return round_of(at)

    federation.controller._round = begin  # type: ignore[method-assign]
    return federation


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    assert _federation(tmp_path, "first", 2).run().panics == []
    return tmp_path


def _move_away(root: Path) -> None:
    (root / "state" / "site-2").rename(root / "moved")


def test_state_of_other_settings_is_refused_with_the_way_out_and_no_path_leaves(
    stopped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    federation = _federation(stopped, "second", 4, resume=True)
    _sets_batch_size(federation, 2)
    federation.run()
    assert federation.panics == []
    records = read_rounds(federation.results / "rounds.jsonl")[2:]
    assert [record["left_out"] for record in records] == [{"site-2": REASON}] * 3
    assert not path_like(REASON)
    assert (
        f"site-2: to begin afresh move round_00001.pt, round_00002.pt out of {stopped}/state/site-2; a privacy ledger "
        "stays where it is" in caplog.text
    )
    sent = [str(dict(reply)) for site, name, reply in federation.replies if (site, name) == ("site-2", "initialize")]
    assert sent
    assert not any("patient007" in text or "round_0" in text for text in sent)
    assert "patient007" in caplog.text


def test_site_whose_state_was_moved_away_begins_afresh_in_the_resumed_job(stopped: Path) -> None:
    _move_away(stopped)
    federation = _federation(stopped, "second", 4, resume=True)
    _sets_batch_size(federation, 2)
    federation.run()
    assert federation.panics == []
    assert federation.accepted() == [["1", "2", "3"]] * 5
    assert [file.name for file in sorted((stopped / "state/site-2").iterdir())] == ["round_00003.pt", "round_00004.pt"]
    assert federation.executors["site-2"]._participant.batch_size == 2  # type: ignore[union-attr]


def test_site_that_is_set_back_while_the_job_runs_goes_on_from_its_state(stopped: Path) -> None:
    federation = _federation(stopped, "second", 6, resume=True)
    _sets_batch_size(federation, 2)
    _between(federation, 3, lambda: _sets_batch_size(federation, 4)).run()
    assert federation.panics == []
    # Round 3 asks it once more, with its settings still as they were; round 4 then has it mended.
    assert federation.accepted()[2:] == [["1", "3"], ["1", "3"], ["1", "3"], *[["1", "2", "3"]] * 2]
    journal = next((federation.root / "site-2").rglob("journal.txt")).read_text()
    assert journal.count("restored") == 1


def test_nothing_of_a_state_that_did_not_fit_is_left_when_the_site_begins_afresh(stopped: Path) -> None:
    """As the fake participant refuses it, its network has been restored by then."""
    federation = _federation(stopped, "second", 5, resume=True)
    _sets_batch_size(federation, 2)
    built: list[Any] = []
    executor, opened = federation.executors["site-2"], federation.executors["site-2"]._open

    def noted(*arguments: Any, **named: Any) -> None:
        opened(*arguments, **named)
        built.append(executor._participant)

    executor._open = noted  # type: ignore[method-assign]
    _between(federation, 2, lambda: _move_away(stopped)).run()
    assert federation.panics == []
    assert federation.accepted()[2:] == [["1", "3"], ["1", "3"], *[["1", "2", "3"]] * 2]
    assert executor._participant is built[-1]
    assert len({id(participant) for participant in built}) == len(built) > 1
    assert federation.asked_for(TaskName.INITIALIZE)[0] == ["1", "2", "3"]
