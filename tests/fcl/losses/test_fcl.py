"""FCLLoss against a loop-form reference, closed forms, gradients and toy learning."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from fcl.losses import FCLLoss


def random_case(queries=6, local=11, drawn=13, length=8, partitions=4, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)

    def unit(rows):
        return normalize(torch.randn(rows, length, generator=g), dim=1).to(dtype)

    def integers(high, rows):
        return torch.randint(high, (rows,), generator=g)

    return {
        "q_BD": unit(queries),
        "partition_B": integers(partitions, queries),
        "volume_B": integers(3, queries),
        "k_BD": unit(queries),
        "local_MD": unit(local),
        "local_partition_M": integers(partitions, local),
        "local_volume_M": integers(3, local),
        "drawn_KD": unit(drawn),
        "drawn_partition_K": integers(partitions, drawn),
    }


def loop_term(q, positives, negatives, temperature):
    """l(q, P, Q') of Wu et al. 2021, written as the ratio of exponentials that the paper prints."""
    total = sum(math.exp(float(q @ n) / temperature) for n in negatives)
    values = []
    for p in positives:
        e = math.exp(float(q @ p) / temperature)
        values.append(-math.log(e / (e + total)))
    return sum(values) / len(values) if values else None


def loop_loss(case, temperature, denominator, structural_matching):
    local, remote, instance = [], [], []
    for b, q in enumerate(case["q_BD"].double()):
        partition = case["partition_B"][b]
        drawn = list(zip(case["drawn_KD"].double(), case["drawn_partition_K"], strict=True))
        negatives = [n for n, s in drawn if denominator == "literal" or s != partition]
        bank = zip(case["local_MD"].double(), case["local_partition_M"], case["local_volume_M"], strict=True)
        own = [k for k, s, v in bank if s == partition and v != case["volume_B"][b]]
        local.append(loop_term(q, own, negatives, temperature))
        remote.append(loop_term(q, [n for n, s in drawn if s == partition], negatives, temperature))
        instance.append(loop_term(q, [case["k_BD"][b].double()], [n for n, _ in drawn], temperature))

    def mean(values):
        kept = [v for v in values if v is not None]
        return sum(kept) / max(1, len(kept))

    return mean(local), mean(remote) if structural_matching else 0.0, mean(instance)


@pytest.mark.parametrize("denominator", ["exclude_same_partition", "literal"])
@pytest.mark.parametrize("instance_weight", [0.0, 0.7])
@pytest.mark.parametrize("structural_matching", [True, False])
@pytest.mark.parametrize(("queries", "local", "drawn"), [(1, 1, 1), (6, 11, 13), (7, 40, 3)])
def test_equals_the_loop_form(denominator, instance_weight, structural_matching, queries, local, drawn):
    case = random_case(queries, local, drawn)
    loss = FCLLoss(0.2, denominator, structural_matching, instance_weight)
    terms = loss(**case)
    local_term, remote_term, instance_term = loop_loss(case, 0.2, denominator, structural_matching)
    assert terms.local.item() == pytest.approx(local_term, rel=1e-5, abs=1e-6)
    assert terms.remote.item() == pytest.approx(remote_term, rel=1e-5, abs=1e-6)
    assert terms.instance.item() == pytest.approx(instance_term if instance_weight else 0.0, rel=1e-5)
    total = local_term + remote_term + instance_weight * instance_term
    assert terms.loss.item() == pytest.approx(total, rel=1e-5, abs=1e-6)


def test_monitors_are_the_mean_cosines_with_local_positives_and_with_other_partitions():
    case = random_case()
    positive, negative = [], []
    for q, partition, volume in zip(case["q_BD"], case["partition_B"], case["volume_B"], strict=True):
        bank = zip(case["local_MD"], case["local_partition_M"], case["local_volume_M"], strict=True)
        positive += [float(q @ k) for k, s, v in bank if s == partition and v != volume]
        drawn = zip(case["drawn_KD"], case["drawn_partition_K"], strict=True)
        negative += [float(q @ n) for n, s in drawn if s != partition]
    terms = FCLLoss()(**case)
    assert terms.positive_similarity.item() == pytest.approx(sum(positive) / len(positive), abs=1e-6)
    assert terms.negative_similarity.item() == pytest.approx(sum(negative) / len(negative), abs=1e-6)


def test_identical_features_give_the_closed_form():
    """All cosines 1: every positive term is log(1 + number of negatives)."""
    case = random_case(queries=4, local=8, drawn=12)
    case["local_partition_M"] = torch.arange(8) % 4
    case["local_volume_M"] = torch.full((8,), 7)
    for key in ("q_BD", "local_MD", "drawn_KD"):
        case[key] = normalize(torch.ones_like(case[key]), dim=1)
    case["drawn_partition_K"] = torch.arange(12) % 4
    terms = FCLLoss(0.1, "exclude_same_partition")(**case)
    assert terms.remote.item() == pytest.approx(math.log(1 + 9), rel=1e-5)
    assert terms.local.item() == pytest.approx(math.log(1 + 9), rel=1e-5)
    literal = FCLLoss(0.1, "literal")(**case)
    assert literal.remote.item() == pytest.approx(math.log(1 + 12), rel=1e-5)


def test_only_the_query_learns():
    case = random_case()
    for key in ("q_BD", "k_BD", "local_MD", "drawn_KD"):
        case[key].requires_grad_(True)
    FCLLoss(instance_weight=1.0)(**case).loss.backward()
    assert case["q_BD"].grad.abs().sum() > 0
    assert case["k_BD"].grad is None
    assert case["local_MD"].grad is None
    assert case["drawn_KD"].grad is None


def test_a_query_without_negatives_has_no_gradient_and_no_nan():
    case = random_case(queries=3)
    case["drawn_partition_K"][:] = 2
    case["partition_B"][:] = 2
    case["q_BD"].requires_grad_(True)
    terms = FCLLoss(denominator="exclude_same_partition")(**case)
    terms.loss.backward()
    assert terms.loss.item() == 0.0
    assert torch.equal(case["q_BD"].grad, torch.zeros_like(case["q_BD"]))


def test_a_batch_without_positives_keeps_its_graph():
    case = random_case(queries=2)
    case["partition_B"][:] = 0
    case["drawn_partition_K"][:] = 1
    case["local_partition_M"][:] = 1
    case["q_BD"].requires_grad_(True)
    terms = FCLLoss()(**case)
    terms.loss.backward()
    assert terms.loss.item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_compared_in_float32(dtype):
    exact = FCLLoss()(**random_case(dtype=torch.float32)).loss
    half = FCLLoss()(**random_case(dtype=dtype)).loss
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), rel=0.05)


def test_sharp_temperature_stays_finite():
    terms = FCLLoss(temperature=0.001)(**random_case())
    assert math.isfinite(terms.loss.item())


def test_loss_falls_when_queries_learn():
    case = random_case(queries=16, local=32, drawn=32, length=16)
    weights = torch.nn.Parameter(case["q_BD"].clone())
    optimizer = torch.optim.Adam([weights], lr=0.05)
    values = []
    for _ in range(60):
        terms = FCLLoss()(**{**case, "q_BD": normalize(weights, dim=1)})
        optimizer.zero_grad()
        terms.loss.backward()
        optimizer.step()
        values.append(terms.loss.item())
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize("word", ["true", "False"])
def test_the_remote_term_is_chosen_by_a_word_too(word):
    remote = FCLLoss(structural_matching=word)(**random_case()).remote.item()
    assert (remote > 0.0) is (word == "true")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"denominator": "all"}, "denominator must be"),
        ({"instance_weight": -1.0}, "instance_weight"),
        ({"structural_matching": "no"}, "structural_matching must be true or false, got 'no'"),
    ],
)
def test_refuses_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        FCLLoss(**arguments)
