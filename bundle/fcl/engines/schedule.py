"""Learning-rate schedule over a whole training, which a federation spreads over many rounds."""

from __future__ import annotations

import math

from ignite.engine import Engine, Events
from torch.optim import Optimizer


def warmup_cosine(progress: float, warmup: float = 0.05, floor: float = 0.0) -> float:
    """Factor on the base rate: linear rise over the first ``warmup`` share of the training, then half a cosine down
    to ``floor``.

    Args:
        progress: share of the training that is done, 0..1 (values beyond 1 stay at ``floor``).
        warmup: share of the training that warms up, 0..1.
        floor: last value of the factor.
    """
    if progress < warmup:
        return progress / warmup
    phase = min(1.0, (progress - warmup) / max(1e-12, 1.0 - warmup))
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * phase))


class WarmupCosine:
    """Sets the rate of every parameter group before each step; a handler for any ignite trainer.

    The position is read off ``engine.state.iteration``, so nothing has to be saved: whoever restores the engine's
    iteration (or, in a federation, sets it from the round number) restores the rate.

    Args:
        optimizer: its groups' rates at construction are the base rates.
        warmup, floor: see :func:`warmup_cosine`.
        total_steps: steps of the whole training; None takes ``max_epochs * epoch_length`` of the engine.
    """

    def __init__(
        self, optimizer: Optimizer, warmup: float = 0.05, floor: float = 0.0, total_steps: int | None = None
    ) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup must be a share in [0, 1), got {warmup!r}.")
        self.optimizer = optimizer
        self.warmup = warmup
        self.floor = floor
        self.total_steps = total_steps
        self._base = [group["lr"] for group in optimizer.param_groups]

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def begin_round(self, engine: Engine, round_number: int, total_rounds: int, steps: int) -> None:
        """Set ``engine`` to the beginning of a round of ``steps`` steps, one epoch, of a federation's training."""
        self.total_steps = total_rounds * steps
        state = engine.state
        state.epoch, state.epoch_length, state.max_epochs = round_number, steps, round_number + 1
        state.iteration = round_number * steps
        state.metrics.clear()

    def __call__(self, engine: Engine) -> None:
        total = self.total_steps or (engine.state.max_epochs or 1) * (engine.state.epoch_length or 1)
        # ignite counts the step that starts as done: the first step is step 1 of total, at a rate above zero.
        factor = warmup_cosine(engine.state.iteration / (total + 1), self.warmup, self.floor)
        for group, base in zip(self.optimizer.param_groups, self._base, strict=True):
            group["lr"] = base * factor
