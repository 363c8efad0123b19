from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from nvflare.apis.shareable import Shareable

from fcl.networks.weights import read_weights
from flare_app.protocol import TaskName
from flare_app.records import read_rounds
from flare_app.state import RunState
from tests.flare_app.loopback import THREE_SITES, Federation, three_sites

OTHER_VERSION = "it has another version of the bundle or of its config files than the other sites"


def _of_another_version(federation: Federation) -> Federation:
    """Site-3, as long as nobody mends it."""
    answered = federation._answered

    def answer(site: str, name: str, *rest: Any) -> Shareable:
        reply = answered(site, name, *rest)
        if (site, name) == ("site-3", TaskName.INITIALIZE):
            reply["DXO"]["data"]["config_hash"] = "of another version"
        return reply

    federation._answered = answer  # type: ignore[method-assign]
    return federation


def test_site_of_another_version_takes_part_once_it_is_mended_and_the_job_resumed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = str(tmp_path / "state")
    settings = {"num_rounds": 4, "checkpoint_dir": state}
    first = _of_another_version(Federation(tmp_path / "a", THREE_SITES, settings)).run()
    assert first.panics == []
    assert first.accepted() == [["1", "2"]] * 5
    assert {record["left_out"]["site-3"] for record in read_rounds(first.results / "rounds.jsonl")} == {OTHER_VERSION}
    assert "excluded" not in caplog.text
    found = RunState.load(first.results)
    assert found is not None
    assert found.offences == {}
    mended = Federation(tmp_path / "b", THREE_SITES, {**settings, "num_rounds": 6, "resume": True}).run()
    assert mended.panics == []
    assert mended.accepted()[4:] == [["1", "2", "3"]] * 3


@pytest.mark.parametrize("late", [False, True])
def test_introduction_in_a_form_of_another_version_is_no_offence(tmp_path: Path, late: bool) -> None:
    federation = three_sites(tmp_path, 4, silent={"site-3": ["initialize#1"]} if late else {})
    answered = federation._answered

    def answer(site: str, name: str, *rest: Any) -> Shareable:
        reply = answered(site, name, *rest)
        if (site, name) == ("site-3", TaskName.INITIALIZE) and len(federation.asked_for("initialize")) < 4:
            del reply["DXO"]["data"]["settings"]
        return reply

    federation._answered = answer  # type: ignore[method-assign]
    federation.run()
    assert federation.panics == []
    assert federation.controller.roster.offences == {}
    assert federation.accepted() == [["1", "2"]] * 3 + [["1", "2", "3"]] * 2


def test_weights_that_are_refused_leave_nothing_in_those_of_the_next_site(tmp_path: Path) -> None:
    federation = three_sites(tmp_path, 1)
    answered = federation._answered

    def answer(site: str, name: str, *rest: Any) -> Shareable:
        reply = answered(site, name, *rest)
        if (site, name) == ("site-1", TaskName.INITIAL_WEIGHTS):
            reply["DXO"]["data"]["encoder.extra"] = torch.zeros(2)
        return reply

    federation._answered = answer  # type: ignore[method-assign]
    federation.run()
    assert federation.panics == []
    assert federation.asked_for("initial_weights") == [["1"], ["2"]]
    assert sorted(read_weights(federation.results / "last.pt")) == ["encoder.bias", "encoder.weight"]
