"""TensorBoard at the server, written from the reports that it accepted: sites send no stream of events of their own."""

from __future__ import annotations

import logging
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from flare_app.records import RoundRecord

FOLDER = "tb_events"

logger = logging.getLogger(__name__)


class SiteBoards:
    """A folder of curves for each site: its training metrics, and ``validation/<metric>``, over the rounds.

    Args:
        folder: holds the folders of the sites.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writers: dict[str, SummaryWriter] = {}

    def write(self, record: RoundRecord) -> None:
        """Add what the sites reported in a round and the server accepted."""
        try:
            for site in record.accepted:
                entry = record.sites[site]
                # "count" weighs a site in the mean: no measurement.
                validation = {f"validation/{name}": v for name, v in entry.validation.items() if name != "count"}
                for name, value in {**entry.metrics, **validation}.items():
                    self._writer(site).add_scalar(name, value, record.round)
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

    def _writer(self, site: str) -> SummaryWriter:
        if site not in self._writers:
            self._writers[site] = SummaryWriter(str(self.folder / site))
        return self._writers[site]
