from __future__ import annotations

from fractions import Fraction
from itertools import permutations

import pytest
import torch
from torch import Tensor

from flare_app.aggregation import (
    RunningAverage,
    apply_update,
    count_problem,
    l2_norm,
    norm_limit,
    spec_difference,
    tensor_spec,
    update_problem,
    weighted_mean,
)


def _updates(sites: int) -> dict[str, tuple[dict[str, Tensor], int]]:
    generator = torch.Generator().manual_seed(sites)
    return {
        f"site-{i}": (
            {"w": torch.randn(3, 2, generator=generator), "b": 1e-4 * torch.randn(5, generator=generator)},
            int(torch.randint(1, 200, (1,), generator=generator)),
        )
        for i in range(sites)
    }


def _mean_by_loops(updates: dict[str, tuple[dict[str, Tensor], int]]) -> dict[str, list[float]]:
    total = sum(count for _, count in updates.values())
    result = {}
    for name in ("w", "b"):
        flat = [0.0] * next(iter(updates.values()))[0][name].numel()
        for update, count in updates.values():
            for i, value in enumerate(update[name].flatten().tolist()):
                flat[i] += value * count / total
        result[name] = flat
    return result


@pytest.mark.parametrize("sites", [1, 2, 5, 12])
def test_mean_equals_the_one_by_loops(sites: int) -> None:
    updates = _updates(sites)
    average = RunningAverage(updates)
    for site, (update, count) in updates.items():
        average.add(site, update, count)
    expected = _mean_by_loops(updates)
    for name, tensor in average.mean().items():
        assert tensor.flatten().tolist() == pytest.approx(expected[name], abs=1e-12)
    assert average.count == sum(count for _, count in updates.values())


def test_bits_do_not_depend_on_the_order_of_arrival() -> None:
    updates = _updates(4)
    means = []
    for order in permutations(updates):
        average = RunningAverage(updates)
        for site in order:
            average.add(site, *updates[site])
        means.append(average.mean())
    assert all(torch.equal(mean[name], means[0][name]) for mean in means for name in mean)


@pytest.mark.parametrize("absent", ["site-0", "site-1", "site-2"])
def test_sites_that_never_answer_leave_the_mean_of_the_others(absent: str) -> None:
    updates = _updates(3)
    average = RunningAverage(updates)
    present = {site: update for site, update in updates.items() if site != absent}
    for site in reversed(present):
        average.add(site, *present[site])
    expected = _mean_by_loops(present)
    assert average.mean()["w"].flatten().tolist() == pytest.approx(expected["w"], abs=1e-12)


def test_memory_does_not_grow_with_sites_whatever_the_order() -> None:
    updates = _updates(sites=40)
    average = RunningAverage(updates)
    for site in reversed(updates):
        average.add(site, *updates[site])
        held = [tensor for sums in average._sums.values() for tensor in sums]
        assert sum(tensor.numel() for tensor in held) == 2 * sum(t.numel() for t in updates[site][0].values())


def test_sums_are_exact() -> None:
    """Terms that float64 would lose beside large ones come back when the large ones cancel."""
    values = [3.0e9, 2.0**-40, -3.0e9, 1.0e-3]
    average = RunningAverage(map(str, range(4)))
    for site, value in enumerate(values):
        average.add(str(site), {"w": torch.tensor([value], dtype=torch.float64)}, 1)
    expected = sum(map(Fraction, values)) / 4
    assert float(average.mean()["w"]) == pytest.approx(float(expected), abs=2.0**-52)
    assert sum(values) / 4 != pytest.approx(float(expected), abs=2.0**-45)


def test_sums_in_place_are_those_of_the_plain_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(1000, generator=generator) * 10.0**power for power in range(-8, 8)]
    update = {str(power): value for power, value in enumerate(values)}
    kept = {name: value.clone() for name, value in update.items()}
    average = RunningAverage("ab")
    average.add("a", update, 37)
    average.add("b", update, 11)
    for name, value in kept.items():
        assert torch.equal(update[name], value)
        totals = [torch.zeros(1000, dtype=torch.int64) for _ in range(2)]
        for count in (37, 11):
            term = value.double() * count
            coarse = (term * 2.0**12).round()
            totals[0] += coarse.long()
            totals[1] += ((term - coarse / 2.0**12) * 2.0**52).round().long()
        for found, expected in zip(average._sums[name], totals, strict=True):
            assert torch.equal(found, expected)


def test_values_beyond_the_range_of_the_sums_are_refused() -> None:
    average = RunningAverage(["site-1"])
    with pytest.raises(ValueError, match="too large to be averaged in w"):
        average.add("site-1", {"w": torch.tensor([2.0**31])}, 2**9)
    assert average.count == 0
    with pytest.raises(ValueError, match="too large to be averaged in n"):
        average.add("site-1", {"n": torch.tensor([-(2**63), 0])}, 1)  # has no counterpart above 0
    average.add("site-1", {"w": torch.tensor([2.0**30])}, 2**9)


def test_strangers_and_second_answers_are_refused() -> None:
    updates = _updates(2)
    average = RunningAverage(updates)
    average.add("site-0", *updates["site-0"])
    for site in ("site-0", "site-9"):
        with pytest.raises(KeyError, match=site):
            average.add(site, *updates["site-0"])


