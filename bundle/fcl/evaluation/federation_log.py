"""What a report shows of a federation's ``rounds.jsonl``: curves over rounds, and bytes."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fcl.evaluation.drawing import Series
from fcl.evaluation.page import show_mib

TRAFFIC = ("weights_down", "weights_up", "features_down", "features_up")


def read_rounds(file: Path, problems: list[str]) -> list[dict[str, Any]]:
    """Lines of a log of rounds; what is wrong with it is added to ``problems``."""
    if not file.is_file():
        problems.append(f"{file}: missing")
        return []
    text = file.read_text(encoding="utf-8")
    # A crash can cut the last line short; the rounds before it stand.
    whole = [line for line in text.split("\n")[:-1] if line.strip()]
    if not whole:
        problems.append(f"{file}: {'holds no whole line' if text.strip() else 'empty'}")
    lines = []
    for line in whole:
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            problems.append(f"{file}: not JSON ({error})")
    return lines


def trained_rounds(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Without the line of the final validation."""
    return [line for line in lines if line["count"]]


def trained(lines: Sequence[Mapping[str, Any]], key: str, label: str) -> Series:
    """A metric of training, by number of rounds done."""
    return Series(label, [(line["round"] + 1, line["metrics"][key]) for line in lines if key in line["metrics"]])


def validated(lines: Sequence[Mapping[str, Any]], key: str, label: str) -> Series:
    """A metric of validation: of the weights that a round began with, so that x is the number of rounds behind them."""
    return Series(label, [(line["round"], line["validation"][key]) for line in lines if key in line["validation"]])


def pretraining_curves(lines: Sequence[Mapping[str, Any]], loss: str = "loss") -> list[tuple[str, str, list[Series]]]:
    """Title, unit of y, and series of each figure for which there is something to draw.

    Args:
        lines: of the log of rounds.
        loss: what the loss is called on its axis.
    """
    similarities = [
        trained(lines, "positive_similarity", "positive pairs"),
        trained(lines, "negative_similarity", "negatives"),
        trained(lines, "similarity_gap", "gap"),
    ]
    health = [
        trained(lines, "spread", "spread"),
        trained(lines, "alignment", "alignment"),
        validated(lines, "uniformity", "uniformity"),
    ]
    knn = [validated(lines, "partition_knn", "validation patients")]
    figures = [
        ("Loss", loss, [trained(lines, "loss", "mean over sites")]),
        ("Partition kNN", "accuracy (share of slices)", knn),
        ("Similarity", "cosine", similarities),
        ("Collapse monitors", "value", health),
    ]
    drawn = [(title, unit, [s for s in series if s.points]) for title, unit, series in figures]
    return [figure for figure in drawn if figure[2]]


def traffic_by_site(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, list[str]]]:
    """Site, rounds it took part in (resting, it may validate), and mean MiB of those in the order of ``TRAFFIC``; last
    the sum of all."""
    entries: dict[str, list[Mapping[str, Any]]] = {}
    for line in trained_rounds(lines):
        for site, entry in line["sites"].items():
            entries.setdefault(site, []).append(entry)
    if not entries:
        return []
    rows = [
        (site, len(own), [show_mib(statistics.fmean(entry[f"bytes_{kind}"] for entry in own)) for kind in TRAFFIC])
        for site, own in sorted(entries.items(), key=lambda item: (len(item[0]), item[0]))
    ]
    every = [entry for own in entries.values() for entry in own]
    total = [show_mib(sum(entry[f"bytes_{kind}"] for entry in every)) for kind in TRAFFIC]
    return [*rows, ("all sites, all rounds", sum(row[1] for row in rows), total)]


def bytes_per_site(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Bytes of all rounds together, mean over sites, by the names in ``TRAFFIC``."""
    rounds = trained_rounds(lines)
    sites = {site for line in rounds for site in line["sites"]}
    return {
        kind: sum(entry[f"bytes_{kind}"] for line in rounds for entry in line["sites"].values()) / max(1, len(sites))
        for kind in TRAFFIC
    }
