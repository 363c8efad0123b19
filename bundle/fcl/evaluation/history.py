"""The validations of a training, one after the other: whether it had converged when it ended."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

HISTORY_FILE = "validation.csv"


def read_history(file: Path) -> list[tuple[int, dict[str, float]]]:
    """Steps behind each validation, and its metrics; one that was undefined is left out."""
    validations = []
    for row in _rows(file):
        steps = int(row.pop("steps"))
        row.pop("epoch")
        validations.append((steps, {name: float(value) for name, value in row.items() if value}))
    return validations


class ValidationHistory:
    """Keeps a row for each validation in ``validation.csv``; a handler for a MONAI trainer.

    Its columns are ``epoch``, ``steps`` (of the optimizer so far) and each metric of the evaluator that is one number,
    blank where it is undefined. A run that is continued from a checkpoint replaces the rows of the epochs that it does
    again. Attach after the ``ValidationHandler``, and before what writes checkpoints: whatever is cut short, no epoch
    that a checkpoint holds lacks its row.

    Args:
        folder: of the file; made when missing.
        evaluator: the validating engine.
    """

    def __init__(self, folder: str | Path, evaluator: Engine) -> None:
        self.file = Path(folder, HISTORY_FILE)
        self.evaluator = evaluator

    def attach(self, engine: Engine) -> None:
        """Register on the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _write(self, engine: Engine) -> None:
        state = engine.state
        if self.evaluator.state.epoch != state.epoch:  # the last validation was another epoch's
            return
        metrics = {name: value for name, value in self.evaluator.state.metrics.items() if isinstance(value, float)}
        row: dict[str, Any] = {"epoch": state.epoch, "steps": state.iteration}
        row |= {name: f"{value:.6f}" if math.isfinite(value) else "" for name, value in metrics.items()}
        earlier = _rows(self.file) if self.file.exists() else []
        rows = [*(old for old in earlier if int(old["epoch"]) < state.epoch), row]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.file.with_name(f".{self.file.name}.{os.getpid()}.part")
        with unfinished.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(dict.fromkeys(name for each in rows for name in each)))
            writer.writeheader()
            writer.writerows(rows)
        os.replace(unfinished, self.file)


def _rows(file: Path) -> list[dict[str, Any]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
