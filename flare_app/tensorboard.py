"""TensorBoard at the server, written from the reports that it accepted: sites send no stream of events of their own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

from flare_app.records import RoundRecord, SiteRecord

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tb_events"
# The folder of the means, and of what the server measures; with a blank, as no site's name has one.
MEANS = "all sites"
_MIB = 2**20

logger = logging.getLogger(__name__)


class SiteBoards:
    """Curves over the rounds, in a folder for each site and one for all together.

    Of a site: its training metrics, ``validation/<metric>``, and under ``round/`` its seconds, MiB in and out, and most
    memory. Of all: their means as the log of rounds has them, ``round/seconds`` and how many ``round/sites`` counted.

    Args:
        folder: holds the folders of the sites.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writers: dict[str, SummaryWriter] = {}

    def write(self, record: RoundRecord) -> None:
        """Add what the sites reported in a round and the server accepted.

        Raises:
            TypeError: on anything but a number: no picture, text or histogram of a site is written here.
        """
        trained = {"seconds": record.seconds, "sites": len(record.accepted)} if record.count else {}
        boards = {MEANS: _curves(record.metrics, record.validation, trained)}
        for site in sorted({*record.accepted, *record.resting}.intersection(record.sites)):
            entry = record.sites[site]
            boards[site] = _curves(entry.metrics, entry.validation, _costs(entry) if record.count else {})
        for name, curves in boards.items():
            for tag, value in curves.items():
                if not isinstance(value, Real):
                    raise TypeError(f"{tag} of {name} is a {type(value).__name__}: curves are of numbers alone")
        try:
            for name, curves in boards.items():
                for tag, value in curves.items():
                    self._writer(name).add_scalar(tag, value, record.round)
            for writer in self._writers.values():
                writer.flush()
        except OSError as error:
            # Curves are a convenience; rounds.jsonl holds the same numbers.
            logger.warning("round %d is missing in TensorBoard: %s", record.round, error)

    def close(self) -> None:
        """End the files and the threads that write them."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _writer(self, name: str) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter  # a job that fails at its start need not wait for it

        if name not in self._writers:
            self._writers[name] = SummaryWriter(str(self.folder / name))
        return self._writers[name]


def _curves(
    metrics: Mapping[str, float], validation: Mapping[str, float], costs: Mapping[str, float]
) -> dict[str, float]:
    # "count" weighs a site in the mean: no measurement.
    validated = {f"validation/{name}": value for name, value in validation.items() if name != "count"}
    return {**metrics, **validated, **{f"round/{name}": value for name, value in costs.items()}}


def _costs(entry: SiteRecord) -> dict[str, float]:
    told = {"seconds": entry.seconds, "peak MiB": entry.peak_mib}
    return {
        **{name: value for name, value in told.items() if value},  # not where training is private
        "MiB in": (entry.bytes_weights_down + entry.bytes_features_down) / _MIB,
        "MiB out": (entry.bytes_weights_up + entry.bytes_features_up) / _MIB,
    }
