from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nvflare.apis.client import Client
from nvflare.apis.client import from_dict as client_of
from nvflare.apis.dxo import DXO
from nvflare.apis.fl_constant import FLContextKey, ReservedKey, ReservedTopic, ReturnCode
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.apis.utils.decomposers import flare_decomposers
from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.cellnet.defs import CellChannel, MessageHeaderKey
from nvflare.fuel.f3.message import Message
from nvflare.private.aux_runner import AuxRunner
from nvflare.private.fed.client.command_agent import CommandAgent

from flare_app.exchange import FEATURES
from flare_app.peers import SERVER, UNKNOWN, Peers, asked_by, asker, feature_request, know_peers, not_for
from flare_app.protocol import Header, TaskName, with_report

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


class Asked:
    """FLARE's engine at site-1, which notes who each request for a task is of; its cell and its runner of requests are
    FLARE's own.

    Args:
        cell: of site-1 in the job.
        clients: of the job, as the server says.
        secure: whether the system has certificates.
    """

    def __init__(self, cell: Cell, clients: list[Client], secure: bool = False) -> None:
        self.cell, self.clients = cell, clients
        self.found: list[str] = []
        private = {FLContextKey.SECURE_MODE: secure}
        self.manager = FLContextManager(engine=self, identity_name="site-1", job_id="job", private_stickers=private)
        self.aux = AuxRunner(self)
        self.aux.register_aux_message_handler(ReservedTopic.DO_TASK, self._do_task)
        self.dispatch = self.aux.dispatch
        agent = CommandAgent(SimpleNamespace(cell=cell))
        agent.start(self.manager.new_context())
        self.get_clients, self.get_cell = (lambda: self.clients), (lambda: self.cell)
        know_peers(self.manager.new_context())

    def new_context(self) -> FLContext:
        return self.manager.new_context()

    def get_job_clients(self, fl_ctx: FLContext) -> None: ...

    def _do_task(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        self.found.append(asker(fl_ctx))
        return with_report({})


@pytest.fixture(scope="module")
def cells() -> Iterator[dict[str, Cell]]:
    """FLARE's, joined within this process."""
    flare_decomposers.register()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        url = f"tcp://localhost:{free.getsockname()[1]}"
    names = ("server", "server.job", "site-1.job", "site-2.job", "site-2", "site-9.job")
    made = {name: Cell(fqcn=name, root_url=url, secure=False, credentials={}) for name in names}
    for cell in made.values():
        cell.start()
    yield made
    for cell in made.values():
        cell.stop()


SITES = [Client("site-1", None), Client("site-2", None)]


def _send(cell: Cell, **peer_props: Any) -> None:
    request = Shareable()
    request.set_peer_props({ReservedKey.IDENTITY_NAME: "server", **peer_props})
    cell.send_request(
        channel=CellChannel.AUX_COMMUNICATION,
        topic=ReservedTopic.DO_TASK,
        target="site-1.job",
        request=Message({MessageHeaderKey.ORIGIN: "server.job"}, request),
        timeout=5,
    )


@pytest.mark.parametrize(
    ("sender", "expected"),
    [
        ("site-2.job", "site-2"),
        ("site-2", UNKNOWN),  # not the process of this job
        ("site-9.job", UNKNOWN),  # no site of the job
        ("server.job", UNKNOWN),
        ("server", UNKNOWN),
        ("site-1.job", UNKNOWN),
    ],
)
def test_who_asks_is_told_by_the_message_and_not_by_the_asker(
    cells: dict[str, Cell], sender: str, expected: str
) -> None:
    engine = Asked(cells["site-1.job"], SITES)
    _send(cells[sender])
    _send(cells[sender], **{ReservedKey.FQSN: "site-3"})
    assert engine.found == [expected, expected]


@pytest.mark.parametrize(
    "posing",
    [
        {"name": "site-3", "fqcn": "server"},
        {"name": "server", "fqcn": "server"},
        {"name": "unknown"},
        {"name": "site-3", "fqcn": "site-9"},
    ],
)
def test_the_server_cannot_pose_as_a_site_by_what_it_says_of_who_takes_part(
    cells: dict[str, Cell], posing: dict[str, str]
) -> None:
    engine = Asked(cells["site-1.job"], [*SITES, client_of(posing)])
    for sender in ("server.job", "site-9.job"):
        _send(cells[sender])
    assert engine.found == [UNKNOWN, UNKNOWN]


def _headers(secure: bool) -> dict[str, Any]:
    return {
        MessageHeaderKey.ORIGIN: "site-2.job",
        MessageHeaderKey.TOPIC: ReservedTopic.DO_TASK,
        MessageHeaderKey.SECURE: secure,
    }


@pytest.mark.parametrize(("encrypted", "expected"), [(True, "site-2"), (False, UNKNOWN)])
def test_with_certificates_no_peer_asks_in_clear(cells: dict[str, Cell], encrypted: bool, expected: str) -> None:
    """The reply is encrypted when the request is: else whoever sends it in another's name could read the reply."""
    engine = Asked(cells["site-1.job"], SITES, secure=True)
    request = Shareable()
    request.set_peer_props({ReservedKey.IDENTITY_NAME: "site-2"})
    answer = engine.cell.core_cell.req_reg.find(CellChannel.AUX_COMMUNICATION, ReservedTopic.DO_TASK).cb
    answer(Message(_headers(encrypted), request))
    assert engine.found == [expected]


def test_a_task_that_came_by_no_known_way_is_of_nobody() -> None:
    fl_ctx = FLContextManager(identity_name="site-1", job_id="job").new_context()
    assert asker(fl_ctx) == UNKNOWN
    with asked_by("site-2"):
        assert asker(fl_ctx) == "site-2"
    assert asker(fl_ctx) == UNKNOWN
    fl_ctx.set_prop(FLContextKey.SSID, None, sticky=False)  # the simulator has no sessions to name
    assert asker(fl_ctx) == SERVER


@pytest.mark.parametrize("task", [*TaskName.ALL, TaskName.STATISTICS])
def test_peers_may_ask_for_features_and_the_server_for_all_else(task: str) -> None:
    allowed = {who for who in (SERVER, "site-2", UNKNOWN) if not_for(task, who) is None}
    assert allowed == ({"site-2"} if task == TaskName.GET_FEATURES else {SERVER})
