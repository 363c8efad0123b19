"""How far a training or evaluation is, for whoever waits for it."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine, Events
from monai.utils import is_scalar
from tqdm import tqdm

logger = logging.getLogger(__name__)


class Progress:
    """A bar over the whole run with the time left; where stderr is no terminal, lines in the log instead.

    Attach after the handlers whose metrics it shall show.

    Args:
        what: heads the bar and the lines.
        evaluator: its metrics are shown beside the trainer's, when it ran in the epoch.
        interval_s: without a terminal there is a line per epoch, and one whenever this many seconds went by without.
    """

    def __init__(self, what: str, evaluator: Engine | None = None, interval_s: float = 30.0) -> None:
        self.what = what
        self.evaluator = evaluator
        self.interval_s = interval_s
        self._bar: tqdm | None = None
        self._began = self._last_line = 0.0
        self._first = 0

    def attach(self, engine: Engine) -> None:
        """Register on a trainer or evaluator."""
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._report)
        for event in (Events.COMPLETED, Events.TERMINATE):
            engine.add_event_handler(event, self._close)

    def _open(self, engine: Engine) -> None:
        watched = sys.stderr.isatty() or os.environ.get("FCL_PROGRESS") == "1"
        self._first = engine.state.iteration
        self._began = self._last_line = time.monotonic()
        self._bar = tqdm(total=_total(engine), initial=self._first, desc=self.what) if watched else None

    def _advance(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.update()
        elif time.monotonic() - self._last_line > self.interval_s:
            self._log(engine, f"step {engine.state.iteration}/{_total(engine)}")

    def _report(self, engine: Engine) -> None:
        shown = _scalars(engine.state.metrics)
        if self.evaluator is not None and self.evaluator.state.epoch == engine.state.epoch:
            shown |= _scalars(self.evaluator.state.metrics)
        values = [f"{name} {value:.4f}" for name, value in shown.items()]
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(values))
            return
        epochs = engine.state.max_epochs
        place = f"epoch {engine.state.epoch}/{epochs}" if epochs > 1 else f"{engine.state.iteration} done"
        self._log(engine, ", ".join([place, *values]))

    def _log(self, engine: Engine, text: str) -> None:
        self._last_line = time.monotonic()
        spent, done = self._last_line - self._began, engine.state.iteration
        left = spent / max(1, done - self._first) * (_total(engine) - done)
        times = f"{tqdm.format_interval(spent)} gone, {tqdm.format_interval(left)} left"
        logger.info("%s: %s, %s", self.what, text, times)

    def _close(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.close()


def _total(engine: Engine) -> int:
    return (engine.state.max_epochs or 1) * (engine.state.epoch_length or 0)


def _scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if is_scalar(value)}
