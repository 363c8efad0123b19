"""What one site replies or asks that is not so, in a loopback federation: the others' job goes on, unharmed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import DataKind
from nvflare.apis.shareable import Shareable

from fcl.networks.weights import read_weights
from flare_app.peers import feature_request
from flare_app.protocol import Header, TaskName, with_tensors
from flare_app.records import read_rounds
from tests.flare_app.loopback import Federation, three_sites


def _told(**changes: Any) -> Callable[[Shareable], None]:
    """Replaces some of the report of a reply, by name or by ``table__name``."""

    def change(reply: Shareable) -> None:
        report = reply["DXO"]["data"] if reply["DXO"]["kind"] == DataKind.METRICS else reply["DXO"]["meta"]["report"]
        for name, value in changes.items():
            table, _, entry = name.partition("__")
            if entry:
                report[table][int(entry) if entry.isdigit() else entry] = value
            else:
                report[name] = value

    return change


def _nothing_else(reply: Shareable) -> None:
    """A zero update: with weight enough it holds the others' back."""
    for tensor in reply["DXO"]["data"].values():
        tensor.zero_()
    _told(count=2**63)(reply)


def _lying(federation: Federation, task: str, change: Callable[[Shareable], None]) -> Federation:
    """What site-2 replies to a task is not what its executor gave."""
    answered = federation._answered

    def answer(site: str, name: str, *rest: Any) -> Shareable:
        reply = answered(site, name, *rest)
        if (site, name) == ("site-2", task):
            change(reply)
        return reply

    federation._answered = answer  # type: ignore[method-assign]
    return federation


@pytest.mark.parametrize(
    ("task", "change"),
    [
        (TaskName.INITIALIZE, _told(spec__1="x")),
        (TaskName.INITIALIZE, _told(spec__9="x", spec__other="y")),
        (TaskName.INITIALIZE, _told(description__1=2)),
        (TaskName.INITIALIZE, _told(description__slices="24")),
        (TaskName.INITIALIZE, _told(settings={"a": 1, 2: 3})),
        (TaskName.SHARE, _told(rows="10")),
        (TaskName.SHARE, _told(rows=None)),
        (TaskName.TRAIN, _told(metrics__loss=10**400)),
        (TaskName.TRAIN, _told(validation__mean_dice=10**308)),
        (TaskName.TRAIN, _told(seconds=float("nan"))),
        (TaskName.TRAIN, _nothing_else),
    ],
)
def test_no_reply_of_one_site_ends_the_job_of_the_others(
    tmp_path: Path, task: str, change: Callable[[Shareable], None]
) -> None:
    controller = {"max_offences": 9, "admit_late": False}
    federation = _lying(three_sites(tmp_path, 2, controller=controller), task, change).run()
    assert federation.panics == []
    accepted = federation.accepted()
    assert accepted[0] == ["1", "3"]
    assert len(accepted) == 3
    assert all(torch.isfinite(tensor).all() for tensor in read_weights(federation.results / "last.pt").values())


def test_what_cannot_be_used_of_a_site_is_not_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    federation = _lying(three_sites(tmp_path, 1), TaskName.INITIALIZE, _told(card="patient007"))
    hear = federation.controller._enrolment._facts.hear

    def stumble(site: str, report: dict[str, Any]) -> None:
        if report["card"] == "patient007":
            raise KeyError(report["card"])
        hear(site, report)

    monkeypatch.setattr(federation.controller._enrolment._facts, "hear", stumble)
    federation.run()
    assert federation.panics == []
    assert federation.accepted()[0] == ["1", "3"]
    assert "site-2 is left out: what it tells of itself cannot be used: KeyError" in caplog.text
    assert "patient007" not in caplog.text


def test_site_that_claims_more_slices_than_it_has_leaves_the_average_of_the_others(tmp_path: Path) -> None:
    controller = {"validate_every": 0}
    federation = _lying(three_sites(tmp_path, 1, controller=controller), TaskName.TRAIN, _told(count=25)).run()
    record = read_rounds(federation.results / "rounds.jsonl")[0]
    assert record["rejected"] == {"site-2": "it reports 25 slices, more than the 24 that it can have"}
    first, third = (federation.executors[site]._participant.weights() for site in ("site-1", "site-3"))  # type: ignore[union-attr]
    for name, tensor in read_weights(federation.results / "last.pt").items():
        torch.testing.assert_close(tensor, (first[name] + third[name]) / 2, rtol=0, atol=1e-6)


def test_initial_weights_with_nan_give_way_to_those_of_the_next_site(tmp_path: Path) -> None:
    """No update would be too large for them."""
    federation = three_sites(tmp_path, 1)
    answered = federation._answered

    def answer(site: str, name: str, *rest: Any) -> Shareable:
        reply = answered(site, name, *rest)
        if (site, name) == ("site-1", TaskName.INITIAL_WEIGHTS):
            reply["DXO"]["data"]["encoder.bias"][0] = float("nan")
        return reply

    federation._answered = answer  # type: ignore[method-assign]
    federation.run()
    assert federation.panics == []
    assert federation.asked_for("initial_weights") == [["1"], ["2"]]
    assert all(torch.isfinite(tensor).all() for tensor in read_weights(federation.results / "last.pt").values())


def test_no_request_of_a_peer_changes_or_silences_a_site(tmp_path: Path) -> None:
    federation = three_sites(tmp_path, 3, job_policy={})
    broadcast = federation._broadcast

    def between(task: Any, *rest: Any, **named: Any) -> None:
        broadcast(task, *rest, **named)
        number = task.data.get_header(Header.ROUND)
        if task.name != TaskName.SHARE or number != 1:
            return
        odd = feature_request(number, None)
        odd.set_header(Header.ROUND, float(number))
        federation.execute("site-1", TaskName.GET_FEATURES, odd, by="site-2")
        weights = {"encoder.weight": torch.full((8, 8), 777.0), "encoder.bias": torch.zeros(8)}
        for name in (TaskName.INITIALIZE, TaskName.SHARE, TaskName.TRAIN, TaskName.VALIDATE):
            message = with_tensors(DataKind.WEIGHTS, weights)
            for header, value in ((Header.ROUND, 2), (Header.TOTAL_ROUNDS, 3), (Header.PEERS, [])):
                message.set_header(header, value)
            assert "DXO" not in federation.execute("site-1", name, message, by="site-2")

    federation.controller.broadcast = between  # type: ignore[method-assign]
    federation.run()
    assert federation.panics == []
    assert federation.accepted() == [["1", "2", "3"]] * 4
    undisturbed = three_sites(tmp_path / "undisturbed", 3, job_policy={}).run()
    for name, tensor in read_weights(undisturbed.results / "last.pt").items():
        assert torch.equal(read_weights(federation.results / "last.pt")[name], tensor)
