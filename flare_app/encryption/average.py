"""The server's side: weighted averages of ciphertexts, which it adds and scales without being able to read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from nvflare.apis.dxo import DataKind
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from torch import Tensor

from flare_app.aggregation import count_problem
from flare_app.encryption.context import EncryptionError, is_fresh, read_vectors, server_context, to_bytes
from flare_app.protocol import with_tensors

if TYPE_CHECKING:
    import tenseal


class EncryptedAverage:
    """One round on ciphertexts (Cheon et al. 2017, CKKS), see :class:`flare_app.averaging.RoundAverage`.

    Sites weigh their updates by their counts before they encrypt; the server adds them up and multiplies once, by one
    over the sum of the counts. Adding ciphertexts is exact, so that the order of arrival does not matter.

    Args:
        context: the server's.
        weights: ciphertexts of the global weights that the round begins with.
        spec: of the weights inside.
        sites: all sites that may answer.
    """

    def __init__(
        self, context: tenseal.Context, weights: Mapping[str, Tensor], spec: Mapping[str, str], sites: Iterable[str]
    ) -> None:
        self._context, self._weights, self._spec = context, weights, spec
        self._pending = set(sites)
        self._sum: dict[str, tenseal.CKKSVector] = {}
        self.count = 0

    def take(self, site: str, update: Mapping[str, Tensor], count: object) -> str | None:
        if site not in self._pending:
            raise KeyError(f"site {site!r} is not expected or has answered before")
        problem = count_problem(count)
        if problem:
            return problem
        try:
            vectors = read_vectors(self._context, update, self._spec)
        except EncryptionError as error:
            return f"its tensors do not fit the global weights: {error}"
        used = sorted(name for name, vector in vectors.items() if not is_fresh(vector))
        if used:
            return f"its ciphertexts were computed with, or have another scale: {', '.join(used[:3])}"
        self._pending.remove(site)
        self.count += int(count)  # type: ignore[call-overload]
        for name, vector in vectors.items():
            self._sum[name] = self._sum[name].add_(vector) if name in self._sum else vector
        return None

    def norm(self, update: Mapping[str, Tensor]) -> float | None:
        return None

    def weights(self) -> dict[str, Tensor]:
        if self.count == 0:
            raise ValueError("no update was added: there is nothing to average")
        self._pending = set()
        before = read_vectors(self._context, self._weights, self._spec)
        return {name: to_bytes(vector.mul(1.0 / self.count).add_(before[name])) for name, vector in self._sum.items()}


class EncryptedAveraging:
    """Weights that only sites can read, see :class:`flare_app.averaging.Averaging`."""

    encryption = "he"
    readable = False

    def __init__(self) -> None:
        self._context: tenseal.Context | None = None
        self.change: dict[str, Tensor] | None = None

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        return None

    def refusal(self, fl_ctx: FLContext) -> str | None:
        try:
            self._context = server_context(fl_ctx)
        except EncryptionError as error:
            return f"the server cannot average encrypted weights: {error}"
        return None

    def misfit(self, weights: Mapping[str, Tensor], spec: Mapping[str, str]) -> str | None:
        try:
            read_vectors(self._opened, weights, spec)
        except EncryptionError as error:
            return str(error)
        return None

    def payload(self, weights: Mapping[str, Tensor], spec: Mapping[str, str]) -> Shareable:
        """Shapes and dtypes go along: a ciphertext has none."""
        return with_tensors(DataKind.WEIGHTS, weights, {"spec": dict(spec)})

    def begin(self, weights: Mapping[str, Tensor], spec: Mapping[str, str], sites: Iterable[str]) -> EncryptedAverage:
        return EncryptedAverage(self._opened, weights, spec, sites)

    @property
    def _opened(self) -> tenseal.Context:
        if self._context is None:
            raise RuntimeError("the server's context was not loaded: ask refusal() first")
        return self._context
