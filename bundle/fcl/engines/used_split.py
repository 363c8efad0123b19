"""Keeps which patients a training held out, so that an evaluation holds out no others."""

from __future__ import annotations

import logging
from pathlib import Path

from ignite.engine import Engine, Events

from fcl.data import SiteSplit, write_split
from fcl.data.splits import USED_SPLIT

logger = logging.getLogger(__name__)


class UsedSplit:
    """Writes the division of patients that a training uses beside its model; a handler for a trainer.

    Folds that no file says are drawn from the patients at hand: with one patient more they are others. The file is in a
    split file's form. It names patients and stays at the site.

    Attach after :class:`~fcl.engines.Checkpoints`: a resumption that it refuses must leave the earlier file as it is.

    Args:
        folder: of the model; made when missing.
        split: what the training uses.
    """

    def __init__(self, folder: str | Path, split: SiteSplit) -> None:
        self.file = Path(folder) / USED_SPLIT
        self.split = split

    def attach(self, engine: Engine) -> None:
        """Register on the trainer."""
        engine.add_event_handler(Events.STARTED, self._write)

    def _write(self, engine: Engine) -> None:
        write_split(self.split.division, self.file)
        held_out = self.split.division["held_out"]
        again = f"--split_file {self.file} --fold {'none' if held_out is None else held_out}"
        logger.info("which patients are trained on and held out, also when others join the folder: %s", again)
