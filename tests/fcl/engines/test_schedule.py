"""Learning rate over the steps of a whole training."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events

from fcl.engines.schedule import WarmupCosine, warmup_cosine


@pytest.mark.parametrize(
    ("progress", "factor"), [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.55, 0.55), (1.0, 0.1), (1.5, 0.1)]
)
def test_closed_form(progress, factor):
    assert warmup_cosine(progress, warmup=0.1, floor=0.1) == pytest.approx(factor)


def test_without_warmup_it_starts_at_the_base_rate():
    assert warmup_cosine(0.0, warmup=0.0) == 1.0


def rates(runs, total_steps=None):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [parameter], "lr": 1.0}])
    schedule = WarmupCosine(optimizer, warmup=0.2, total_steps=total_steps)
    engine = Engine(lambda *_: None)
    seen = []
    schedule.attach(engine)
    engine.add_event_handler(Events.ITERATION_STARTED, lambda _: seen.append(optimizer.param_groups[0]["lr"]))
    for epochs in runs:
        engine.run([0] * 5, max_epochs=epochs)
    return seen


def test_a_training_in_two_runs_has_the_rates_of_one_run():
    assert rates([2, 4], total_steps=20) == rates([4])


def test_every_step_has_a_positive_rate():
    assert min(rates([4])) > 0


def test_refuses_a_warmup_that_is_no_share():
    with pytest.raises(ValueError, match="share"):
        WarmupCosine(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0), warmup=1.0)
