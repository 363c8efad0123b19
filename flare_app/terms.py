"""What the server and a site agree on when a job begins there."""

from __future__ import annotations

from dataclasses import dataclass

from nvflare.apis.shareable import Shareable

from flare_app.exchange import Exchange
from flare_app.protocol import Header


@dataclass(frozen=True)
class Terms:
    """They hold for the whole job: a site that was opened for a job without features has not set up the privacy that it
    wants for them.

    Args:
        exchange: what sites show each other.
        weight_bits: of each weight on its way.
        encryption: of the weights.
    """

    exchange: Exchange
    weight_bits: int
    encryption: str

    @classmethod
    def of(cls, task: Shareable) -> Terms:
        """Those that the server names in a task.

        Raises:
            ValueError: for an exchange that there is not.
        """
        exchange = Exchange(
            task.get_header(Header.EXCHANGE),
            task.get_header(Header.ROUTE),
            bits=task.get_header(Header.FEATURE_BITS, 16),
            pull_rows=task.get_header(Header.PULL_ROWS),
            overlap=bool(task.get_header(Header.OVERLAP, False)),
        )
        return cls(exchange, task.get_header(Header.WEIGHT_BITS, 32), task.get_header(Header.ENCRYPTION, "none"))
