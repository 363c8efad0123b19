"""DictionaryAlignmentLoss against its loop form."""

from __future__ import annotations

import math

import pytest

from fcl.losses import DictionaryAlignmentLoss
from tests.fcl.losses.test_fcl import random_case


@pytest.mark.parametrize("weight", [0.0, 0.7])
@pytest.mark.parametrize(("queries", "drawn"), [(1, 1), (6, 13)])
def test_equals_the_loop_form(weight, queries, drawn):
    case = random_case(queries, 4, drawn)
    contrast, aligning = 0.0, 0.0
    for q, k in zip(case["q_BD"].double(), case["k_BD"].double(), strict=True):
        own = math.exp(float(q @ k) / 0.2)
        total = sum(math.exp(float(q @ n) / 0.2) for n in case["drawn_KD"].double())
        contrast -= math.log(own / (own + total)) / queries
        aligning += float((q - k).square().sum()) / queries
    terms = DictionaryAlignmentLoss(0.2, weight)(**case)
    assert terms.contrast.item() == pytest.approx(contrast, rel=1e-5)
    assert terms.aligning.item() == pytest.approx(aligning, rel=1e-5)
    assert terms.loss.item() == pytest.approx(contrast + weight * aligning, rel=1e-5)


def test_only_the_query_learns():
    case = random_case()
    for name in ("q_BD", "k_BD", "drawn_KD"):
        case[name].requires_grad_(True)
    DictionaryAlignmentLoss()(**case).loss.backward()
    assert case["q_BD"].grad.abs().sum() > 0
    assert case["k_BD"].grad is None
    assert case["drawn_KD"].grad is None


@pytest.mark.parametrize(
    ("arguments", "message"), [({"temperature": 0}, "temperature"), ({"alignment_weight": -1}, "alignment_weight")]
)
def test_refuses_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        DictionaryAlignmentLoss(**arguments)
