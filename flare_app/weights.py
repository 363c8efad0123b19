"""Global weights on their way: in full, or as their change since the round before to sites that hold those of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from nvflare.apis.dxo import DataKind, from_shareable
from nvflare.apis.shareable import Shareable
from torch import Tensor

from flare_app.aggregation import apply_update
from flare_app.asking import Payloads
from flare_app.compression import ErrorFeedback, decode, misfit
from flare_app.protocol import Header, SiteError, tensors_of, with_tensors


class Holders:
    """Which site holds the weights of which round, as the server knows from the replies that it could use."""

    def __init__(self) -> None:
        self._round: dict[str, int] = {}

    def answered(self, round_number: int, taken: Iterable[str], refused: Iterable[str]) -> None:
        """Sites that were sent the weights of a round, and gave a usable reply or none."""
        self._round.update(dict.fromkeys(taken, round_number))
        self.forget(refused)

    def forget(self, sites: Iterable[str]) -> None:
        for site in sites:
            self._round.pop(site, None)

    def payloads(
        self,
        round_number: int,
        sites: Iterable[str],
        change: Mapping[str, Tensor] | None,
        full: Callable[[], Shareable],
    ) -> Payloads:
        """The weights of a round for ``sites``.

        Args:
            round_number: of the round that begins.
            sites: that take part.
            change: what turns the weights of the round before into these; None where none was made.
            full: makes a payload of all weights, for those that do not hold the earlier ones.
        """
        holding = [site for site in sites if change is not None and self._round.get(site) == round_number - 1]
        others = [site for site in sites if site not in holding]
        payloads: Payloads = [(full(), others)] if others else []
        if holding and change is not None:
            payloads.append((with_tensors(DataKind.WEIGHT_DIFF, change), holding))
        return payloads


class SiteWeights:
    """The global weights as a site holds them, and the form in which its own travel.

    Args:
        bits: of the values that travel, see :mod:`flare_app.compression`.

    Attributes:
        current: the global weights of the round that began last.
        feedback: what rounding has kept back of this site's updates.
    """

    def __init__(self, bits: int = 32) -> None:
        self.current: dict[str, Tensor] = {}
        self.feedback = ErrorFeedback(bits)
        self._round: int | None = None

    def take(self, task: Shareable) -> dict[str, Tensor]:
        """The global weights that ``task`` brings in full, or as their change since the round before.

        Raises:
            SiteError: when it is a change to weights that this site does not hold.
        """
        number = int(task.get_header(Header.ROUND))
        if from_shareable(task).data_kind == DataKind.WEIGHT_DIFF:
            self.current = self._changed(tensors_of(task, DataKind.WEIGHT_DIFF), number)
        else:
            self.current = tensors_of(task, DataKind.WEIGHTS)
        self._round = number
        return self.current

    def update(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The difference of ``trained`` to the global weights, as it travels.

        Raises:
            SiteError: when the tensors are others.
        """
        if trained.keys() != self.current.keys():
            raise SiteError("the tensors after training are not those that the round began with")
        difference = {name: (weight - self.current[name]).contiguous() for name, weight in trained.items()}
        return self.feedback.encode(difference)

    def _changed(self, change: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        if self._round != number - 1:
            held = "none" if self._round is None else f"those of round {self._round}"
            raise SiteError(
                f"it was sent the change from the global weights of round {number - 1} to those of round {number}, "
                f"and holds {held}: it needs them in full"
            )
        problem = misfit(change, self.current, self.feedback.bits)
        if problem:
            raise SiteError(f"the change of the global weights does not fit those that it holds: {problem}")
        return apply_update(self.current, decode(change, self.current, self.feedback.bits))
