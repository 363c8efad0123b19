"""Our losses against an independent implementation, pytorch-metric-learning, on random features."""

from __future__ import annotations

import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss
from torch import Tensor
from torch.nn.functional import normalize

from fcl.losses import GlobalContrastLoss, PositionContrastLoss, QueueContrastLoss

T = 0.2


def _features(*shape: int) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))), dim=-1)


def _pairs(mask: Tensor) -> tuple[Tensor, Tensor]:
    query, other = mask.nonzero(as_tuple=True)
    return query, other


def test_moco_is_ntxent_of_queries_against_keys_and_queue() -> None:
    q, k, queue = _features(6, 16), _features(7, 16)[:6], _features(20, 16)
    usable = torch.rand(6, 20, generator=torch.Generator().manual_seed(0)) < 0.8
    positive = torch.cat([torch.eye(6), torch.zeros(6, 20)], dim=1).bool()
    negative = torch.cat([torch.zeros(6, 6).bool(), usable], dim=1)
    theirs = NTXentLoss(T)(q, indices_tuple=(*_pairs(positive), *_pairs(negative)), ref_emb=torch.cat([k, queue]))
    ours = QueueContrastLoss(T)(q, k, queue, usable)
    assert ours.loss.item() == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("negatives", ["other_slices", "other_partitions"])
def test_global_contrast_is_ntxent_over_its_pairs(negatives: str) -> None:
    views, partition = _features(2, 8, 16), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    volume, position = torch.arange(8) % 2, torch.zeros(8)
    items, own = views.flatten(0, 1), torch.arange(8).repeat(2)
    same_slice, same_partition = own[:, None] == own, partition.repeat(2)[:, None] == partition.repeat(2)
    positive = same_slice & ~torch.eye(16).bool()
    negative = ~same_slice if negatives == "other_slices" else ~same_partition
    theirs = NTXentLoss(T)(items, indices_tuple=(*_pairs(positive), *_pairs(negative)), ref_emb=items)
    ours = GlobalContrastLoss(T, negatives)(views, partition, volume, position)  # type: ignore[arg-type]
    assert ours.loss.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_attraction_across_volumes_is_ntxent_over_its_pairs() -> None:
    views, partition = _features(2, 8, 16), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    volume, position = torch.arange(8) % 2, torch.zeros(8)
    items, view = views.flatten(0, 1), torch.arange(2).repeat_interleave(8)
    partitions, volumes = partition.repeat(2), volume.repeat(2)
    same_partition = partitions[:, None] == partitions
    positive = same_partition & (volumes[:, None] != volumes) & (view[:, None] == view)
    theirs = NTXentLoss(T)(items, indices_tuple=(*_pairs(positive), *_pairs(~same_partition)), ref_emb=items)
    ours = GlobalContrastLoss(T, "other_partitions", across_volumes=True)(views, partition, volume, position)
    assert ours.across.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_position_contrast_is_the_supervised_contrastive_loss_where_positions_fall_into_groups() -> None:
    views, group = _features(2, 8, 16), torch.tensor([0, 0, 0, 1, 1, 2, 3, 3])
    theirs = SupConLoss(T)(views.flatten(0, 1), group.repeat(2))
    ours = PositionContrastLoss(0.2, T)(views, group, group, group / 4)
    assert ours.loss.item() == pytest.approx(theirs.item(), rel=1e-5)
