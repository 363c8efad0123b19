"""Asking sites and counting what may be used: FLARE's own broadcast counts an error as an answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask, Task, TaskCompletionStatus
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.wf_comm_spec import WFCommSpec
from nvflare.app_common.workflows.model_controller import ModelController

from flare_app.intake import Accept
from flare_app.protocol import TaskName, in_one_line, reason_of
from flare_app.roster import NO_ANSWER, Roster

Payloads = list[tuple[Shareable, list[str]]]
Reasons = dict[str, str]

# How often the server looks whether a task has all its answers: each task of a round waits for two such looks.
_CHECK_PERIOD_S = 0.05


class JobFailed(Exception):
    """The job cannot go on; the message is the reason that the user sees."""


class AskingController(ModelController):
    """A controller that knows which sites gave a usable result, and why the others did not.

    Args:
        min_sites: least number of usable results.
        max_offences: with this many rejected replies a site is excluded.
    """

    def __init__(self, min_sites: int, max_offences: int) -> None:
        super().__init__(persistor_id="", task_check_period=_CHECK_PERIOD_S)
        if min_sites < 1 or max_offences < 1:
            raise ValueError(f"min_sites and max_offences must be at least 1, got {min_sites} and {max_offences}")
        self.min_sites = min_sites
        self.max_offences = max_offences
        self.roster = Roster([], max_offences)
        self._invitations: dict[str, Task] = {}
        self._arrived: dict[str, Shareable] = {}

    def set_communicator(self, communicator: WFCommSpec) -> None:
        super().set_communicator(communicator)
        # FLARE 2.9 sets an attribute that its communicator does not read, and would go on with its 0.2 s.
        communicator._task_check_period = _CHECK_PERIOD_S

    def ask(self, name: str, payloads: Payloads, timeout_s: int, accept: Accept) -> tuple[list[str], Reasons]:
        """Send a task and wait until every site has answered or the time is over.

        A site that gives no answer is absent from here on; one whose reply is rejected has offended. A site that
        replies with an error has done neither. Nor is it an offence when what a site tells of itself at the start
        cannot be used: it has sent no update, and most often is of another version.

        Args:
            name: of the task.
            payloads: what to send, and to which sites.
            timeout_s: whole seconds.
            accept: takes each usable reply, one at a time in order of arrival; gives the reason when it rejects one.

        Returns:
            the sites whose replies were taken, sorted, and why the others have given none.
        """
        taken: list[str] = []
        reasons: Reasons = {}

        def received(client_task: ClientTask, fl_ctx: FLContext) -> None:
            site, answer = client_task.client.name, client_task.result
            client_task.result = None  # the task outlives the round, the tensors need not
            problem = self._examine(site, answer, accept, name != TaskName.INITIALIZE)
            if problem:
                reasons[site] = problem
            else:
                taken.append(site)

        tasks = [self._send(name, payload, sites, timeout_s, received) for payload, sites in payloads]
        for task in tasks:
            self.communicator.wait_for_task(task, self.abort_signal)
        for task, (_, sites) in zip(tasks, payloads, strict=True):
            # FLARE ends a task before its time when all who still owe an answer have gone.
            gone = task.completion_status == TaskCompletionStatus.CLIENT_DEAD
            for site in set(sites).difference(taken, reasons):
                how_long = "and FLARE has lost the site" if gone else f"within {timeout_s} s"
                reasons[site] = f"{NO_ANSWER} {name!r} {how_long}"
                rounds = self.roster.miss(site, reasons[site])
                if rounds > 1:
                    self.warning(
                        f"{site} has left {self.roster.silences[site]} tasks unanswered since its last usable update: "
                        f"at least {rounds} rounds go by without it"
                    )
        return sorted(taken), reasons

    def require_quorum(
        self,
        what: str,
        taken: Collection[str],
        refused: Reasons,
        earlier: Mapping[str, str] | None = None,
        resting: Collection[str] = (),
    ) -> None:
        """Go on only with enough usable results, or with enough sites that can still give one.

        Args:
            what: was asked for.
            taken: sites that gave a usable result.
            refused: why others gave none.
            earlier: the same of sites that have been told of before.
            resting: sites that have not been asked yet, and can step in.

        Raises:
            JobFailed: with the reason of every site that is left out.
        """
        if self.is_aborted():
            raise JobFailed("aborted")
        for who, reason in _by_reason(refused, len(taken)):
            self.warning(f"{what}: {who} {'is' if who in refused else 'are'} left out: {reason}")
        for site in sorted(refused):
            if self.roster.is_excluded(site):
                self.warning(f"{site} is {self.roster.excluded[site]}: it takes no part in the rest of the job")
        if len(taken) + len(resting) < self.min_sites:
            missing = {**self.roster.left_out, **(earlier or {}), **refused}
            others = len(taken) + len(resting)
            turns = f" ({', '.join(sorted(resting))} could step in: sites_per_round gives turns)" if resting else ""
            raise JobFailed(
                f"{what}: {len(taken)} of {others + len(missing)} sites gave a usable result, "
                f"{self.min_sites} are needed{turns}. {listed(missing, others)}"
            )

    def invite(self, name: str, payload: Callable[[], Shareable], site: str, timeout_s: int) -> None:
        """Send a task to an absent site without waiting; :meth:`arrived` gives its reply.

        Nothing happens while an earlier invitation stands: the site takes it up when it is done with what it does now,
        as it works on one task at a time. After ``timeout_s`` it lapses and may be sent again.
        """
        standing = self._invitations.get(site)
        if standing is not None and standing.completion_status is None:
            return

        def received(client_task: ClientTask, fl_ctx: FLContext) -> None:
            self._arrived[site], client_task.result = client_task.result, None

        self._invitations[site] = self._send(name, payload(), [site], timeout_s, received)

    def arrived(self, accept: Accept) -> tuple[list[str], Reasons]:
        """As :meth:`ask`, of the replies to invitations that have come meanwhile; none of them is an offence."""
        taken: list[str] = []
        reasons: Reasons = {}
        for site in sorted(self._arrived):
            self._invitations.pop(site, None)
            problem = self._examine(site, self._arrived.pop(site), accept, may_offend=False)
            if problem:
                reasons[site] = problem
            else:
                taken.append(site)
        return taken, reasons

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """Drop what comes too late; FLARE's model controller would keep it."""
        self.warning(f"{client.name}: its answer to {task_name!r} comes too late and is dropped")

    def _examine(self, site: str, answer: Shareable, accept: Accept, may_offend: bool) -> str | None:
        if answer.get_return_code() != ReturnCode.OK:
            return in_one_line(reason_of(answer))
        try:
            problem = accept(site, answer)
        except Exception as error:  # whatever a site replies, the others' job goes on
            problem = f"its reply cannot be read: {type(error).__name__}: {error}"
        if problem and may_offend:
            self.roster.offend(site)
        return in_one_line(problem) if problem else None

    def _send(
        self, name: str, payload: Shareable, sites: Sequence[str], timeout_s: int, received: Callable[..., Any]
    ) -> Task:
        task = Task(name=name, data=payload, timeout=timeout_s, result_received_cb=received)
        task.client_tasks = _EachOnce()
        self.broadcast(task, self.fl_ctx, targets=list(sites), min_responses=0)
        return task


class _EachOnce(list[ClientTask]):
    """A task's list of assignments.

    FLARE 2.9 lists an assignment again when a site fetches its task anew (the first reply was lost) while a later task
    stands, and then its monitor of tasks dies on removing it twice: no task of the job would ever end.
    """

    def append(self, item: ClientTask) -> None:
        if item not in self:
            super().append(item)


def listed(reasons: Reasons, others: int = 0) -> str:
    """Reasons of sites in one line, equal ones once.

    Args:
        reasons: of each.
        others: sites that gave none; without any the same reason of several is that of all.
    """
    return "; ".join(f"{who}: {reason}" for who, reason in _by_reason(reasons, others))


def _by_reason(reasons: Reasons, others: int) -> list[tuple[str, str]]:
    """Who gave each reason, in words, in the order of their names."""
    sites: dict[str, list[str]] = {}
    for site, reason in sorted(reasons.items()):
        sites.setdefault(reason, []).append(site)
    if not others and len(sites) == 1 < len(reasons):
        return [(f"all {len(reasons)} sites", next(iter(sites)))]
    return [(", ".join(names), reason) for reason, names in sites.items()]
