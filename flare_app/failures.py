"""What a site answers when it could not do a task: the reason for the server, all the rest for its own log."""

from __future__ import annotations

from logging import Logger

from nvflare.apis.shareable import Shareable

from fcl.federation import DataProblems
from fcl.networks.weights import OtherArchitecture
from flare_app.protocol import SiteError, refusal


def failed(site: str, task_name: str, error: Exception, logger: Logger) -> Shareable:
    """The reply to a task that raised ``error``.

    Its text may name paths or patients. Unless it is a :class:`SiteError`, the server learns what kind of error it was,
    of problems in the data how many of each kind there are, and the site's log the rest.
    """
    cause: BaseException | None = error
    first = _root(error)
    if isinstance(error, SiteError):
        reason, cause = str(error), error.__cause__
    elif isinstance(first, OtherArchitecture):
        reason = f"the pre-trained weights are of another architecture: {first.differing}"
    elif isinstance(first, DataProblems):
        reason = f"{_counted(first)}, see the log of {site}"
    else:
        reason = f"{type(first).__name__} in task {task_name!r}, see the log of {site}"
    logger.error(f"{site}: {reason}", exc_info=cause)
    if cause is not None:
        logger.error(f"{site}: {_root(cause)}")
    return refusal(reason)


def _counted(problems: DataProblems) -> str:
    count = len(problems.problems)
    kinds = ", ".join(f"{kind} {times}" for kind, times in problems.counts.items())
    return f"its data have {count} problem{'' if count == 1 else 's'} ({kinds})"


def _root(error: BaseException) -> BaseException:
    """The first cause; MONAI wraps what a component raised in a long message about the component."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
