from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flare_app.server_optimizer import OPTIMIZERS, ServerOptimizer


def _updates(rounds: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"w": torch.randn(3, 2, generator=generator, dtype=torch.float64)} for _ in range(rounds)]


def test_sgd_at_rate_one_is_federated_averaging() -> None:
    optimizer = ServerOptimizer({"name": "SGD", "lr": 1.0})
    for update in _updates(3):
        assert torch.equal(optimizer.change(update)["w"], update["w"])


def test_momentum_follows_its_recurrence() -> None:
    optimizer, velocity = ServerOptimizer({"name": "SGD", "lr": 0.5, "momentum": 0.9}), torch.zeros(3, 2)
    for update in _updates(4):
        velocity = 0.9 * velocity + update["w"]
        torch.testing.assert_close(optimizer.change(update)["w"], 0.5 * velocity.double())


def test_adam_follows_its_recurrence() -> None:
    optimizer = ServerOptimizer({"name": "Adam", "lr": 0.1, "betas": [0.9, 0.99], "eps": 1e-3})
    first = second = torch.zeros(3, 2, dtype=torch.float64)
    for number, update in enumerate(_updates(4), start=1):
        first, second = 0.9 * first + 0.1 * update["w"], 0.99 * second + 0.01 * update["w"] ** 2
        corrected = first / (1 - 0.9**number), second / (1 - 0.99**number)
        expected = 0.1 * corrected[0] / (corrected[1].sqrt() + 1e-3)
        torch.testing.assert_close(optimizer.change(update)["w"], expected)


def test_counters_and_running_statistics_are_averaged() -> None:
    optimizer = ServerOptimizer({"name": "Adam", "lr": 0.1})
    mean = {
        "norm.running_mean": torch.tensor([2.0]),
        "norm.running_var": torch.tensor([3.0]),
        "count": torch.tensor([4]),
        "w": torch.tensor([5.0]),
    }
    change = optimizer.change(mean)
    for name in ("norm.running_mean", "norm.running_var", "count"):
        assert torch.equal(change[name], mean[name])
    assert math.isclose(float(change["w"]), 0.1, rel_tol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_restores_the_bits(name: str) -> None:
    settings = {"name": name, "lr": 0.1, **({"momentum": 0.9} if name == "SGD" else {})}
    whole, before, after = (ServerOptimizer(settings) for _ in range(3))
    updates = _updates(4)
    for update in updates[:2]:
        whole.change(update)
        before.change(update)
    after.load_state_dict(before.state_dict())
    assert after.state_dict().keys() == before.state_dict().keys()
    for update in updates[2:]:
        assert torch.equal(whole.change(update)["w"], after.change(update)["w"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "LBFGS", "lr": 1.0}, "must be one of SGD, Adam"),
        ({"lr": 1.0}, "got None"),
        ({"name": "SGD"}, "needs its rate"),
        ({"name": "Adam", "lr": 0.1, "weight_decay": 0.1}, "belongs to the training at the sites"),
        ({"name": "Adam", "lr": 0.1, "momentum": 0.9}, "does not take these arguments"),
        ({"name": "SGD", "lr": -1.0}, "lr|learning rate"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServerOptimizer(settings)
