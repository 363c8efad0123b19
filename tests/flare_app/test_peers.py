from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import DXO
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal

from flare_app.exchange import FEATURES
from flare_app.peers import Peers, feature_request
from flare_app.protocol import Header

Answer = Callable[[int], Shareable | None]


def _features(name: str) -> Shareable:
    return DXO(FEATURES, data={"features": torch.full((1, 2), float(len(name)))}).to_shareable()


class Engine:
    """FLARE's engine at a site, as the exchange uses it: peers answer by attempt, None is a timeout."""

    def __init__(self, answers: dict[str, Answer]) -> None:
        self.answers = answers
        self.requests: list[tuple[list[str], float, bool]] = []
        self.all_clients: list[Any] = []

    def context(self, secure: bool = False) -> FLContext:
        self._manager = FLContextManager(engine=self, identity_name="site-1", job_id="job")
        fl_ctx = self._manager.new_context()
        fl_ctx.set_prop(FLContextKey.SECURE_MODE, secure, private=True, sticky=True)
        return fl_ctx

    @contextmanager
    def new_context(self) -> Any:
        yield self._manager.new_context()

    def get_job_clients(self, fl_ctx: FLContext) -> None:
        from nvflare.apis.client import Client

        self.all_clients = [Client(name, None) for name in self.answers]

    def validate_targets(self, names: list[str]) -> tuple[list[str], list[str]]:
        return names, []

    def fire_event(self, event_type: str, fl_ctx: FLContext) -> None:
        pass

    def send_aux_request(self, targets: list[str], timeout: float, secure: bool, **rest: Any) -> dict[str, Shareable]:
        self.requests.append((list(targets), timeout, secure))
        attempt = sum(targets[0] in asked for asked, _, _ in self.requests)
        replies = {target: self.answers[target](attempt) for target in targets}
        return {target: make_reply(ReturnCode.TIMEOUT) if r is None else r for target, r in replies.items()}


def _pull(engine: Engine, secure: bool = False) -> tuple[dict[str, DXO], Engine]:
    peers = Peers(timeout_s=20, pause_s=0)
    return peers.pull(sorted(engine.answers), feature_request(3, None), engine.context(secure), Signal()), engine


@pytest.mark.parametrize("secure", [False, True])
def test_peers_that_answer_are_asked_once_and_encrypted_where_possible(secure: bool) -> None:
    answers, engine = _pull(Engine({name: lambda n, name=name: _features(name) for name in ("site-2", "s3")}), secure)
    assert engine.requests == [(["s3", "site-2"], 10, secure)]
    assert {peer: dxo.data["features"].tolist() for peer, dxo in answers.items()} == {
        "s3": [[2.0, 2.0]],
        "site-2": [[6.0, 6.0]],
    }


@pytest.mark.parametrize("first", [make_reply(ReturnCode.TOPIC_UNKNOWN), make_reply(ReturnCode.ERROR), None])
def test_a_peer_that_is_not_ready_is_asked_once_more_within_the_same_time(first: Shareable | None) -> None:
    answers, engine = _pull(
        Engine({"site-2": lambda n: _features("xx"), "site-3": lambda n: first if n == 1 else _features("xxx")})
    )
    assert sorted(answers) == ["site-2", "site-3"]
    assert [asked for asked, _, _ in engine.requests] == [["site-2", "site-3"], ["site-3"]]
    assert engine.requests[1][1] <= 20


@pytest.mark.parametrize(
    ("rows", "headers"), [(None, {Header.ROUND: 3}), (64, {Header.ROUND: 3, Header.PULL_ROWS: 64})]
)
def test_request_tells_round_and_rows_and_nothing_else(rows: int | None, headers: dict[str, int]) -> None:
    assert dict(feature_request(3, rows)) == {"__headers__": headers}


def test_a_silent_peer_is_left_out_by_name_and_the_others_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    answers, engine = _pull(Engine({"site-2": lambda n: _features("xx"), "site-3": lambda n: None}))
    assert list(answers) == ["site-2"]
    assert len(engine.requests) == 2
    assert "round 3: no features from site-3 within 20 s" in caplog.text


def test_nonsense_of_a_peer_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    answers, _ = _pull(Engine({"site-2": lambda n: _features("xx"), "site-3": lambda n: Shareable({"x": 1})}))
    assert list(answers) == ["site-2"]
    assert "round 3: the answer of site-3 cannot be read" in caplog.text


def test_nobody_is_asked_again_in_a_job_that_ends() -> None:
    engine, over = Engine({"site-2": lambda n: None}), Signal()
    over.trigger("end")
    assert Peers(20, pause_s=0).pull(["site-2"], feature_request(0, None), engine.context(), over) == {}
    assert len(engine.requests) == 1


def test_a_site_alone_asks_nobody() -> None:
    answers, engine = _pull(Engine({}))
    assert answers == {}
    assert engine.requests == []
