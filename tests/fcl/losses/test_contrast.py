"""GlobalContrastLoss against a loop-form reference, MONAI's NT-Xent, closed forms and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from monai.losses import ContrastiveLoss
from torch.nn.functional import normalize

from fcl.losses import GlobalContrastLoss

SETTINGS = [
    {"negatives": "other_slices"},
    {"negatives": "other_partitions"},
    {"negatives": "other_partitions", "across_volumes": True},
]


def random_case(views=2, batch=6, length=8, partitions=3, volumes=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    features = normalize(torch.randn(views, batch, length, generator=g), dim=2)
    partition = torch.randint(partitions, (batch,), generator=g)
    volume = torch.randint(volumes, (batch,), generator=g)
    return features, partition, volume, torch.rand(batch, generator=g)


def loop_loss(features, partition, volume, temperature, negatives, across_volumes=False):
    """l(x, x+) of Chaitanya et al., section 3.1, as the ratio of exponentials that they print."""
    items = [(v, b) for v in range(features.shape[0]) for b in range(features.shape[1])]
    own, across = [], []
    for v, b in items:

        def e(other, v=v, b=b):
            return math.exp(float(features[v, b].double() @ features[other].double()) / temperature)

        if negatives == "other_slices":
            repelling = sum(e(o) for o in items if o[1] != b)
        else:
            repelling = sum(e(o) for o in items if partition[o[1]] != partition[b])

        def mean(positives, e=e, repelling=repelling):
            values = [-math.log(e(p) / (e(p) + repelling)) for p in positives]
            return sum(values) / len(values)

        own.append(mean([o for o in items if o[1] == b and o[0] != v]))
        others = [o for o in items if o[0] == v and partition[o[1]] == partition[b] and volume[o[1]] != volume[b]]
        if across_volumes and others:
            across.append(mean(others))
    return sum(own) / len(own), sum(across) / max(1, len(across))


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(("views", "batch"), [(2, 1), (2, 7), (3, 5)])
def test_equals_the_loop_form(settings, views, batch):
    features, partition, volume, position = random_case(views, batch)
    terms = GlobalContrastLoss(0.3, **settings)(features, partition, volume, position)
    own, across = loop_loss(features, partition, volume, 0.3, **settings)
    assert terms.own.item() == pytest.approx(own, rel=1e-5, abs=1e-6)
    assert terms.across.item() == pytest.approx(across, rel=1e-5, abs=1e-6)
    assert terms.loss.item() == pytest.approx(own + across, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_two_views_equal_monais_nt_xent(temperature):
    features, partition, volume, position = random_case(batch=9)
    ours = GlobalContrastLoss(temperature)(features, partition, volume, position).loss
    assert ours.item() == pytest.approx(ContrastiveLoss(temperature)(features[0], features[1]).item(), rel=1e-5)


def test_identical_features_give_the_closed_form():
    """All cosines 1: every term is log(1 + number of negatives)."""
    features = torch.ones(2, 8, 4) / 2
    partition, volume = torch.arange(8) % 4, torch.arange(8) // 4
    slices = GlobalContrastLoss()(features, partition, volume, partition)
    assert slices.loss.item() == pytest.approx(math.log(1 + 14), rel=1e-5)
    parts = GlobalContrastLoss(negatives="other_partitions", across_volumes=True)(
        features, partition, volume, partition
    )
    assert parts.own.item() == pytest.approx(math.log(1 + 12), rel=1e-5)
    assert parts.across.item() == pytest.approx(math.log(1 + 12), rel=1e-5)


def test_slices_of_one_partition_do_not_repel_when_told_so():
    features, _, volume, position = random_case()
    features.requires_grad_(True)
    one_partition = torch.zeros(6, dtype=torch.int64)
    terms = GlobalContrastLoss(negatives="other_partitions")(features, one_partition, volume, position)
    terms.loss.backward()
    assert terms.loss.item() == 0.0
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_every_view_learns_and_sharp_temperature_stays_finite():
    features, *rest = random_case()
    features.requires_grad_(True)
    loss = GlobalContrastLoss(0.001)(features, *rest).loss
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(features.grad).all()
    assert bool((features.grad.abs().sum(dim=2) > 0).any(dim=1).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_compared_in_float32(dtype):
    features, *rest = random_case()
    exact, half = GlobalContrastLoss()(features, *rest).loss, GlobalContrastLoss()(features.to(dtype), *rest).loss
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), rel=0.05)


def test_across_volumes_is_chosen_by_a_word_too():
    assert GlobalContrastLoss(across_volumes="false").across_volumes is False
    assert GlobalContrastLoss(negatives="other_partitions", across_volumes="true").across_volumes is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"negatives": "all"}, "negatives must be"),
        ({"across_volumes": True}, "cannot be negatives too"),
        ({"across_volumes": "true"}, "cannot be negatives too"),
        ({"across_volumes": "no"}, "across_volumes must be true or false, got 'no'"),
    ],
)
def test_refuses_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        GlobalContrastLoss(**arguments)
