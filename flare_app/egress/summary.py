"""A manifest in a few rows: who got what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

GROUPS = {"peer": "to", "round": "round", "name": "name"}


@dataclass
class Total:
    """What left under one heading.

    Args:
        tensors: lines of tensors that left.
        rows: feature rows among them.
        bytes: of all of them.
        reports: reports and reasons of failures.
        epsilon: largest told, of features alone; None without noise.
        withheld: payloads whose features were taken out.
        refused: payloads that did not leave.
    """

    tensors: int = 0
    rows: int = 0
    bytes: int = 0
    reports: int = 0
    epsilon: float | None = None
    withheld: int = 0
    refused: int = 0


def summarise(lines: Iterable[Mapping[str, Any]], by: str = "peer") -> dict[str, Total]:
    """Totals by ``"peer"`` (who got it), ``"round"`` (of each job) or ``"name"`` (of the tensor)."""
    lines = list(lines)
    undone = _undone(lines)
    totals: dict[str, Total] = {}
    for line in lines:
        event = line["event"]
        if event == "sent" and (line.get("id"), line.get("by")) in undone:
            continue
        total = totals.setdefault(_heading(line, by), Total())
        if event == "refused":
            total.refused += 1
        elif event == "withheld":
            total.withheld += 1
        elif "bytes" in line:
            total.tensors += 1
            total.bytes += line["bytes"]
            total.rows += line["count"] if line["name"] == "features" else 0
            if line.get("epsilon") is not None:
                total.epsilon = max(total.epsilon or 0.0, line["epsilon"])
        else:
            total.reports += 1
    return totals


def _undone(lines: list[Mapping[str, Any]]) -> set[tuple[Any, Any]]:
    """What a site's filter let out and the job's, which runs after it, took back."""
    return {(line.get("id"), "site") for line in lines if line["event"] != "sent" and line.get("by") == "job"}


def _heading(line: Mapping[str, Any], by: str) -> str:
    value = line.get(GROUPS[by])
    if by != "round":
        return str(value or "-")
    return f"{str(line.get('job'))[:8]} {'start' if value is None else value}"
