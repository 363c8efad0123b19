"""PositionContrastLoss against its loop form; the same positives as an option of FCLLoss."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from fcl.losses import FCLLoss, GlobalContrastLoss, PositionContrastLoss
from tests.fcl.losses.test_contrast import random_case


def loop_loss(features, position, threshold, temperature):
    """Zeng et al., equation 2: -1/|P| sum_p log(exp(s_p) / sum over all others)."""
    items = [(v, b) for v in range(features.shape[0]) for b in range(features.shape[1])]
    values = []
    for v, b in items:
        e = {
            o: math.exp(float(features[v, b].double() @ features[o].double()) / temperature)
            for o in items
            if o != (v, b)
        }
        near = [o for o in e if o[1] == b or abs(float(position[o[1]] - position[b])) < threshold]
        values.append(-sum(math.log(e[o] / sum(e.values())) for o in near) / len(near))
    return sum(values) / len(values)


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.35, 1.0])
@pytest.mark.parametrize(("views", "batch"), [(2, 1), (2, 7), (3, 4)])
def test_equals_the_loop_form(threshold, views, batch):
    features, partition, volume, position = random_case(views, batch)
    terms = PositionContrastLoss(threshold, 0.3)(features, partition, volume, position)
    assert terms.loss.item() == pytest.approx(loop_loss(features, position, threshold, 0.3), rel=1e-5)


def test_threshold_zero_is_simclr():
    case = random_case()
    ours, simclr = PositionContrastLoss(0.0)(*case), GlobalContrastLoss()(*case)
    assert ours.loss.item() == pytest.approx(simclr.loss.item(), rel=1e-5)
    assert ours.positives.item() == 1


def test_identical_features_give_the_closed_form():
    features = torch.ones(2, 5, 4) / 2
    zeros = torch.zeros(5, dtype=torch.int64)
    terms = PositionContrastLoss(1.0)(features, zeros, zeros, torch.rand(5))
    assert terms.loss.item() == pytest.approx(math.log(9), rel=1e-5)
    assert terms.positives.item() == 9


def test_fcl_with_positions_takes_near_slices_of_other_volumes_as_local_positives():
    g = torch.Generator().manual_seed(0)
    q, local, drawn = (normalize(torch.randn(rows, 8, generator=g), dim=1) for rows in (3, 5, 7))
    position, local_position = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.0, 0.2, 0.45, 0.55, 0.8])
    volume, local_volume = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1, 2, 0])
    case = {
        "q_BD": q,
        "k_BD": q,
        "partition_B": torch.zeros(3, dtype=torch.int64),
        "volume_B": volume,
        "local_MD": local,
        "local_partition_M": torch.ones(5, dtype=torch.int64),
        "local_volume_M": local_volume,
        "drawn_KD": drawn,
        "drawn_partition_K": torch.ones(7, dtype=torch.int64),
    }
    terms = FCLLoss(0.2, position_threshold=0.15)(**case, position_B=position, local_position_M=local_position)
    expected = []
    for b in range(3):
        total = sum(math.exp(float(q[b] @ n) / 0.2) for n in drawn)
        near = [
            local[m]
            for m in range(5)
            if abs(float(position[b] - local_position[m])) < 0.15 and volume[b] != local_volume[m]
        ]
        terms_b = [math.exp(float(q[b] @ p) / 0.2) for p in near]
        if near:
            expected.append(-sum(math.log(e / (e + total)) for e in terms_b) / len(near))
    assert len(expected) == 3
    assert terms.local.item() == pytest.approx(sum(expected) / 3, rel=1e-5)
    assert FCLLoss(0.2)(**case).local.item() == 0.0  # by partition there is no positive here
    with pytest.raises(ValueError, match="needs the positions"):
        FCLLoss(position_threshold=0.15)(**case)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PositionContrastLoss(threshold=1.5), "must lie in 0..1; got 1.5"),
        (lambda: PositionContrastLoss(temperature=-1.0), "temperature must be positive"),
        (lambda: FCLLoss(position_threshold=0.0), "position_threshold"),
    ],
)
def test_refuses_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
