"""The policy at work: a filter for everything that a site answers, in the job and in the site's ``privacy.json``."""

from __future__ import annotations

import uuid
from typing import Any

from nvflare.apis.filter import Filter, FilterChainType, FilterContextKey, FilterSource
from nvflare.apis.fl_constant import FLContextKey, ProcessType
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from flare_app.egress.declared import Declared
from flare_app.egress.manifest import manifest_of, now
from flare_app.egress.plain import EgressError
from flare_app.egress.policy import EgressPolicy
from flare_app.egress.rules import RowsPerRound, examine, examine_context, examine_request
from flare_app.peers import SERVER, asker
from flare_app.protocol import Header

# Private, so never sent; sticky, so that every later task of this process finds it, whichever filter set it.
_STOPPED = "fcl_egress_stopped"
_DECLARED = "fcl_egress_declared"  # a job may have one filter for the start and another for weights
_REQUEST = "request"
_LOGGED = "fcl_egress_logged"  # the site's filter has written this payload's lines under this id


class EgressFilter(Filter):
    """Lets out what the policy names, notes it in the site's manifest *before* it leaves, and refuses all else.

    - Features that the policy does not show are taken out: an empty set leaves, the site goes on with weights.
    - Statistics of the data pass FLARE's own cleansers first (:mod:`flare_app.egress.statistics`).
    - A payload that breaks a rule stays. FLARE sends an error without data in its place, and from then on this process
      answers nothing any more: what a job tried once it may try again. A reply to a peer stays without that
      consequence, or a peer could ask in such a way that this site falls silent.
    - Weights must be those that the site declared when it started, trained on the least cohort or more; validation
      scores of fewer patients' volumes are taken out.
    - An update with NaN, or above the norm limit, stays as well, but does not end the site's part.
    - When the manifest cannot be written, nothing leaves.

    As a ``task_data_filter`` of direction ``out`` it checks what the site *asks* of its peers. At a server it does
    nothing.

    Args:
        policy: settings of :class:`~flare_app.egress.EgressPolicy`; what they leave out has its default.

    Raises:
        ValueError: on settings that are none.
    """

    def __init__(self, policy: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.policy = policy
        self._policy = EgressPolicy.from_dict(policy or {})
        self._rows = RowsPerRound(self._policy.max_rows)
        self._declared: Declared | None = None
        self._stopped: str | None = None

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """The payload as it may leave.

        Raises:
            EgressError: when it must not.
        """
        if fl_ctx.get_process_type() == ProcessType.SERVER_JOB:
            return shareable
        request = self.get_prop(FilterContextKey.CHAIN_TYPE) == FilterChainType.TASK_DATA_CHAIN
        task = _REQUEST if request else str(fl_ctx.get_prop(FLContextKey.TASK_NAME))
        try:
            stopped = self._stopped or fl_ctx.get_prop(_STOPPED)
            if stopped:
                raise EgressError("stopped", f"this site stopped when rule {stopped!r} was broken")
            examine_context(fl_ctx, task)
            if request:
                examine_request(shareable)
                return shareable
            declared = self._declared or fl_ctx.get_prop(_DECLARED)
            release = examine(self._policy, self._rows, declared, task, shareable)
        except EgressError as error:
            self._refuse(error, task, shareable, fl_ctx)
            raise
        except Exception as error:
            refused = EgressError("unreadable", f"the payload cannot be read: {type(error).__name__}")
            self._refuse(refused, task, shareable, fl_ctx)
            raise refused from None  # the text of the first may hold some of the payload
        lines = release.entries
        if release.withheld:
            what, why = release.subject, release.withheld
            self.logger.warning(f"{fl_ctx.get_identity_name()}: {what} withheld in {task!r}: {why}")
            lines = [{"event": "withheld", "name": what, "why": why}, *lines]
        self._note(lines, task, release.payload, fl_ctx)
        if release.declared is not None:
            self._declared = release.declared
            fl_ctx.set_prop(_DECLARED, release.declared, private=True, sticky=True)
        return release.payload

    def _refuse(self, error: EgressError, task: str, payload: Shareable, fl_ctx: FLContext) -> None:
        site = fl_ctx.get_identity_name()
        self.logger.error(
            f"{site}: egress of {task!r} refused by the {self._source}'s policy: {error.rule}: {error.detail}"
        )
        own = task == _REQUEST or asker(fl_ctx) == SERVER
        if own and error.stops and error.rule != "stopped":
            self._stopped = error.rule
            fl_ctx.set_prop(_STOPPED, error.rule, private=True, sticky=True)
            self.logger.error(f"{site}: nothing leaves this site any more in this run")
        self._note([{"event": "refused", "rule": error.rule, "why": error.detail}], task, payload, fl_ctx)

    def _note(self, lines: list[dict[str, Any]], task: str, payload: Shareable, fl_ctx: FLContext) -> None:
        """Write lines to the manifest.

        The job's filter runs after the site's. What that one has noted as sent is not noted twice; what the job's
        takes out or refuses afterwards is, under the same id, and counts instead.
        """
        logged = fl_ctx.get_prop(_LOGGED)
        if self._source == FilterSource.SITE:
            logged = None  # no one's word keeps the site's own filter from writing
        events = {line.get("event", "sent") for line in lines}
        if not lines or (logged and events == {"sent"}):
            return
        entry = logged or uuid.uuid4().hex[:8]
        common = {
            "time": now(),
            "id": entry,
            "job": fl_ctx.get_job_id(),
            "round": payload.get_header(Header.ROUND),
            "task": task,
            "to": "peers" if task == _REQUEST else asker(fl_ctx),
            "policy": self._policy.digest,
            "by": self._source,
        }
        manifest_of(fl_ctx).append([{**common, "event": "sent", **line} for line in lines])
        if self._source == FilterSource.SITE:
            fl_ctx.set_prop(_LOGGED, entry, private=True, sticky=False)

    @property
    def _source(self) -> str:
        return str(self.get_prop(FilterContextKey.SOURCE, FilterSource.JOB))
