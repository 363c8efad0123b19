from __future__ import annotations

import copy

import pytest
import torch
from nvflare.app_opt.pt.fedproxloss import PTFedProxLoss
from torch import nn

from fcl.losses import ProximalLoss


def test_it_is_half_mu_times_the_squared_distance() -> None:
    weights, reference = [torch.tensor([3.0, 0.0]), torch.tensor([[1.0]])], [torch.zeros(2), torch.tensor([[5.0]])]
    terms = ProximalLoss(0.2)(weights, reference)
    assert terms.loss.item() == pytest.approx(0.1 * 25)
    assert terms.divergence.item() == pytest.approx(5.0)


@pytest.mark.parametrize("mu", [0.0, 0.01, 1.0])
def test_it_equals_that_of_flare(mu: float) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(8, 2))
    other = copy.deepcopy(network)
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    ours = ProximalLoss(mu)(network.parameters(), other.parameters()).loss
    theirs = PTFedProxLoss(mu)(network, other)
    assert torch.allclose(ours, theirs)
    gradients = [torch.autograd.grad(loss, list(network.parameters())) for loss in (ours, theirs)]
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))


def test_the_weights_are_pulled_and_the_reference_stays() -> None:
    weights, reference = torch.tensor([1.0, 2.0], requires_grad=True), torch.zeros(2, requires_grad=True)
    ProximalLoss(0.5)([weights], [reference]).loss.backward()
    assert weights.grad is not None
    assert torch.equal(weights.grad, 0.5 * weights.detach())
    assert reference.grad is None


def test_half_precision_does_not_overflow() -> None:
    terms = ProximalLoss(1.0)([torch.full((4,), 300.0, dtype=torch.float16)], [torch.zeros(4, dtype=torch.float16)])
    assert terms.loss.item() == pytest.approx(0.5 * 4 * 300.0**2)


@pytest.mark.parametrize("mu", [-0.1, float("nan"), float("inf")])
def test_wrong_strengths_are_refused(mu: float) -> None:
    with pytest.raises(ValueError, match="mu must be 0 or more"):
        ProximalLoss(mu)


def test_lists_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ProximalLoss()([torch.zeros(1), torch.zeros(1)], [torch.zeros(1)])
