"""Pulling features from the other sites, as a task that they answer through their own result filters."""

from __future__ import annotations

import logging
import math
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
        timeout_s: how long to wait for all peers together.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = math.ceil(timeout_s)
        self._tasks = TaskController()

    def start(self, fl_ctx: FLContext) -> None:
        """Learn the job's filters; to be called when the run starts."""
        self._tasks.start_controller(fl_ctx)

    def pull(self, peers: Sequence[str], round_number: int, fl_ctx: FLContext, abort_signal: Signal) -> dict[str, DXO]:
        """What each of ``peers`` published in this round; those that give no answer in time are left out.

        End-to-end encrypted between the two sites whenever the system has certificates.
        """
        if not peers:
            return {}
        engine = fl_ctx.get_engine()
        engine.get_job_clients(fl_ctx)  # the engine resolves peers by name only after this
        request = Shareable()
        request.set_header(Header.ROUND, round_number)
        task = Task(
            name=TaskName.GET_FEATURES,
            data=request,
            timeout=self._timeout_s,
            secure=bool(fl_ctx.get_prop(FLContextKey.SECURE_MODE, False)),
        )
        # A context of its own: sending replaces the task data that the running task's context holds.
        with engine.new_context() as peer_ctx:
            replies = self._tasks.broadcast_and_wait(task, peer_ctx, targets=list(peers), abort_signal=abort_signal)
        answers = {}
        for peer in sorted(peers):
            reply = replies.get(peer)
            if reply is not None and reply.get_return_code() == ReturnCode.OK:
                answers[peer] = from_shareable(reply)
            else:
                logger.warning("round %d: no features from %s within %d s", round_number, peer, self._timeout_s)
        return answers
