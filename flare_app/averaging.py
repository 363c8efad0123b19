"""How the server keeps the global weights and makes new ones: readable, or encrypted with a key of the sites."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from nvflare.apis.dxo import DataKind
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from torch import Tensor

from flare_app.aggregation import (
    RunningAverage,
    apply_update,
    l2_norm,
    norm_limit,
    spec_difference,
    tensor_spec,
    update_problem,
)
from flare_app.protocol import with_tensors

Weights = Mapping[str, Tensor]
Spec = Mapping[str, str]  # of flare_app.aggregation.tensor_spec, of readable weights

ENCRYPTIONS = ("none", "he")


class RoundAverage(Protocol):
    """The updates of one round, on their way to new global weights."""

    @property
    def count(self) -> int:
        """Slices over all updates taken."""
        ...

    def take(self, site: str, update: Weights, count: object) -> str | None:
        """Add the update of ``site``, weighted by ``count`` slices; gives why it must not enter the average.

        Raises:
            KeyError: when the site is unknown or has answered before.
        """
        ...

    def norm(self, update: Weights) -> float | None:
        """L2 norm of an update; None when the server cannot tell."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """The new global weights; nothing can be added afterwards.

        Raises:
            ValueError: when nothing was added.
        """
        ...


class Averaging(Protocol):
    """What the controller asks of a way to average. Weights are tensors by name, whatever they hold.

    ``readable`` tells whether the server can read them. Where it cannot, the sites keep the finished model.
    """

    encryption: str
    readable: bool

    def refusal(self, fl_ctx: FLContext) -> str | None:
        """Why it cannot work at this server; None when it can. Asked once, before anything else."""
        ...

    def misfit(self, weights: Weights, spec: Spec) -> str | None:
        """How ``weights`` differ from what ``spec`` describes, in words; None when they do not."""
        ...

    def payload(self, weights: Weights, spec: Spec) -> Shareable:
        """The global weights as sites get them."""
        ...

    def begin(self, weights: Weights, spec: Spec, sites: Iterable[str]) -> RoundAverage:
        """A round that begins with ``weights``."""
        ...


class PlainRound:
    """One round in the clear, see :class:`RoundAverage`."""

    def __init__(self, weights: Weights, spec: Spec, max_norm: float | None, sites: Iterable[str]) -> None:
        self._weights, self._spec, self._max_norm = weights, spec, max_norm
        self._average = RunningAverage(sites)

    @property
    def count(self) -> int:
        return self._average.count

    def take(self, site: str, update: Weights, count: object) -> str | None:
        problem = update_problem(update, count, self._spec, self._max_norm)
        if problem is None:
            self._average.add(site, update, count)  # type: ignore[arg-type]
        return problem

    def norm(self, update: Weights) -> float | None:
        return l2_norm(update)

    def weights(self) -> dict[str, Tensor]:
        return apply_update(self._weights, self._average.mean())


class PlainAveraging:
    """Weights that the server reads, see :class:`Averaging`.

    Args:
        max_norm_ratio, max_update_norm: see :class:`flare_app.controller.FCLController`.
    """

    encryption = "none"
    readable = True

    def __init__(self, max_norm_ratio: float | None = None, max_update_norm: float | None = None) -> None:
        self._max_norm_ratio, self._max_update_norm = max_norm_ratio, max_update_norm

    def refusal(self, fl_ctx: FLContext) -> str | None:
        return None

    def misfit(self, weights: Weights, spec: Spec) -> str | None:
        return spec_difference(spec, tensor_spec(weights))

    def payload(self, weights: Weights, spec: Spec) -> Shareable:
        return with_tensors(DataKind.WEIGHTS, weights)

    def begin(self, weights: Weights, spec: Spec, sites: Iterable[str]) -> PlainRound:
        limit = norm_limit(weights, self._max_norm_ratio, self._max_update_norm)
        return PlainRound(weights, spec, limit, sites)


def averaging_for(
    encryption: str, max_norm_ratio: float | None = None, max_update_norm: float | None = None
) -> Averaging:
    """The way to average that a job's ``encryption`` asks for.

    Raises:
        ValueError: when there is none of that name.
    """
    from flare_app.encryption.average import EncryptedAveraging

    if encryption not in ENCRYPTIONS:
        raise ValueError(f"encryption must be one of {', '.join(ENCRYPTIONS)}, got {encryption!r}")
    return EncryptedAveraging() if encryption == "he" else PlainAveraging(max_norm_ratio, max_update_norm)
