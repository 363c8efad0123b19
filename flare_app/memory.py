"""Memory of the processes of a job, round by round."""

from __future__ import annotations

import gc
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def peak_mib() -> float:
    """Most memory that this process has held since :func:`reset_peak` (MiB); where the system cannot reset it, since
    the process began."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB elsewhere


def reset_peak() -> None:
    """Measure from here on. A maximum over all rounds can only rise, and would tell little about growth."""
    try:
        _CLEAR.write_text("5")  # man 5 proc: resets the high-water mark
    except OSError:  # not Linux, or not allowed in this container
        return


def keep_for_good() -> None:
    """Take all that lives now out of Python's garbage collection, which runs after each round.

    It would look at every object of torch, MONAI and FLARE again: up to half a second in which no thread of the process
    moves, and in which peers wait for their answers. What is made from here on is collected as ever.
    """
    gc.collect()
    gc.freeze()
