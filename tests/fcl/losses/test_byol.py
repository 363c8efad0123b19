"""PredictionLoss against its definition: distances of unit vectors, pair by pair."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from fcl.losses import PredictionLoss


def random_case(batch=7, length=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    prediction, target = (normalize(torch.randn(batch, length, generator=g), dim=1) for _ in range(2))
    return prediction, target, torch.randint(3, (batch,), generator=g), torch.randint(3, (batch,), generator=g)


def test_without_partitions_it_is_the_squared_distance_of_byol():
    prediction, target, partition, volume = random_case()
    expected = (prediction - target).square().sum(dim=1).mean()
    assert PredictionLoss()(prediction, target, partition, volume).loss.item() == pytest.approx(
        expected.item(), rel=1e-5
    )


@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_with_partitions_it_equals_the_loop_form(weight, batch):
    prediction, target, partition, volume = random_case(batch)
    own, across = [], []
    for i in range(batch):
        own.append(float((prediction[i] - target[i]).square().sum()))
        pairs = [
            float((prediction[i] - target[j]).square().sum())
            for j in range(batch)
            if partition[i] == partition[j] and volume[i] != volume[j]
        ]
        if pairs:
            across.append(sum(pairs) / len(pairs))
    expected = (1 - weight) * sum(own) / batch + weight * sum(across) / max(1, len(across))
    terms = PredictionLoss(weight)(prediction, target, partition, volume)
    assert terms.loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_equal_and_opposite_features_give_0_and_4():
    prediction, _, partition, volume = random_case()
    assert PredictionLoss()(prediction, prediction, partition, volume).loss.item() == pytest.approx(0.0, abs=1e-5)
    assert PredictionLoss()(prediction, -prediction, partition, volume).loss.item() == pytest.approx(4.0, rel=1e-5)


def test_no_gradient_reaches_the_target():
    prediction, target, partition, volume = random_case()
    prediction.requires_grad_(True)
    target.requires_grad_(True)
    PredictionLoss(0.5)(prediction, target, partition, volume).loss.backward()
    assert prediction.grad.abs().sum() > 0
    assert target.grad is None


def test_refuses_a_share_outside_0_to_1():
    with pytest.raises(ValueError, match=r"must lie in 0..1; got 1.2"):
        PredictionLoss(1.2)
