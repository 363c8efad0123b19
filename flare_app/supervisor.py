"""Runs a command that ends with the process that started this one, also where that one was killed.

    python -m flare_app.supervisor COMMAND [ARGUMENT ...]

What starts this holds the other end of its stdin, writes nothing to it and so needs no chance to say that it ends: the
system closes it then. The command and all that it started are ended as Ctrl-C would end them. Limit: nothing does so
when this process is killed itself.
"""

from __future__ import annotations

import select
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

import psutil

from flare_app.processes import end_family, end_like_ctrl_c

_POLL_S = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; gives the command's exit code, 128 and the signal's number where one ended it."""
    end_like_ctrl_c()
    with subprocess.Popen(sys.argv[1:] if argv is None else argv, stdin=subprocess.DEVNULL) as process:
        with suppress(KeyboardInterrupt):  # told to end, which it does only after the command
            while process.poll() is None and not select.select([sys.stdin], [], [], _POLL_S)[0]:
                pass
        if process.poll() is None:
            end_family(psutil.Process(process.pid))
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


if __name__ == "__main__":
    sys.exit(main())
