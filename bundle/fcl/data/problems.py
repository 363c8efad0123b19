"""What is wrong with a dataset, all of it at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One finding: the file, what is wrong with it (with the value found) and the way out."""

    file: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}. Way out: {self.fix}."


class DataProblems(ValueError):
    """Raised with every problem found, so that a folder is repaired in one go.

    Args:
        problems: at least one finding, in the order in which they are shown.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        count = len(self.problems)
        headline = f"{count} problem{'s' if count != 1 else ''} in the data:"
        return "\n".join([headline, *(f"  {i}. {problem}" for i, problem in enumerate(self.problems, 1))])
