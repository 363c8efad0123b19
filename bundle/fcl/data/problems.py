"""What is wrong with a dataset, all of it at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One finding: the file, what is wrong with it (with the value found) and the way out.

    ``kind`` is one word for counting, e.g. ``"spacing"``: all that may be told of a finding outside the site.
    """

    file: str
    what: str
    fix: str
    kind: str = "files"

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

    @property
    def counts(self) -> dict[str, int]:
        """Findings of each kind, most first; names no file, path or patient."""
        return dict(Counter(sorted(problem.kind for problem in self.problems)).most_common())

    def __str__(self) -> str:
        count = len(self.problems)
        headline = f"{count} problem{'s' if count != 1 else ''} in the data:"
        return "\n".join([headline, *(f"  {i}. {problem}" for i, problem in enumerate(self.problems, 1))])
