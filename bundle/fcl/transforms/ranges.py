"""Ranges that random draws come from: read from plain numbers or pairs, validated once, when a transform is made."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

Range = float | Sequence[float]


def symmetric_range(value: Range, name: str) -> tuple[float, float]:
    """``r`` as ``(-r, r)``, or the pair ``(low, high)`` as it stands.

    Raises:
        ValueError: when ``value`` is neither, not finite, or low exceeds high.
    """
    if isinstance(value, int | float):
        return _pair((-abs(value), abs(value)), value, name)
    return _pair(value, value, name)


def factor_range(value: Sequence[float], name: str) -> tuple[float, float]:
    """A pair of positive factors around 1, e.g. ``(0.8, 1.25)``.

    Raises:
        ValueError: when ``value`` is no such pair.
    """
    low, high = _pair(value, value, name, "a pair")
    if low <= 0.0:
        raise ValueError(
            f"{name} holds factors, so both must be positive: write (0.7, 1.3), not (-0.3, 0.3); got {value}"
        )
    return low, high


def magnitude_range(value: Range, name: str) -> tuple[float, float]:
    """``r`` as ``(0, r)``, or the pair ``(low, high)``, neither negative.

    Raises:
        ValueError: when ``value`` is no such range.
    """
    low, high = _pair((0.0, value) if isinstance(value, int | float) else value, value, name)
    if low < 0.0:
        raise ValueError(f"{name} must not be negative, got {value}")
    return low, high


def probability(value: float, name: str) -> float:
    """``value`` itself.

    Raises:
        ValueError: when it lies outside 0..1.
    """
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is a probability, so it must lie in 0..1; got {value}")
    return float(value)


def between(uniform: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Uniform numbers in 0..1 moved to ``bounds``."""
    low, high = bounds
    return low + (high - low) * uniform


def between_factors(uniform: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Uniform numbers in 0..1 moved to ``bounds`` evenly in the logarithm, so that 1/2 is as likely as 2."""
    return between(uniform, (math.log(bounds[0]), math.log(bounds[1]))).exp()


def _pair(value: Sequence[float], given: Range, name: str, wanted: str = "a number or a pair") -> tuple[float, float]:
    finite = isinstance(value, Sequence) and all(
        isinstance(each, int | float) and math.isfinite(each) for each in value
    )
    if not finite or len(value) != 2:
        raise ValueError(f"{name} must be {wanted} (low, high) of finite numbers, got {given}")
    low, high = float(value[0]), float(value[1])
    if low > high:
        raise ValueError(f"{name} must have low <= high, got {given}")
    return low, high
