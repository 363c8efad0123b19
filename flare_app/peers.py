"""Pulling features from the other sites, as a task that they answer through their own result filters."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Sequence

from nvflare.apis.controller_spec import Task
from nvflare.apis.dxo import DXO, from_shareable
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.task_controller import TaskController
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from flare_app.protocol import Header, TaskName

logger = logging.getLogger(__name__)


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
