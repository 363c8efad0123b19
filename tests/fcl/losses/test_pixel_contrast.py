"""PixelContrastLoss against a loop over slices and pixels."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from fcl.losses import PixelContrastLoss

SPACING, APART, TEMPERATURE = 2.0, 5.0, 0.3


def random_case(batch=3, first=5, second=40, seed=0):
    """Features and places in a slice of 16 pixels a side; of each view one pixel lies outside."""
    g = torch.Generator().manual_seed(seed)
    features = [normalize(torch.randn(batch, n, 6, generator=g), dim=2) for n in (first, second)]
    places = [torch.randint(16, (batch, n, 2), generator=g).float() for n in (first, second)]
    for place in places:
        place[:, -1] = torch.nan
    return features[0], places[0], features[1], places[1]


def loop_terms(first, first_place, second, second_place):
    losses, hits = [], []
    for b in range(len(first)):
        for p in range(first.shape[1]):
            near, far = [], []
            for n in range(second.shape[1]):
                distance = math.dist(first_place[b, p].tolist(), second_place[b, n].tolist())
                if math.isnan(distance):
                    continue
                similarity = float(first[b, p].double() @ second[b, n].double())
                near.append((distance, similarity))
                far += [similarity] if distance > APART else []
            if not near or min(near)[0] >= SPACING:
                continue
            closest = min(distance for distance, _ in near)
            own = next(similarity for distance, similarity in near if distance == closest)
            repelled = sum(math.exp(s / TEMPERATURE) for s in far)
            losses.append(-math.log(math.exp(own / TEMPERATURE) / (math.exp(own / TEMPERATURE) + repelled)))
            hits.append(own > max(far))
    return sum(losses) / len(losses), sum(hits) / len(hits), len(losses)


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_loop_form(seed):
    case = random_case(seed=seed)
    loss, accuracy, compared = loop_terms(*case)
    assert 3 <= compared < 3 * 4  # some have no match, those outside none
    terms = PixelContrastLoss(TEMPERATURE, APART)(*case, SPACING)
    assert terms.loss.item() == pytest.approx(loss, rel=1e-5)
    assert terms.accuracy.item() == pytest.approx(accuracy)


def test_what_tells_all_places_apart_loses_nothing():
    place = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))[None] * 10
    features = torch.eye(9)[None]
    terms = PixelContrastLoss(0.02)(features, place, features, place, 1.0)
    assert terms.loss.item() == pytest.approx(0.0, abs=1e-6)
    assert [term.item() for term in terms[1:]] == [1.0, 1.0, 0.0]


def test_views_that_share_nothing_give_no_loss_and_no_gradient():
    first, first_place, second, second_place = random_case()
    first.requires_grad_(True)
    terms = PixelContrastLoss()(first, first_place, second, second_place + 100, SPACING)
    assert terms.loss.item() == 0.0
    terms.loss.backward()
    assert torch.equal(first.grad, torch.zeros_like(first))


def test_places_outside_send_no_gradient():
    first, first_place, second, second_place = random_case()
    first.requires_grad_(True)
    second.requires_grad_(True)
    PixelContrastLoss()(first, first_place, second, second_place, SPACING).loss.backward()
    assert first.grad.isfinite().all()
    assert first.grad[:, -1].count_nonzero() == second.grad[:, -1].count_nonzero() == 0
    assert second.grad[:, :-1].count_nonzero() > 0


@pytest.mark.parametrize("values", [{"temperature": 0.0}, {"apart": -1.0}])
def test_refuses_what_is_not_positive(values):
    with pytest.raises(ValueError, match=f"{next(iter(values))} must be"):
        PixelContrastLoss(**values)
