"""Asking sites and counting what may be used: FLARE's own broadcast counts an error as an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.workflows.model_controller import ModelController

from flare_app.protocol import reason_of

Answers = dict[str, Shareable]
Reasons = dict[str, str]


class JobFailed(Exception):
    """The job cannot go on; the message is the reason that the user sees."""


class AskingController(ModelController):
    """A controller that knows which sites gave a usable result, and why the others did not.

    Args:
        min_sites: least number of usable results.
    """

    def __init__(self, min_sites: int) -> None:
        super().__init__(persistor_id="", task_check_period=0.1)
        if min_sites < 1:
            raise ValueError(f"min_sites must be at least 1, got {min_sites}")
        self.min_sites = min_sites

    def ask(
        self,
        name: str,
        payloads: Sequence[tuple[Shareable, Sequence[str]]],
        timeout_s: int,
        accept: Callable[[str, Shareable], str | None] | None = None,
    ) -> tuple[Answers, Reasons]:
        """Send a task and wait until every site has answered or the time is over.

        Args:
            name: of the task.
            payloads: what to send, and to which sites.
            timeout_s: whole seconds.
            accept: called with each usable reply, one at a time in order of arrival, instead of keeping it; gives the
                reason when it rejects one.

        Returns:
            usable replies by site (empty ones when ``accept`` took them), and why the other sites have none.
        """
        answers: Answers = {}
        reasons: Reasons = {}

        def received(client_task: ClientTask, fl_ctx: FLContext) -> None:
            site, answer = client_task.client.name, client_task.result
            client_task.result = None  # the task outlives the round, the tensors need not
            if answer.get_return_code() != ReturnCode.OK:
                problem: str | None = reason_of(answer)
            else:
                try:
                    problem = accept(site, answer) if accept else None
                except Exception as error:  # whatever a site replies, the others' job goes on
                    problem = f"its reply cannot be read: {type(error).__name__}: {error}"
            if problem:
                reasons[site] = problem
            else:
                answers[site] = Shareable() if accept else answer

        tasks = []
        for payload, sites in payloads:
            task = Task(name=name, data=payload, timeout=timeout_s, result_received_cb=received)
            self.broadcast(task, self.fl_ctx, targets=list(sites), min_responses=0)
            tasks.append(task)
        for task in tasks:
            self.communicator.wait_for_task(task, self.abort_signal)
        for _, sites in payloads:
            for site in sites:
                if site not in answers and site not in reasons:
                    reasons[site] = f"no answer to {name!r} within {timeout_s} s"
        return answers, reasons

    def require_quorum(self, what: str, answers: Mapping[str, Any], refused: Reasons) -> None:
        """Go on only with enough usable results.

        Raises:
            JobFailed: with the reason of every site that is left out.
        """
        if self.is_aborted():
            raise JobFailed("aborted")
        for site, reason in sorted(refused.items()):
            self.warning(f"{what}: {site} is left out: {reason}")
        if len(answers) < self.min_sites:
            raise JobFailed(
                f"{what}: {len(answers)} of {len(answers) + len(refused)} sites gave a usable result, "
                f"{self.min_sites} are needed. {listed(refused)}"
            )


def listed(reasons: Mapping[str, str]) -> str:
    """Reasons of all sites in one line."""
    return "; ".join(f"{site}: {reason}" for site, reason in sorted(reasons.items()))
