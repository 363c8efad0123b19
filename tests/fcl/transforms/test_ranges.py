from __future__ import annotations

import math

import pytest
import torch

from fcl.transforms.ranges import (
    between,
    between_factors,
    factor_range,
    magnitude_range,
    probability,
    symmetric_range,
)


@pytest.mark.parametrize(
    ("read", "value", "expected"),
    [
        (symmetric_range, 0.5, (-0.5, 0.5)),
        (symmetric_range, -0.5, (-0.5, 0.5)),
        (symmetric_range, [0.1, 0.2], (0.1, 0.2)),
        (symmetric_range, 0, (0.0, 0.0)),
        (magnitude_range, 3, (0.0, 3.0)),
        (magnitude_range, (1, 2), (1.0, 2.0)),
        (factor_range, [0.5, 2], (0.5, 2.0)),
    ],
)
def test_ranges_are_read_from_numbers_and_pairs(read, value, expected):
    assert read(value, "range") == expected


@pytest.mark.parametrize(
    ("read", "value", "message"),
    [
        (symmetric_range, (2, 1), "low <= high"),
        (symmetric_range, (1, 2, 3), "a number or a pair"),
        (symmetric_range, math.nan, "finite"),
        (symmetric_range, (0, math.inf), "finite"),
        (symmetric_range, ("a", "b"), "finite numbers"),
        (magnitude_range, -1, "low <= high"),
        (magnitude_range, (-1, 1), "must not be negative"),
        (factor_range, (-0.3, 0.3), r"write \(0.7, 1.3\), not \(-0.3, 0.3\)"),
        (factor_range, (0.0, 1.0), "must be positive"),
        (symmetric_range, None, "a number or a pair"),
        (magnitude_range, None, "a number or a pair"),
        (factor_range, 1.2, r"must be a pair \(low, high\) of finite numbers, got 1.2"),
        (factor_range, (0.5, 1, 2), r"must be a pair \(low, high\)"),
        (probability, 1.5, r"must lie in 0..1; got 1.5"),
        (probability, -0.1, r"got -0.1"),
    ],
)
def test_bad_ranges_are_refused_by_name(read, value, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(value, "the_argument")
    assert "the_argument" in str(caught.value)


def test_draws_cover_their_range_evenly():
    uniform = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(between(uniform, (-1.0, 3.0)), torch.tensor([-1.0, 1.0, 3.0]))
    torch.testing.assert_close(between_factors(uniform, (0.5, 2.0)), torch.tensor([0.5, 1.0, 2.0]))
