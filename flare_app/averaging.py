"""How the server keeps the global weights and makes new ones: readable, in fewer bits, or encrypted by the sites."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

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
from flare_app.compression import WEIGHT_BITS, ErrorFeedback, decode, encode
from flare_app.protocol import with_tensors
from flare_app.server_optimizer import ServerOptimizer

Weights = Mapping[str, Tensor]
Spec = Mapping[str, str]  # of flare_app.aggregation.tensor_spec, of readable weights

ENCRYPTIONS = ("none", "he")

# What belongs to whom among the tensors that cross rounds.
_MOMENTS, _RESIDUAL = "moments/", "residual/"


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
    ``change`` is the last round's change of the global weights as sites that hold those before it get it; None where
    all get the weights in full.
    """

    encryption: str
    readable: bool
    change: dict[str, Tensor] | None

    def state_dict(self) -> dict[str, Tensor]:
        """What crosses rounds: what rounding has kept back of changes, moments of the server's optimizer."""
        ...

    def load_state_dict(self, state: Weights) -> None:
        """Go on from :meth:`state_dict`."""
        ...

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

    def __init__(
        self,
        weights: Weights,
        spec: Spec,
        max_norm: float | None,
        sites: Iterable[str],
        optimizer: ServerOptimizer | None = None,
    ) -> None:
        self._weights, self._spec, self._max_norm, self._optimizer = weights, spec, max_norm, optimizer
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
        return apply_update(self._weights, self._exact_change())

    def _exact_change(self) -> dict[str, Tensor]:
        mean = self._average.mean()
        return mean if self._optimizer is None else self._optimizer.change(mean)


class PlainAveraging:
    """Weights that the server reads, see :class:`Averaging`.

    Args:
        max_norm_ratio, max_update_norm: see :class:`flare_app.controller.FCLController`.
        optimizer: makes a step of the mean update; None adds the mean itself.
    """

    encryption = "none"
    readable = True

    def __init__(
        self,
        max_norm_ratio: float | None = None,
        max_update_norm: float | None = None,
        optimizer: ServerOptimizer | None = None,
    ) -> None:
        self._max_norm_ratio, self._max_update_norm = max_norm_ratio, max_update_norm
        self.optimizer = optimizer
        self.change: dict[str, Tensor] | None = None

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.optimizer is None else _prefixed(_MOMENTS, self.optimizer.state_dict())

    def load_state_dict(self, state: Weights) -> None:
        if self.optimizer is not None:
            self.optimizer.load_state_dict(_without(_MOMENTS, state))

    def refusal(self, fl_ctx: FLContext) -> str | None:
        return None

    def misfit(self, weights: Weights, spec: Spec) -> str | None:
        return spec_difference(spec, tensor_spec(weights))

    def payload(self, weights: Weights, spec: Spec) -> Shareable:
        return with_tensors(DataKind.WEIGHTS, weights)

    def begin(self, weights: Weights, spec: Spec, sites: Iterable[str]) -> RoundAverage:
        return PlainRound(weights, spec, self._limit(weights), sites, self.optimizer)

    def _limit(self, weights: Weights) -> float | None:
        return norm_limit(weights, self._max_norm_ratio, self._max_update_norm)


class CodedRound(PlainRound):
    """One round of updates in fewer bits, see :class:`RoundAverage`.

    Args:
        weights, spec, max_norm, sites: as in :class:`PlainRound`.
        owner: gets the change that the round ends with, and what rounding keeps back of it.
    """

    def __init__(
        self, weights: Weights, spec: Spec, max_norm: float | None, sites: Iterable[str], owner: CodedAveraging
    ) -> None:
        super().__init__(weights, spec, max_norm, sites, owner.optimizer)
        self._owner = owner
        self._form = tensor_spec(encode(weights, owner.bits))

    def take(self, site: str, update: Weights, count: object) -> str | None:
        difference = spec_difference(self._form, tensor_spec(update))
        if difference:
            return f"its tensors do not fit the global weights: {difference}"
        return super().take(site, decode(update, self._weights, self._owner.bits), count)

    def norm(self, update: Weights) -> float | None:
        return l2_norm(decode(update, self._weights, self._owner.bits))

    def weights(self) -> dict[str, Tensor]:
        """The old ones and the *decoded* change: the bits that a site comes to which gets the change alone."""
        change = self._exact_change()
        exact = {name: _of_type(change[name], weight) for name, weight in self._weights.items()}
        feedback = ErrorFeedback(self._owner.bits, self._owner.residual)
        self._owner.change, self._owner.residual = feedback.encode(exact), feedback.residual
        return apply_update(self._weights, decode(self._owner.change, self._weights, self._owner.bits))


class CodedAveraging(PlainAveraging):
    """Weights that the server reads, and whose changes travel in fewer bits both ways, see :class:`Averaging`.

    Args:
        bits: 16, 8 or 4, see :mod:`flare_app.compression`.
        max_norm_ratio, max_update_norm, optimizer: see :class:`PlainAveraging`; norms are of updates as decoded.
    """

    def __init__(
        self,
        bits: int,
        max_norm_ratio: float | None = None,
        max_update_norm: float | None = None,
        optimizer: ServerOptimizer | None = None,
    ) -> None:
        super().__init__(max_norm_ratio, max_update_norm, optimizer)
        self.bits = bits
        self.residual: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Tensor]:
        return {**super().state_dict(), **_prefixed(_RESIDUAL, self.residual)}

    def load_state_dict(self, state: Weights) -> None:
        super().load_state_dict(state)
        self.residual = _without(_RESIDUAL, state)

    def begin(self, weights: Weights, spec: Spec, sites: Iterable[str]) -> RoundAverage:
        return CodedRound(weights, spec, self._limit(weights), sites, self)


def averaging_for(
    encryption: str,
    max_norm_ratio: float | None = None,
    max_update_norm: float | None = None,
    weight_bits: int = 32,
    server_optimizer: Mapping[str, Any] | None = None,
) -> Averaging:
    """The way to average that a job asks for; see :class:`flare_app.controller.FCLController` for the arguments.

    Raises:
        ValueError: when there is none.
    """
    from flare_app.encryption.average import EncryptedAveraging

    if encryption not in ENCRYPTIONS:
        raise ValueError(f"encryption must be one of {', '.join(ENCRYPTIONS)}, got {encryption!r}")
    if weight_bits not in WEIGHT_BITS:
        raise ValueError(f"weight_bits must be one of {', '.join(map(str, WEIGHT_BITS))}, got {weight_bits!r}")
    optimizer = None if server_optimizer is None else ServerOptimizer(server_optimizer)
    if encryption == "he":
        if weight_bits != 32:
            raise ValueError(
                f"encrypted weights cannot travel in {weight_bits} bits: the server adds ciphertexts of values, and "
                "codes have another scale at each site. Set weight_bits to 32, or encryption to 'none'"
            )
        if optimizer is not None:
            raise ValueError(
                "a server that cannot read the updates can only average them: leave server_optimizer out, or set "
                "encryption to 'none'"
            )
        return EncryptedAveraging()
    if weight_bits != 32:
        return CodedAveraging(weight_bits, max_norm_ratio, max_update_norm, optimizer)
    return PlainAveraging(max_norm_ratio, max_update_norm, optimizer)


def _of_type(mean: Tensor, weight: Tensor) -> Tensor:
    return (mean if weight.is_floating_point() else mean.round()).to(weight.dtype)


def _prefixed(prefix: str, tensors: Weights) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _without(prefix: str, tensors: Weights) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
