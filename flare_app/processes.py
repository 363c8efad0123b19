"""Ends what a command started when the command itself is told to end."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import NoReturn

import psutil

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE_S = 5


def end_like_ctrl_c() -> None:
    """Have SIGTERM and SIGHUP end this process as Ctrl-C does: by a KeyboardInterrupt.

    Only the first signal does so: a second one must not disturb the ending of processes.
    """

    def interrupt(number: int, frame: object) -> NoReturn:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in _SIGNALS:
        signal.signal(number, interrupt)


def end_family(parent: psutil.Process) -> None:
    """Ask a process and all that it started to end, then make them."""
    try:
        family = [parent, *parent.children(recursive=True)]  # FLARE puts sites into sessions of their own
    except psutil.NoSuchProcess:
        return
    _end(family)


def end_children() -> None:
    """The same with all that this process started."""
    _end(psutil.Process().children(recursive=True))


def _end(family: list[psutil.Process]) -> None:
    for member in family:
        _signal(member.terminate)
    for member in psutil.wait_procs(family, timeout=_PATIENCE_S)[1]:
        _signal(member.kill)


def _signal(send: Callable[[], None]) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return
