"""Swapped assignments against the plain Sinkhorn iteration and a loop-form cross-entropy."""

from __future__ import annotations

import math

import pytest
import torch

from fcl.losses import SwappedAssignmentLoss
from fcl.losses.swav import even_assignments


def plain_sinkhorn(scores, epsilon, iterations):
    """Algorithm of the paper's appendix in double precision, with ratios of exponentials."""
    plan = (scores.double() / epsilon).exp().T
    plan /= plan.sum()
    prototypes, items = plan.shape
    for _ in range(iterations):
        plan /= plan.sum(dim=1, keepdim=True) * prototypes
        plan /= plan.sum(dim=0, keepdim=True) * items
    return (plan * items).T


def scores(items, prototypes, seed=0):
    return torch.rand(items, prototypes, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(("items", "prototypes"), [(1, 2), (8, 3), (5, 9)])
@pytest.mark.parametrize("iterations", [1, 3])
def test_codes_equal_the_plain_iteration(items, prototypes, iterations):
    given = scores(items, prototypes)
    expected = plain_sinkhorn(given, 0.2, iterations).float()
    torch.testing.assert_close(even_assignments(given, 0.2, iterations), expected, rtol=1e-4, atol=1e-6)


def test_codes_use_all_prototypes_evenly_even_when_all_items_are_alike():
    codes = even_assignments(scores(1, 4).expand(12, 4), 0.05, 3)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(12))
    torch.testing.assert_close(codes.sum(dim=0), torch.full((4,), 3.0))


def test_sharp_codes_stay_finite():
    assert torch.isfinite(even_assignments(scores(6, 4) * 10, 0.001, 5)).all()


@pytest.mark.parametrize("queued", [0, 5])
def test_equals_the_loop_form(queued):
    first, second, queue = scores(4, 3, 0), scores(4, 3, 1), scores(queued, 3, 2)
    loss = SwappedAssignmentLoss(0.2, 0.1, 3)(first, second, queue).loss
    total = 0.0
    for predicted, coded in ((first, second), (second, first)):
        codes = plain_sinkhorn(torch.cat([coded, queue]), 0.1, 3)[:4]
        for b in range(4):
            e = [math.exp(float(value) / 0.2) for value in predicted[b]]
            total -= sum(float(codes[b, p]) * math.log(e[p] / sum(e)) for p in range(3)) / 4
    assert loss.item() == pytest.approx(total / 2, rel=1e-4)


def test_collapse_shows_in_the_entropy():
    torch.manual_seed(0)
    spread = SwappedAssignmentLoss()(scores(64, 4, 0), scores(64, 4, 1), scores(0, 4))
    assert spread.prototype_entropy.item() == pytest.approx(math.log(4), rel=0.05)
    alike = torch.tensor([[1.0, -1.0, -1.0, -1.0]]).expand(8, 4)
    assert SwappedAssignmentLoss()(alike, alike, alike[:0]).prototype_entropy.item() < 0.01


def test_gradients_reach_the_predictions_of_both_views_only():
    first, second, queue = scores(4, 3, 0), scores(4, 3, 1), scores(5, 3, 2)
    for tensor in (first, second, queue):
        tensor.requires_grad_(True)
    SwappedAssignmentLoss()(first, second, queue).loss.backward()
    assert first.grad.abs().sum() > 0
    assert second.grad.abs().sum() > 0
    assert queue.grad is None
    # softmax minus code: no path leads through the codes.
    code = even_assignments(torch.cat([second, queue]).detach(), 0.05, 3)[:4]
    expected = ((first.detach() / 0.1).softmax(dim=1) - code) / 0.1 / 8
    torch.testing.assert_close(first.grad, expected, rtol=1e-3, atol=1e-5)


def test_refuses_bad_settings():
    with pytest.raises(ValueError, match=r"must be positive, got 0\.1, 0, 3"):
        SwappedAssignmentLoss(epsilon=0)
