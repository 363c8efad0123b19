"""QueueContrastLoss against PyTorch's cross-entropy, closed forms and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from fcl.losses import QueueContrastLoss


def random_case(batch=5, queue=9, length=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    q, k, held = (normalize(torch.randn(rows, length, generator=g), dim=1) for rows in (batch, batch, queue))
    return q, k, held, torch.rand(batch, queue, generator=g) > 0.2


@pytest.mark.parametrize(("batch", "queue"), [(1, 1), (5, 9), (4, 33)])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_equals_cross_entropy_with_the_own_key_as_class_0(batch, queue, temperature):
    q, k, held, allowed = random_case(batch, queue)
    logits = torch.cat([(q * k).sum(dim=1, keepdim=True), (q @ held.T).masked_fill(~allowed, -math.inf)], dim=1)
    expected = cross_entropy(logits.double() / temperature, torch.zeros(batch, dtype=torch.int64))
    assert QueueContrastLoss(temperature)(q, k, held, allowed).loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_saturated_queue_gives_the_closed_form():
    q, k, held, allowed = random_case(queue=12)
    one = torch.zeros(8)
    one[0] = 1.0
    loss = QueueContrastLoss()(one.expand_as(q), one.expand_as(k), one.expand_as(held), torch.ones_like(allowed)).loss
    assert loss.item() == pytest.approx(math.log(13), rel=1e-5)


def test_an_empty_queue_gives_zero_and_no_nan():
    q, k, held, allowed = random_case()
    q.requires_grad_(True)
    terms = QueueContrastLoss()(q, k, held[:0], allowed[:, :0])
    terms.loss.backward()
    assert terms.loss.item() == 0.0
    assert torch.equal(q.grad, torch.zeros_like(q))


def test_only_the_query_learns():
    q, k, held, allowed = random_case()
    for tensor in (q, k, held):
        tensor.requires_grad_(True)
    QueueContrastLoss()(q, k, held, allowed).loss.backward()
    assert q.grad.abs().sum() > 0
    assert k.grad is None
    assert held.grad is None


def test_refuses_a_bad_temperature():
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        QueueContrastLoss(0)
