"""Whether anything holds a site's results to a policy at all."""

from __future__ import annotations

from collections.abc import Iterable

from nvflare.apis.fl_constant import FilterKey, FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.utils.task_utils import get_filters
from nvflare.private.privacy_manager import Scope

from flare_app.egress.filter import EgressFilter


def unfiltered(tasks: Iterable[str], fl_ctx: FLContext) -> str | None:
    """Why a site takes no part in a job with these tasks: neither it nor the job filters what answers them.

    FLARE's simulator knows no site's policy, and stays on one machine: there all is well.
    """
    if fl_ctx.get_prop(FLContextKey.SIMULATE_MODE, False):
        return None
    runner = fl_ctx.get_prop(FLContextKey.RUNNER)
    jobs = getattr(runner, Scope.TASK_RESULT_FILTERS_NAME, None) or {}
    bare = [task for task in tasks if not _filtered(task, jobs, fl_ctx)]
    if not bare:
        return None
    return (
        f"no EgressFilter checks what would leave this site in answer to {', '.join(bare)}: rename "
        "local/privacy.json.sample of its kit to local/privacy.json, or submit a job that brings the filter, as "
        "'python -m flare_app.job' makes them"
    )


def _filtered(task: str, jobs: dict[str, list[object]], fl_ctx: FLContext) -> bool:
    filters = get_filters(Scope.TASK_RESULT_FILTERS_NAME, fl_ctx, jobs, task, FilterKey.OUT)
    return any(isinstance(entry, EgressFilter) for entry in filters)
