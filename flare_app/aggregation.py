"""Federated averaging as pure maths: what a site's update must look like, and the weighted mean of the updates."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

# Steps of the two parts of a sum, and what one term may be so that 2048 of them fit into 63 bits.
_COARSE, _FINE, _LARGEST_TERM = 2.0**12, 2.0**52, 2.0**40

# Slices that no hospital has; as a weight in the average such a number would leave nothing of the others.
_MOST_SLICES = 2**31

_SHOWN = 3  # names that a message lists before it says how many more there are


def tensor_spec(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Name to ``"dtype shape"`` of every tensor: two sites agree on an architecture when these are equal."""
    return {name: f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for name, t in sorted(weights.items())}


def shape_of(described: str) -> list[int]:
    """The shape in an entry of a spec."""
    return list(json.loads(described.partition(" ")[2]))


def spec_difference(expected: Mapping[str, str], got: Mapping[str, str]) -> str | None:
    """How ``got`` differs from ``expected``, in words; None when it does not."""
    missing = sorted(expected.keys() - got.keys())
    unknown = sorted(got.keys() - expected.keys())
    both = sorted(expected.keys() & got.keys())
    other = [f"{name} is {got[name]}, not {expected[name]}" for name in both if got[name] != expected[name]]
    parts = []
    if missing:
        parts.append(f"missing {_some(missing)}")
    if unknown:
        parts.append(f"unknown {_some(unknown)}")
    if other:
        parts.append(_some(other))
    return "; ".join(parts) or None


def update_problem(
    update: Mapping[str, Tensor], count: object, spec: Mapping[str, str], max_norm: float | None = None
) -> str | None:
    """Why an update must not enter the average; None when it may.

    Args:
        update: difference to the global weights, by name.
        count: slices of the site, n_k.
        spec: :func:`tensor_spec` of the global weights.
        max_norm: largest :func:`l2_norm` that is accepted; None accepts any finite one.
    """
    problem = count_problem(count)
    if problem:
        return problem
    difference = spec_difference(spec, tensor_spec(update))
    if difference:
        return f"its tensors do not fit the global weights: {difference}"
    norm = l2_norm(update)
    if not math.isfinite(norm):  # as it is when one value is not
        broken = not_finite(update)
        if broken:
            return broken
    if max_norm is not None and not norm <= max_norm:  # nor is it when the limit is NaN
        return f"the norm of its update is {norm:.4g}, above the limit of {max_norm:.4g}"
    return None


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Which tensors hold NaN or infinite values, in words; None when none does."""
    broken = sorted(name for name, tensor in tensors.items() if not torch.isfinite(tensor).all())
    return f"NaN or infinite values in {_some(broken)}" if broken else None


def count_problem(count: object, declared: int = _MOST_SLICES) -> str | None:
    """Why ``count`` cannot weigh a site; None when it can.

    It is the number of slices that the site has to train on (n_k), so no honest one is above what it declared.

    Args:
        count: of slices.
        declared: those that the site said that it has, when it started.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count <= 0:
        return f"it reports {count!r} slices"
    most = min(declared, _MOST_SLICES)
    return f"it reports {count} slices, more than the {most} that it can have" if count > most else None


def l2_norm(tensors: Mapping[str, Tensor]) -> float:
    """L2 norm over all floating-point tensors together, in float64; counters (integers) are left out."""
    norms = [
        torch.linalg.vector_norm(tensor, dtype=torch.float64)
        for tensor in tensors.values()
        if tensor.is_floating_point()
    ]
    return float(torch.stack(norms).norm()) if norms else 0.0


def norm_limit(weights: Mapping[str, Tensor], ratio: float | None, absolute: float | None = None) -> float | None:
    """Largest norm of an update that is accepted in a round; None for no limit.

    Relative to the global weights and not to the other sites' updates: those differ in length by as much as the sites
    differ in slices, and a large hospital must not look like an outlier among small ones.

    Args:
        weights: the global weights that the round begins with.
        ratio: most of their norm that an update may have; weights of a norm below 1 count as 1.
        absolute: another limit; the lower of the two holds.
    """
    limits = [] if absolute is None else [absolute]
    if ratio is not None:
        limits.append(ratio * max(l2_norm(weights), 1.0))
    return min(limits, default=None)


class RunningAverage:
    """Mean of updates weighted by counts, folded in as they arrive, in any order, in memory for one model.

    Sums of floats depend on their order, and a repeated run shall give the same bits although sites answer in another
    one. So the sums are of whole numbers: each term, exact in float64, is split into a coarse and a fine part, which
    count steps of 2**-12 and of 2**-52, and adding those as int64 loses nothing.

    Args:
        sites: all sites that may answer.
    """

    def __init__(self, sites: Iterable[str]) -> None:
        self._pending = set(sites)
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}
        self.count = 0

    def add(self, site: str, update: Mapping[str, Tensor], count: int) -> None:
        """Take the update of ``site``.

        Raises:
            KeyError: when the site is unknown or has answered before.
            ValueError: when a value times the count is 2**40 or more, which the sums of many sites could not hold.
        """
        if site not in self._pending:
            raise KeyError(f"site {site!r} is not expected or has answered before")
        large = sorted(n for n, t in update.items() if t.numel() and _magnitude(t) * count >= _LARGEST_TERM)
        if large:
            raise ValueError(f"values too large to be averaged in {_some(large)}")
        self._pending.remove(site)
        self.count += count
        for name, tensor in update.items():
            # In place: a server of many sites spends its time here, and half of it would be for new memory.
            term = tensor.to(torch.float64, copy=True).mul_(count)
            coarse = (term * _COARSE).round_()
            parts = coarse.long(), term.sub_(coarse.div_(_COARSE)).mul_(_FINE).round_().long()
            if name in self._sums:
                for total, part in zip(self._sums[name], parts, strict=True):
                    total += part
            else:
                self._sums[name] = parts

    def mean(self) -> dict[str, Tensor]:
        """The weighted mean over those added, in float64; nothing can be added afterwards.

        Raises:
            ValueError: when nothing was added.
        """
        self._pending = set()
        if self.count == 0:
            raise ValueError("no update was added: there is nothing to average")
        return {
            name: (coarse.double() / _COARSE + fine.double() / _FINE) / self.count
            for name, (coarse, fine) in self._sums.items()
        }


def apply_update(weights: Mapping[str, Tensor], update: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``weights + update`` in float64, given back in the dtype of each weight (integers are rounded)."""
    result = {}
    for name, weight in weights.items():
        value = weight.to(torch.float64) + update[name]
        result[name] = (value if weight.is_floating_point() else value.round()).to(weight.dtype)
    return result


def weighted_mean(reports: Mapping[str, tuple[float, Mapping[str, float]]]) -> dict[str, float]:
    """Mean of each metric over the sites that report it, weighted by their counts.

    Args:
        reports: site to (count, metrics).
    """
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for site in sorted(reports):
        count, metrics = reports[site]
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + count * value
            counts[name] = counts.get(name, 0.0) + count
    return {name: sums[name] / counts[name] for name in sums if counts[name] > 0}


def _magnitude(tensor: Tensor) -> float:
    """Of its entry furthest from 0; not by ``abs``, which leaves the least whole number negative."""
    low, high = tensor.aminmax()
    return max(-float(low), float(high))


def _some(items: Iterable[str]) -> str:
    listed = list(items)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more
