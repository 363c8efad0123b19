"""A federation's rounds and sites for whoever waits for them: the latest of its log as words and as a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from flare_app.meter import Look
from flare_app.records import read_rounds, site_states

_VALIDATED = {"partition_knn": "partition kNN", "mean_dice": "validation Dice"}
_STYLES = {
    "answered": "green",
    "late": "yellow",
    "rejected": "red",
    "absent": "dim",
    "excluded": "magenta",
    "resting": "dim",
}
_PACE = 5  # rounds, the last ones, that the time left is judged by


def look_at_rounds(log: Path, total: int | None) -> Look:
    """How many of ``total`` rounds the log says are done, the latest values, and each site's part in the last round."""
    return look_at_lines(read_rounds(log) if log.exists() else [], total)


def look_at_lines(lines: Sequence[Mapping[str, Any]], total: int | None) -> Look:
    """:func:`look_at_rounds` for those who have read the log."""
    trained = [line for line in lines if line["metrics"]]
    shown = [f"loss {line['metrics']['loss']:.3f}" for line in lines if "loss" in line["metrics"]][-1:]
    latest = {name: value for line in lines for name, value in line["validation"].items()}
    shown += [f"{words} {latest[name]:.3f}" for name, words in _VALIDATED.items() if name in latest]
    done = len(trained)
    if not trained:
        return Look(done, ", ".join(shown))
    states = site_states(trained[-1])
    asked = {site: state for site, state in states.items() if state != "resting"}
    missing = [f"{site} {state}" for site, state in sorted(asked.items()) if state != "answered"]
    if missing:
        shown.append(f"{len(asked) - len(missing)}/{len(asked)} sites ({', '.join(missing)})")
    pace = statistics.fmean(line["seconds"] for line in trained[-_PACE:])
    left_s = None if total is None else pace * max(0, total - done)
    return Look(done, ", ".join(shown), left_s, sites_table(trained[-1], states, lines))


def sites_table(line: Mapping[str, Any], states: Mapping[str, str], lines: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each site: its part in the round of ``line``, and its latest validation in ``lines``."""
    latest: dict[str, dict[str, float]] = {}
    for earlier in lines:
        for site, entry in earlier["sites"].items():
            latest.setdefault(site, {}).update(entry["validation"])
    validated = [name for name in _VALIDATED if any(name in found for found in latest.values())]
    head = ["site", f"round {line['round'] + 1}", "slices", "seconds", "MiB in", "MiB out", "loss"]
    table = Table(*head, *(_VALIDATED[name] for name in validated), box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in table.columns[2:]:
        column.justify = "right"
    for site, state in sorted(states.items(), key=lambda item: (len(item[0]), item[0])):
        entry = line["sites"].get(site)
        cells = _cells(entry) if entry is not None and state == "answered" else [""] * 5
        scores = [_number(latest.get(site, {}).get(name), 3) for name in validated]
        table.add_row(Text(site), Text(state, style=_STYLES[state]), *cells, *scores)
    return table


def _cells(entry: Mapping[str, Any]) -> list[str]:
    received, sent = (
        sum(entry[f"bytes_{what}_{way}"] for what in ("weights", "features")) / 2**20 for way in ("down", "up")
    )
    loss = _number(entry["metrics"].get("loss"), 3)
    return [str(entry["count"]), _number(entry["seconds"] or None, 1), _number(received, 2), _number(sent, 2), loss]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