def test_mean_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to average"):
        RunningAverage(["site-1"]).mean()


def test_update_is_applied_in_the_dtype_of_the_weights() -> None:
    weights = {"w": torch.tensor([1.0, 2.0]), "h": torch.tensor([1.0], dtype=torch.float16), "n": torch.tensor([7])}
    update = {"w": torch.tensor([0.5, -0.5]), "h": torch.tensor([0.25]), "n": torch.tensor([1.6])}
    result = apply_update(weights, {name: tensor.double() for name, tensor in update.items()})
    assert {name: tensor.dtype for name, tensor in result.items()} == {n: t.dtype for n, t in weights.items()}
    assert result["w"].tolist() == [1.5, 1.5]
    assert result["h"].tolist() == [1.25]
    assert result["n"].tolist() == [9]


SPEC = {"b": "float32 [2]", "w": "float32 [2, 3]"}
GOOD = {"w": torch.zeros(2, 3), "b": torch.zeros(2)}


def test_spec_names_dtype_and_shape() -> None:
    assert tensor_spec(GOOD) == SPEC


@pytest.mark.parametrize(
    ("update", "count", "message"),
    [
        (GOOD, 3, None),
        (GOOD, 0, "it reports 0 slices"),
        (GOOD, -1, "it reports -1 slices"),
        (GOOD, 2.5, "it reports 2.5 slices"),
        (GOOD, True, "it reports True slices"),
        (GOOD, None, "it reports None slices"),
        (GOOD, 2**31, None),
        (GOOD, 2**31 + 1, "it reports 2147483649 slices, more than the 2147483648 that it can have"),
        ({"w": GOOD["w"]}, 3, "its tensors do not fit the global weights: missing b"),
        ({**GOOD, "x": GOOD["b"]}, 3, "its tensors do not fit the global weights: unknown x"),
        (
            {**GOOD, "b": torch.zeros(3)},
            3,
            "its tensors do not fit the global weights: b is float32 [3], not float32 [2]",
        ),
        (
            {**GOOD, "b": torch.zeros(2, dtype=torch.float64)},
            3,
            "its tensors do not fit the global weights: b is float64 [2], not float32 [2]",
        ),
        ({**GOOD, "b": torch.tensor([0.0, float("nan")])}, 3, "NaN or infinite values in b"),
        ({**GOOD, "w": torch.full((2, 3), float("inf"))}, 3, "NaN or infinite values in w"),
        ({"w": torch.ones(2, 3), "b": torch.ones(2)}, 3, "the norm of its update is 2.828, above the limit of 2"),
    ],
)
def test_update_problem(update: dict[str, Tensor], count: object, message: str | None) -> None:
    assert update_problem(update, count, SPEC, max_norm=2.0) == message


@pytest.mark.parametrize(("count", "declared", "fits"), [(24, 24, True), (25, 24, False), (2**40, 2**50, False)])
def test_no_site_weighs_more_than_it_has(count: int, declared: int, fits: bool) -> None:
    assert (count_problem(count, declared) is None) == fits


def test_no_norm_is_within_a_limit_that_is_no_number() -> None:
    assert "above the limit of nan" in str(update_problem(GOOD, 3, SPEC, max_norm=float("nan")))


def test_without_a_norm_limit_any_finite_update_passes() -> None:
    assert update_problem({"w": torch.full((2, 3), 1e30), "b": torch.zeros(2)}, 3, SPEC) is None


def test_norm_leaves_counters_out() -> None:
    tensors = {"w": torch.tensor([[3.0]]), "h": torch.tensor([4.0], dtype=torch.float16), "n": torch.tensor([1000])}
    assert l2_norm(tensors) == 5.0


@pytest.mark.parametrize(
    ("ratio", "absolute", "expected"),
    [(None, None, None), (2.0, None, 10.0), (2.0, 7.0, 7.0), (2.0, 70.0, 10.0), (None, 7.0, 7.0)],
)
def test_norm_limit_is_the_lower_of_the_two(
    ratio: float | None, absolute: float | None, expected: float | None
) -> None:
    assert norm_limit({"w": torch.tensor([3.0, 4.0])}, ratio, absolute) == expected


def test_norm_limit_of_very_small_weights_is_that_of_norm_one() -> None:
    assert norm_limit({"w": torch.zeros(3)}, 10.0) == 10.0


def test_spec_difference_lists_a_few_and_counts_the_rest() -> None:
    many = {f"layer{i}": "float32 [1]" for i in range(9)}
    assert spec_difference(many, {}) == "missing layer0, layer1, layer2 and 6 more"
    assert spec_difference(many, many) is None


def test_weighted_mean_of_metrics_is_over_the_sites_that_report_them() -> None:
    reports = {"a": (10, {"loss": 1.0, "knn": 0.5}), "b": (30, {"loss": 3.0}), "c": (0, {"loss": 100.0})}
    assert weighted_mean(reports) == {"loss": 2.5, "knn": 0.5}
    assert weighted_mean({"a": (0, {"loss": 1.0})}) == {}
