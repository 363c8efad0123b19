"""One site of a job that compares the sites' data: it answers once."""

from __future__ import annotations

from typing import Any

from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal

from flare_app.egress.presence import unfiltered
from flare_app.failures import failed
from flare_app.peers import asker, not_for
from flare_app.protocol import SiteError, TaskName, exported_in_full, with_report
from flare_app.site import HostedJob
from flare_app.statistics.spec import gathered


@exported_in_full
class DataStatisticsExecutor(Executor):
    """Has the bundle check and measure this site's data; the egress filter decides what of it leaves.

    Only the server may ask, and once in a job: noise is drawn anew for each answer, and the mean of many answers would
    be without.

    Args:
        config, data, overrides, seed, bundle_root: see :class:`flare_app.executor.FCLExecutor`.
    """

    def __init__(
        self,
        config: list[str],
        data: str | None = None,
        overrides: dict[str, Any] | None = None,
        seed: int = 0,
        bundle_root: str | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.data = data
        self.overrides = overrides
        self.seed = seed
        self.bundle_root = bundle_root
        self._answered = False

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        if task_name != TaskName.STATISTICS:
            return make_reply(ReturnCode.TASK_UNKNOWN)
        try:
            problem = not_for(task_name, asker(fl_ctx)) or unfiltered([task_name], fl_ctx)
            if problem:
                raise SiteError(problem)
            return self._statistics(fl_ctx)
        except Exception as error:
            return failed(fl_ctx.get_identity_name(), task_name, error, self.logger)

    def _statistics(self, fl_ctx: FLContext) -> Shareable:
        from flare_app.hosting import host_statistics  # brings MONAI along, which takes seconds

        if self._answered:
            raise SiteError("this site has told its statistics in this job: submit another one")
        job = HostedJob(self.config, self.data, self.overrides or {}, self.seed, self.bundle_root, None)
        report = gathered(host_statistics(job, fl_ctx, threads=None))
        self._answered = True
        return with_report(report)
