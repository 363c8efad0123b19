"""Which series of a folder are imported."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from fcl.data.problems import DataProblems, Problem

from .instances import Instance, Scan
from .stacks import Stack, arrange, by_position, orientations
from .wording import OF_THE_IMPORT, Wording


@dataclass(frozen=True)
class Choice:
    """What to take.

    Args:
        min_slices: parallel slices that make a stack; long-axis series have one to three.
        description: regular expression searched in SeriesDescription; takes static series as well.
        static: take series with one phase too.
        join_series: some scanners write each slice of a cine stack as a series of its own; join those of one study with
            the same description, orientation, size and spacing.
        tolerance_mm: see :func:`fcl.importing.stacks.arrange`.
        wording: how messages name these settings.
    """

    min_slices: int = 4
    description: str | None = None
    static: bool = False
    join_series: bool = False
    tolerance_mm: float = 0.1
    wording: Wording = OF_THE_IMPORT

    def __post_init__(self) -> None:
        if self.min_slices < 1:
            raise ValueError(f"{self.wording.min_slices} must be at least 1, got {self.min_slices}")
        if not self.tolerance_mm > 0:
            raise ValueError(f"{self.wording.tolerance} must be above 0 mm, got {self.tolerance_mm}")
        try:
            re.compile(self.description or "")
        except re.error as error:
            raise ValueError(
                f"{self.wording.description} {self.description!r} is no regular expression: {error}"
            ) from error


@dataclass(frozen=True)
class Row:
    """One series as found; ``why`` says why it is left out, empty when it is taken."""

    name: str
    number: int | None
    description: str
    images: int
    slices: int
    phases: int
    size: tuple[int, int]
    why: str


@dataclass
class Survey:
    """What a folder holds and what is taken of it. For the person at the site: names series as the scanner did."""

    scan: Scan
    rows: list[Row] = field(default_factory=list)
    stacks: list[Stack] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def taken(self) -> int:
        return sum(not row.why for row in self.rows)

    def summary(self) -> str:
        """Counts in one line."""
        left_out = _counted(self.scan.skipped)
        line = (
            f"{self.scan.files} files, {len(self.scan.instances)} images in {len(self.rows)} series, {self.taken} taken"
        )
        return line + (f"; left out: {left_out}" if left_out else "")


def survey(scan: Scan, choice: Choice, root: str) -> Survey:
    """Sort the images of a scan into series, choose, and arrange what was chosen."""
    result = Survey(scan, problems=list(scan.problems))
    for images in _groups(scan.instances, choice):
        row = _row(images, choice)
        result.rows.append(row)
        if row.why:
            continue
        lost = _lost(row.name, images, scan, choice)
        result.problems += lost
        try:
            stack = arrange(row.name, images, choice.tolerance_mm, choice.wording)
        except DataProblems as error:
            result.problems += error.problems
        else:
            result.stacks += [] if lost else [stack]
    if not scan.instances:
        counts = _counted(scan.skipped) or "it is empty"
        fix = "give the folder of the exported images"
        result.problems.append(Problem(root, f"holds no image that can be used ({counts})", fix))
    elif not result.taken:
        reasons = sorted({row.why for row in result.rows})
        what = f"has {len(result.rows)} series, none of them taken: {'; '.join(reasons)}"
        result.problems.append(Problem(root, what, choice.wording.choose))
    return result


def _lost(name: str, images: Sequence[Instance], scan: Scan, choice: Choice) -> list[Problem]:
    """Files of a series that were left out: a slice at the end of the stack could be lost without a gap."""
    series = {image.series for image in images} - {""}
    joined = {(image.study, image.description) for image in images if image.study and choice.join_series}
    files = [file for file in scan.left_out if file.series in series or (file.study, file.description) in joined]
    if not files:
        return []
    reasons = _counted(Counter(file.reason for file in files))
    what = f"has {len(files)} files more that cannot be used ({reasons}), without which slices may be missing"
    fix = "export the series again with images of one kind, or remove those files if they are no slices of it"
    return [Problem(name, what, f"{fix}{choice.wording.or_leave_out}")]


def _counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))


def _groups(instances: Sequence[Instance], choice: Choice) -> list[list[Instance]]:
    groups: dict[tuple[object, ...], list[Instance]] = {}
    for instance in instances:
        key: tuple[object, ...] = (instance.series,)
        if choice.join_series:
            cosines = tuple(round(value, 3) + 0.0 for value in instance.orientation)
            key = (instance.patient, instance.study, instance.description, instance.size, instance.spacing, cosines)
        groups.setdefault(key, []).append(instance)
    return list(groups.values())


def _row(images: list[Instance], choice: Choice) -> Row:
    slices = by_position(orientations(images)[0])
    phases = max(map(len, slices))
    first = images[0]
    label = f"series {first.series_number}" if first.series_number is not None else "series without number"
    name = f"{first.file.parent} ({label}, {len(images)} images)"
    return Row(
        name, first.series_number, first.description, len(images), len(slices), phases, first.size,
        _why_not(first, len(slices), phases, choice),
    )  # fmt: skip


def _why_not(first: Instance, slices: int, phases: int, choice: Choice) -> str:
    if choice.description is not None and not re.search(choice.description, first.description):
        return "another description"
    if slices < choice.min_slices:
        return f"fewer than {choice.min_slices} parallel slices"
    if phases < 2 and not choice.static and choice.description is None:
        return "one phase only (--static takes it)"
    return ""
