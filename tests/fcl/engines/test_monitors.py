"""Partition kNN and uniformity against what is worked out by hand."""

from __future__ import annotations

import pytest
import torch

from fcl.engines import PartitionKNN
from fcl.engines.monitors import knn_accuracy, uniformity
from fcl.networks import ContrastiveNetwork
from tests.fcl.engines.test_contrastive import encoder, head


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (torch.eye(5), -4.0),  # orthogonal unit vectors lie at a squared distance of 2
        (torch.eye(5)[:1].repeat(3, 1), 0.0),
    ],
)
def test_uniformity_has_its_closed_forms(features: torch.Tensor, expected: float) -> None:
    assert uniformity(features) == pytest.approx(expected, abs=1e-6)


def test_a_near_neighbour_outvotes_two_far_ones() -> None:
    stored, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 1, 1])
    query = torch.tensor([[0.8, 0.6]])
    for label, accuracy in ((0, 1.0), (1, 0.0)):
        assert knn_accuracy(stored, labels, query, torch.tensor([label]), neighbours=3) == accuracy


def test_one_slice_alone_has_no_uniformity(cache) -> None:
    monitor = PartitionKNN(ContrastiveNetwork(encoder(), head()), cache, ["v0"], ["v4"])
    assert monitor.measure().keys() == {"partition_knn", "uniformity"}
    monitor.queries = [{name: value[:1] for name, value in batch.items()} for batch in monitor.queries]
    assert monitor.measure().keys() == {"partition_knn"}
