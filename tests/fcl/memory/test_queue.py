"""The queue of features."""

from __future__ import annotations

import pytest
import torch

from fcl.memory.queue import FeatureQueue


@pytest.mark.parametrize("length", [0, 1, 5, 100])
def test_keeps_the_latest_with_their_rows(length):
    queue = FeatureQueue(length)
    batches = [(torch.full((4, 3), float(n)), torch.arange(4) + 4 * n) for n in range(3)]
    for features, rows in batches:
        queue.push(features, rows)
    features, rows = queue.content(batches[0][0])
    expected = torch.arange(12)[12 - min(length, 12) :]
    assert torch.equal(rows, expected)
    assert torch.equal(features[:, 0], (expected // 4).float())
    assert len(queue) == min(length, 12)


def test_is_empty_of_the_right_shape_at_first_and_after_clear():
    queue = FeatureQueue(5)
    like = torch.zeros(2, 7)
    assert queue.content(like)[0].shape == (0, 7)
    queue.push(torch.ones(2, 7), torch.arange(2))
    queue.clear()
    assert queue.content(like)[0].shape == (0, 7)


def test_state_restores_and_holds_no_graph(tmp_path):
    queue = FeatureQueue(5)
    queue.push(torch.ones(2, 3, requires_grad=True), torch.arange(2))
    assert not queue.features.requires_grad
    torch.save(queue.state_dict(), tmp_path / "q.pt")
    other = FeatureQueue(5)
    other.load_state_dict(torch.load(tmp_path / "q.pt", weights_only=True))
    assert torch.equal(other.features, queue.features)
    assert torch.equal(other.rows, queue.rows)


def test_refuses_a_negative_length():
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        FeatureQueue(-1)
