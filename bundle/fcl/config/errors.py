"""What went wrong, as the last line that a person reads."""

from __future__ import annotations

import sys
from types import TracebackType


def root_cause(error: BaseException) -> BaseException:
    """The error at the bottom of a chain of ``raise ... from``."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def explain_errors() -> None:
    """End the traceback of an unhandled error with its root cause.

    MONAI wraps what a component or expression raises once for each level of the config, so that the message which names
    the file and the way out would stand in the middle of a long traceback. Calling it again changes nothing.
    """
    if getattr(sys.excepthook, "explains", False):
        return
    previous = sys.excepthook

    def explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        previous(kind, error, trace)
        cause = root_cause(error)
        if cause is not error:
            print(f"\n{type(cause).__name__}: {cause}", file=sys.stderr)

    explain.explains = True  # type: ignore[attr-defined]
    sys.excepthook = explain
