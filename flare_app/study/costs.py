"""What the finished cells of a study took: minutes, and the bytes between sites."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from flare_app.records import read_rounds
from flare_app.study.cells import Cells
from flare_app.study.plan import Cell
from flare_app.study.settings import Study

_SENT = ("weights", "features")


def cost_table(
    study: Study, known: Sequence[Cell], seconds: Callable[[Cell], float | None], cells: Cells
) -> tuple[list[str], list[list[str]]]:
    """Minutes, and MiB that a site receives and sends, by arm: headings and rows; columns without a value are left out.

    Pre-training is that of all stages that the arm's encoder went through, also where other arms share them.

    Args:
        study, known, seconds, cells: as of :class:`flare_app.study.outcome.Outcome`.
    """
    trainings = [("pretrain", ""), *(("finetune", mode) for mode in study.modes)]
    timed = [*trainings, *(("evaluate", mode) for mode in study.modes)]
    head = ["arm", *(f"{_in_words(*what)}, minutes" for what in timed)]
    head += [f"{_in_words(*what)}, {kind} in / out, MiB" for what in trainings for kind in _SENT]
    rows = []
    for arm in study["arms"]:
        own = [cell for cell in known if cell.arm == arm and seconds(cell) is not None]
        works = {what: [[cell] for cell in own if (cell.stage, cell.mode) == what] for what in timed}
        works["pretrain", ""] = _pretrainings(own)
        row = [_minutes([[seconds(cell) or 0.0 for cell in work] for work in works[what]]) for what in timed]
        for what in trainings:
            sent = [counts for work in works[what] if (counts := _sent(work, cells))]
            row += [_traffic(sent, kind) for kind in _SENT]
        rows += [[study.label(arm), *row]] if own else []
    kept = [n for n in range(len(head)) if n == 0 or any(row[n] != "–" for row in rows)]
    return [head[n] for n in kept], [[row[n] for n in kept] for row in rows]


def _minutes(seconds: Sequence[Sequence[float]]) -> str:
    return f"{statistics.fmean(map(sum, seconds)) / 60:.1f}" if seconds else "–"


def _sent(work: Sequence[Cell], cells: Cells) -> dict[str, float]:
    """Bytes between a site and the server in all of ``work``, by what and which way; empty where no federation ran."""
    from fcl.evaluation.federation_log import bytes_per_site

    counts = [bytes_per_site(read_rounds(log)) for cell in work if (log := cells.rounds(cell)).is_file()]
    return {kind: sum(count[kind] for count in counts) for kind in counts[0]} if counts else {}


def _traffic(sent: Sequence[Mapping[str, float]], kind: str) -> str:
    from fcl.evaluation.page import show_mib

    both = [statistics.fmean(counts[f"{kind}_{way}"] for counts in sent) for way in ("down", "up")] if sent else []
    return " / ".join(show_mib(count) for count in both) if any(both) else "–"


def _pretrainings(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The stages of each pre-training that ``cells`` build on, each pre-training once."""
    chains = [[part for part in cell.chain() if part.stage == "pretrain"] for cell in cells]
    return list({chain[-1].name: chain for chain in chains if chain}.values())


def _in_words(stage: str, mode: str) -> str:
    words = {"pretrain": "pre-training", "finetune": "fine-tuning", "evaluate": "evaluation"}
    return " ".join(part for part in (mode, words[stage]) if part)
