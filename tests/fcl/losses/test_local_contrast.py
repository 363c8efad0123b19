"""LocalContrastLoss against a loop over slices and regions."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from fcl.losses import LocalContrastLoss


def random_case(batch=4, regions=3, length=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    features = normalize(torch.randn(2, batch, regions, length, generator=g), dim=3)
    return features, torch.randint(2, (batch,), generator=g), torch.randint(2, (batch,), generator=g)


def loop_loss(features, partition, volume, temperature):
    views, batch, regions, _ = features.shape
    own, across = [], []
    for v in range(views):
        for b in range(batch):
            for r in range(regions):

                def e(u, c, s, v=v, b=b, r=r):
                    return math.exp(float(features[v, b, r].double() @ features[u, c, s].double()) / temperature)

                total = sum(e(u, b, s) for u in range(views) for s in range(regions) if s != r)
                own += [-math.log(e(u, b, r) / (e(u, b, r) + total)) for u in range(views) if u != v]
                matches = [c for c in range(batch) if partition[c] == partition[b] and volume[c] != volume[b]]
                values = [-math.log(e(v, c, r) / (e(v, c, r) + total)) for c in matches]
                if values:
                    across.append(sum(values) / len(values))
    return sum(own) / len(own), sum(across) / max(1, len(across))


@pytest.mark.parametrize(("batch", "regions"), [(1, 2), (4, 3), (5, 13)])
@pytest.mark.parametrize("across_volumes", [False, True])
def test_equals_the_loop_form(batch, regions, across_volumes):
    case = random_case(batch, regions)
    own, across = loop_loss(*case, 0.3)
    terms = LocalContrastLoss(0.3, across_volumes)(*case)
    assert terms.own.item() == pytest.approx(own, rel=1e-5)
    assert terms.across.item() == pytest.approx(across if across_volumes else 0.0, rel=1e-5, abs=1e-7)
    assert terms.loss.item() == pytest.approx(own + (across if across_volumes else 0.0), rel=1e-5)


def test_identical_features_give_the_closed_form():
    features = torch.ones(2, 3, 5, 4) / 2
    zeros = torch.zeros(3, dtype=torch.int64)
    assert LocalContrastLoss()(features, zeros, zeros).loss.item() == pytest.approx(math.log(1 + 8), rel=1e-5)


def test_a_single_region_has_no_negatives_and_no_gradient():
    features, partition, volume = random_case(regions=1)
    features.requires_grad_(True)
    loss = LocalContrastLoss()(features, partition, volume).loss
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_across_volumes_is_chosen_by_a_word_too():
    assert LocalContrastLoss(across_volumes="False").across_volumes is False
    assert LocalContrastLoss(across_volumes="true").across_volumes is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"across_volumes": "no"}, "across_volumes must be true or false, got 'no'"),
    ],
)
def test_refuses_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        LocalContrastLoss(**arguments)
