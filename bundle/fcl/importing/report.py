"""What an import tells afterwards."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from fcl.data.problems import Problem


@dataclass
class ImportReport:
    """Counts of what was written; holds no name."""

    out: str
    cases: int = 0
    volumes: Counter[str] = field(default_factory=Counter)
    left_out: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
