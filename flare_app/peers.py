"""The other sites of the job: pulling features from them, as a task that they answer through their own result filters,
and knowing which of them asks this site for a task.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from nvflare.apis.controller_spec import Task
from nvflare.apis.dxo import DXO, from_shareable
from nvflare.apis.fl_constant import FLContextKey, ReservedTopic, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.task_controller import TaskController
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.fuel.f3.cellnet.defs import CellChannel, MessageHeaderKey
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.message import Message

from flare_app.protocol import Header, TaskName

logger = logging.getLogger(__name__)

# Whom a reply may go to, beside the peers by name.
SERVER = "server"
UNKNOWN = "unknown"

_asked_by: ContextVar[str | None] = ContextVar("fcl_asked_by", default=None)  # of the request that a thread answers


class Peers:
    """The other sites of the job, as this one reaches them.

    Tasks between sites, unlike FLARE's raw auxiliary messages, pass the filters of both sides; that is why features
    are asked for and answered rather than sent.

    Args:
        timeout_s: how long to wait for a peer, both attempts together.
        pause_s: before the second attempt: a peer that has just started, or whose connection broke, may be ready then.
    """

    def __init__(self, timeout_s: float, pause_s: float = 1.0) -> None:
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._tasks = TaskController()

    def start(self, fl_ctx: FLContext) -> None:
        """Learn the job's filters; to be called when the run starts."""
        self._tasks.start_controller(fl_ctx)

    def pull(self, peers: Sequence[str], request: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> dict[str, DXO]:
        """What each of ``peers`` answers to ``request`` (see :func:`feature_request`); all are asked at the same time.

        Those that refuse (not started yet, nothing published yet, a filter) or stay silent for half the time are asked
        once more; those that give no answer then are left out. End-to-end encrypted between the two sites whenever the
        system has certificates.
        """
        deadline, round_number = time.monotonic() + self._timeout_s, request.get_header(Header.ROUND)
        answers = self._ask(peers, self._timeout_s / 2, request, fl_ctx, abort_signal)
        silent = [peer for peer in peers if peer not in answers]
        if silent and not abort_signal.triggered:
            time.sleep(self._pause_s)
            answers.update(self._ask(silent, deadline - time.monotonic(), request, fl_ctx, abort_signal))
        for peer in sorted(set(peers) - answers.keys()):
            logger.warning("round %d: no features from %s within %g s", round_number, peer, self._timeout_s)
        return answers

    def _ask(
        self, peers: Sequence[str], timeout_s: float, request: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> dict[str, DXO]:
        if not peers:
            return {}
        engine = fl_ctx.get_engine()
        engine.get_job_clients(fl_ctx)  # the engine resolves peers by name only after this
        task = Task(
            name=TaskName.GET_FEATURES,
            data=copy.deepcopy(request),  # FLARE adds headers of its own
            timeout=max(1, math.ceil(timeout_s)),
            secure=bool(fl_ctx.get_prop(FLContextKey.SECURE_MODE, False)),
        )
        # A context of its own: sending replaces the task data that the running task's context holds.
        with engine.new_context() as peer_ctx:
            replies = self._tasks.broadcast_and_wait(task, peer_ctx, targets=list(peers), abort_signal=abort_signal)
        answers = {}
        for peer in sorted(peers):
            reply = replies.get(peer)
            if reply is None or reply.get_return_code() != ReturnCode.OK:
                continue
            try:
                answers[peer] = from_shareable(reply)
            except ValueError as error:  # a peer's nonsense is no reason for this site to fail
                number = request.get_header(Header.ROUND)
                logger.warning("round %d: the answer of %s cannot be read: %s", number, peer, error)
        return answers


def feature_request(round_number: int, rows: int | None) -> Shareable:
    """What a site asks its peers: the features of a round, some random ``rows`` of them or (None) all."""
    request = Shareable()
    request.set_header(Header.ROUND, round_number)
    if rows is not None:
        request.set_header(Header.PULL_ROWS, rows)
    return request


def asker(fl_ctx: FLContext) -> str:
    """Who asked for the task of this context, and gets the reply: a peer's name, ``SERVER`` or ``UNKNOWN``.

    What an asker says of itself (the peer context) counts for nothing. The server's tasks are those that this site
    fetches: FLARE notes the session in the context in which it does so, and in no other. Whatever comes by itself is
    a request, of the peer that :func:`know_peers` found.
    """
    peer = _asked_by.get()
    if peer is not None:
        return peer
    return SERVER if fl_ctx.get_prop_detail(FLContextKey.SSID) is not None else UNKNOWN


def not_for(task_name: str, who: str) -> str | None:
    """Why ``who`` (see :func:`asker`) must not have a task done; None when it may.

    Peers get features, and nothing else. The server gets all but those, which peers alone are to read.
    """
    peers_task = task_name == TaskName.GET_FEATURES
    if who == UNKNOWN or peers_task == (who == SERVER):
        return f"{task_name!r} is for {'peers of this job' if peers_task else 'the server'} to ask, not for {who}"
    return None


@contextmanager
def asked_by(peer: str) -> Iterator[None]:
    """What is done inside, on this thread, answers a request of ``peer`` (or of ``UNKNOWN``)."""
    before = _asked_by.set(peer)
    try:
        yield
    finally:
        _asked_by.reset(before)


def know_peers(fl_ctx: FLContext) -> None:
    """Find the peer behind each request for a task; to be called when the run starts.

    FLARE lets each client ask for any task, and hands on no more of the asker than it says of itself. So requests are
    met here, as messages: these have an origin, which the relaying server holds against the sender's token, and which
    the reply goes to. With certificates a request must come encrypted, since the reply then is, too: by the key of the
    origin's certificate, whoever sent the request.

    Raises:
        RuntimeError: when FLARE does not take requests yet.
    """
    cell = fl_ctx.get_engine().get_cell()
    known = cell.core_cell.req_reg.find(CellChannel.AUX_COMMUNICATION, "*")
    if known is None:
        raise RuntimeError("FLARE takes no requests from other sites yet")
    peers = _cells(fl_ctx)
    secure = bool(fl_ctx.get_prop(FLContextKey.SECURE_MODE, False))

    def answer(request: Message) -> Message:
        peer = peers.get(request.get_header(MessageHeaderKey.ORIGIN), UNKNOWN)
        with asked_by(UNKNOWN if secure and _in_clear(request) else peer):
            return known.cb(request, *known.args, **known.kwargs)

    cell.register_request_cb(channel=CellChannel.AUX_COMMUNICATION, topic=ReservedTopic.DO_TASK, cb=answer)


def _in_clear(request: Message) -> bool:
    return not request.get_header(MessageHeaderKey.SECURE, False)


def _cells(fl_ctx: FLContext) -> dict[str, str]:
    """The other sites of the job by the cell that speaks for them in it.

    The server says who takes part. It cannot name itself so: a peer's cell answers to the certificate of its name, and
    to no one else's.
    """
    engine = fl_ctx.get_engine()
    engine.get_job_clients(fl_ctx)
    identities = engine.get_cell().core_cell.identity_resolver
    no_peers = (fl_ctx.get_identity_name(), identities.resolve(FQCN.ROOT_SERVER), SERVER, UNKNOWN)
    cells = {FQCN.join([client.get_fqcn(), fl_ctx.get_job_id()]): client.name for client in engine.get_clients()}
    return {cell: name for cell, name in cells.items() if identities.resolve(cell) == name and name not in no_peers}
