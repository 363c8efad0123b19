"""What the finished cells of a study took: minutes, and the bytes between sites."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flare_app.records import read_rounds
from flare_app.study.cells import Cells
from flare_app.study.plan import Cell
from flare_app.study.settings import Study

_SENT = ("weights", "features")


@dataclass(frozen=True)
class Costs:
    """Sums what cells took, by arm.

    Args:
        study: settings.
        known: cells that may have been done.
        seconds: that a finished cell took; None for one that is to be done.
        cells: knows where things lie.
    """

    study: Study
    known: Sequence[Cell]
    seconds: Callable[[Cell], float | None]
    cells: Cells

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Minutes, and MiB that a site receives and sends, by arm; columns without a value are left out.

        Pre-training is that of all stages that the arm's encoder went through, also where other arms share them.
        """
        trainings = [("pretrain", ""), *(("finetune", mode) for mode in self.study.modes)]
        timed = [*trainings, *(("evaluate", mode) for mode in self.study.modes)]
        head = ["arm", *(f"{_in_words(*what)}, minutes" for what in timed)]
        head += [f"{_in_words(*what)}, {kind} in / out, MiB" for what in trainings for kind in _SENT]
        rows = []
        for arm in self.study["arms"]:
            own = [cell for cell in self.known if cell.arm == arm and self.seconds(cell) is not None]
            works = {what: [[cell] for cell in own if (cell.stage, cell.mode) == what] for what in timed}
            works["pretrain", ""] = _pretrainings(own)
            row = [self._minutes(works[what]) for what in timed]
            row += [self._traffic(works[what], kind) for what in trainings for kind in _SENT]
            rows += [[self.study.label(arm), *row]] if own else []
        kept = [n for n in range(len(head)) if n == 0 or any(row[n] != "–" for row in rows)]
        return [head[n] for n in kept], [[row[n] for n in kept] for row in rows]

    def _minutes(self, works: Sequence[Sequence[Cell]]) -> str:
        sums = [sum(self.seconds(cell) or 0.0 for cell in cells) / 60 for cells in works]
        return f"{statistics.fmean(sums):.1f}" if sums else "–"

    def _traffic(self, works: Sequence[Sequence[Cell]], kind: str) -> str:
        from fcl.evaluation.page import show_mib

        sent = [both for cells in works if (both := self._sent(cells, kind))]
        means = [statistics.fmean(way) for way in zip(*sent, strict=True)]
        return " / ".join(show_mib(count) for count in means) if any(means) else "–"

    def _sent(self, cells: Sequence[Cell], kind: str) -> tuple[float, float] | None:
        """Bytes that a site receives and sends in all of ``cells``; None where none of them is a federation."""
        from fcl.evaluation.federation_log import bytes_per_site

        logs = [log for cell in cells if (log := self.cells.rounds(cell)).is_file()]
        counts = [bytes_per_site(read_rounds(log)) for log in logs]
        down, up = (sum(count[f"{kind}_{way}"] for count in counts) for way in ("down", "up"))
        return (down, up) if logs else None


def _pretrainings(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The stages of each pre-training that ``cells`` build on, each pre-training once."""
    chains = [[part for part in cell.chain() if part.stage == "pretrain"] for cell in cells]
    return list({chain[-1].name: chain for chain in chains if chain}.values())


def _in_words(stage: str, mode: str) -> str:
    words = {"pretrain": "pre-training", "finetune": "fine-tuning", "evaluate": "evaluation"}
    return " ".join(part for part in (mode, words[stage]) if part)
