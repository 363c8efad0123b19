"""Features that come while a site trains, and serve one round later."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import DXO
from nvflare.apis.fl_constant import ReturnCode

from fcl.networks.weights import read_weights
from flare_app import executor as module
from flare_app.executor import FCLExecutor
from flare_app.protocol import Header, TaskName, report_of
from flare_app.records import read_rounds
from tests.flare_app.loopback import Federation
from tests.flare_app.test_executor import Site, _executor, _initialize, _round

OVERLAP = {"exchange": "features", "overlap": True}


@pytest.fixture
def in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers answer before the training that they would answer beside: sites of one process share a random generator."""

    def done(work: Callable[[], dict[str, DXO]]) -> Future[dict[str, DXO]]:
        future: Future[dict[str, DXO]] = Future()
        future.set_result(work())
        return future

    monkeypatch.setattr(module, "_beside", done)


def _started(root: Path, pull: Callable[[], dict[str, DXO]]) -> tuple[FCLExecutor, Site, Any]:
    executor = _executor()
    site = Site(root, executor)
    opening = _initialize("features")
    opening.set_header(Header.OVERLAP, True)
    assert site.do(TaskName.INITIALIZE, opening).get_return_code() == ReturnCode.OK
    executor._peers.pull = lambda *_: pull()  # type: ignore[method-assign]
    weights = executor._participant.weights()  # type: ignore[union-attr]
    site.do(TaskName.SHARE, _round(weights))
    task = _round(weights)
    task.set_header(Header.PEERS, ["site-1", "site-2"])
    return executor, site, task


def test_training_does_not_wait_for_peers_and_takes_nothing_from_them_meanwhile(tmp_path: Path) -> None:
    trained = threading.Event()

    def pull() -> dict[str, DXO]:
        assert trained.wait(20), "training waits for its peers"
        return {"site-2": module.encode(executor._published.features, "features", 0)}  # type: ignore[union-attr]

    executor, site, task = _started(tmp_path, pull)
    participant: Any = executor._participant
    train = participant.train

    def watched(should_stop: Callable[[], bool]) -> Any:
        assert participant.peers == {}
        report = train(should_stop)
        assert participant.peers == {}
        trained.set()
        return report

    participant.train = watched
    reply = site.do(TaskName.TRAIN, task)
    assert reply.get_return_code() == ReturnCode.OK
    assert list(report_of(reply)["features_received"]) == ["site-2"]
    assert list(participant.peers) == ["site-2"]


def test_what_a_pull_raises_is_the_tasks_error(tmp_path: Path) -> None:
    def pull() -> dict[str, DXO]:
        raise ConnectionError("gone")

    _, site, task = _started(tmp_path, pull)
    assert site.do(TaskName.TRAIN, task).get_return_code() != ReturnCode.OK


def test_first_round_has_no_remote_features_and_a_resumed_run_ends_with_the_same_bits(
    tmp_path: Path, in_turn: None
) -> None:
    sites = ["site-1", "site-2", "site-3"]
    controller = {**OVERLAP, "checkpoint_dir": "state"}
    executor = {"checkpoint_dir": "state"}
    whole = Federation(tmp_path / "whole", sites, {**controller, "num_rounds": 4}, executor, job_policy={}).run()
    for rounds, resume in ((2, False), (4, True)):
        parts = Federation(
            tmp_path / "parts", sites, {**controller, "resume": resume, "num_rounds": rounds}, executor, job_policy={}
        ).run()
    assert whole.panics == parts.panics == []
    ours, theirs = (read_weights(run.results / "last.pt") for run in (parts, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    records = read_rounds(whole.results / "rounds.jsonl")
    assert all(record["sites"]["site-1"]["features_from"] == sites[1:] for record in records[:4])
    at_once = Federation(tmp_path / "once", sites, {"exchange": "features", "num_rounds": 4}).run()
    first, other = (read_rounds(run.results / "rounds.jsonl")[0]["metrics"] for run in (whole, at_once))
    assert first != other, "with the exchange before training, the first round has the peers' features"


@pytest.mark.parametrize("settings", [{"exchange": "none"}, {"exchange": "features", "route": "relay"}])
def test_nothing_to_pull_is_refused(settings: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="overlap needs an exchange between peers"):
        Federation(tmp_path, controller={**settings, "overlap": True})
