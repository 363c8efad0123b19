"""Images of one series to a stack of slices by phases, with its place in space.

Letters: D slices, T phases. Lengths are mm. Slices are ordered by ImagePositionPatient along their common normal;
SliceLocation is never read, because scanners disagree on what it means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from fcl.data.problems import DataProblems, Problem

from .instances import Instance
from .wording import OF_THE_IMPORT, Wording

# Positions that differ by less are one slice: scanners round coordinates to a thousandth of a millimetre or better.
SAME_PLACE_MM = 0.05
_PARALLEL = 1e-3  # largest difference of a direction cosine
_PHASE_KEYS: tuple[tuple[str, Callable[[Instance], Any]], ...] = (
    ("TriggerTime", attrgetter("trigger")),
    ("TemporalPositionIdentifier", attrgetter("temporal")),
    ("InstanceNumber", attrgetter("number")),
)


@dataclass(frozen=True)
class Stack:
    """A series in order.

    Attributes:
        name: how to show it to the person at the site.
        grid: D lists of T images.
        affine: (4, 4) from voxel (column, row, slice) to RAS, mm.
        phase_key: the tag that ordered the phases.
        phase_step_s: mean time between phases, ``None`` when not known.
    """

    name: str
    grid: list[list[Instance]]
    affine: np.ndarray
    phase_key: str
    phase_step_s: float | None

    @property
    def patient(self) -> str:
        return self.grid[0][0].patient

    @property
    def shape(self) -> tuple[int, ...]:
        """(X, Y, D, T)."""
        rows, columns = self.grid[0][0].size
        return columns, rows, len(self.grid), len(self.grid[0])


def normal_of(instance: Instance) -> np.ndarray:
    """(3,) unit vector across the slice, LPS."""
    row, column = np.reshape(instance.orientation, (2, 3))
    cross = np.cross(row, column)
    return cross / max(float(np.linalg.norm(cross)), 1e-12)


def orientations(instances: Sequence[Instance]) -> list[list[Instance]]:
    """The images by orientation, most numerous first."""
    groups: list[list[Instance]] = []
    for instance in instances:
        for group in groups:
            if np.allclose(group[0].orientation, instance.orientation, atol=_PARALLEL, rtol=0):
                group.append(instance)
                break
        else:
            groups.append([instance])
    return sorted(groups, key=len, reverse=True)


def by_position(instances: Sequence[Instance]) -> list[list[Instance]]:
    """Images of one orientation by slice position, in the order of the normal."""
    normal = normal_of(instances[0])
    depths = np.array([normal @ np.array(instance.position) for instance in instances])
    groups: list[list[Instance]] = []
    last = -np.inf
    for place in np.argsort(depths, kind="stable"):
        if depths[place] - last > SAME_PLACE_MM:
            groups.append([])
        groups[-1].append(instances[place])
        last = depths[place]
    return groups


def arrange(name: str, instances: Sequence[Instance], tolerance_mm: float, wording: Wording = OF_THE_IMPORT) -> Stack:
    """A stack out of the images of one series.

    Args:
        name: of the series, for messages.
        instances: its images, in any order.
        tolerance_mm: how far a slice may lie from where equal spacing puts it.
        wording: how messages name the caller's settings.

    Raises:
        DataProblems: everything that keeps them from being one stack: mixed patients, sizes or orientations; missing,
            overlapping or duplicate slices; unequal spacing; phases missing at some slice.
    """
    found = list(_mixtures(instances, wording))
    if not found:
        slices = by_position(instances)
        found += [*_place_faults(slices, tolerance_mm, wording), *_phase_faults(slices)]
    if found:
        raise DataProblems([Problem(name, what, fix) for what, fix in found])
    key_name, key = _phase_key(slices)
    grid = [sorted(images, key=key) for images in slices]
    return Stack(name, grid, _affine([images[0] for images in grid]), key_name, _phase_step(grid))


def _mixtures(instances: Sequence[Instance], wording: Wording) -> list[tuple[str, str]]:
    kinds: dict[str, Collection[Any]] = {
        "patients": {instance.patient for instance in instances},
        "image sizes": {instance.size for instance in instances},
        "pixel spacings": {tuple(np.round(instance.spacing, 4)) for instance in instances},
        "orientations": orientations(instances),
    }
    fix = f"export the series again, each acquisition as a series of its own{wording.or_leave_out}"
    found = [(f"mixes {len(values)} {kind}", fix) for kind, values in kinds.items() if len(values) > 1]
    copies = sum(count - 1 for count in Counter(instance.uid for instance in instances).values())
    if copies and all(instance.uid for instance in instances):
        found.append((f"holds {copies} images a second time (same SOPInstanceUID)", "remove the copies"))
    return found


def _place_faults(slices: Sequence[Sequence[Instance]], tolerance_mm: float, wording: Wording) -> list[tuple[str, str]]:
    if len(slices) < 2:
        return []
    positions = np.array([images[0].position for images in slices])
    normal = normal_of(slices[0][0])
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    missing = [int(i) for i in np.flatnonzero(gaps > 1.5 * usual)]
    overlapping = [int(i) for i in np.flatnonzero(gaps < 0.5 * usual)]
    found = []
    if missing:
        lost = sum(round(gaps[i] / usual) - 1 for i in missing)
        where = ", ".join(f"{i + 1} and {i + 2} ({gaps[i]:.2f} mm)" for i in missing)
        found.append((f"lacks about {lost} slices: usual distance {usual:.2f} mm, but between slices {where}",
                      "export the series again with all its slices"))  # fmt: skip
    if overlapping:
        where = ", ".join(f"{i + 1} and {i + 2} ({gaps[i]:.2f} mm)" for i in overlapping)
        found.append((f"has overlapping slices: usual distance {usual:.2f} mm, but between slices {where}",
                      "separate the acquisitions that share this series"))  # fmt: skip
    if found:
        return found
    even = positions[0] + np.linspace(0, 1, len(positions))[:, None] * (positions[-1] - positions[0])
    if (off := float(np.linalg.norm(positions - even, axis=1).max())) > tolerance_mm:
        what = (
            f"has unequal spacing, distances {gaps.min():.2f} to {gaps.max():.2f} mm, up to {off:.2f} mm out of place"
        )
        found.append((what, f"resample it, or raise {wording.tolerance} above {off:.2f} if that is acceptable"))
    elif (slant := float(np.linalg.norm(np.cross(positions[-1] - positions[0], normal)))) > max(1.0, tolerance_mm):
        what = f"is sheared: its last slice is shifted by {slant:.1f} mm within the plane"
        found.append((what, "resample it to a stack whose slices lie above one another"))
    return found


def _phase_faults(slices: Sequence[Sequence[Instance]]) -> list[tuple[str, str]]:
    counts = [len(images) for images in slices]
    usual = Counter(counts).most_common(1)[0][0]
    name, key = _phase_key(slices)
    found = []
    for index, images in enumerate(slices):
        values = [key(image) for image in images]
        if len(set(values)) < len(values):
            twice = ", ".join(
                f"{value:g}" for value, count in Counter(values).items() if count > 1 and value is not None
            )
            what = (
                f"has duplicates at slice {index + 1} of {len(slices)}: {len(values)} images, {name} {twice} repeated"
            )
            found.append((what, "remove the copies, or separate the acquisitions that share this series"))
        elif len(values) != usual:
            what = f"has {len(values)} phases at slice {index + 1} of {len(slices)}, {usual} elsewhere"
            found.append((what, "export the series again with all phases"))
    return found


def _phase_key(slices: Sequence[Sequence[Instance]]) -> tuple[str, Callable[[Instance], Any]]:
    """The first tag that every image has and that tells all phases of a slice apart, else the first that tells some.

    InstanceNumber orders images only where no other tag tells any apart: it differs in copies as well.
    """
    some: list[tuple[str, Callable[[Instance], Any]]] = []
    for name, key in _PHASE_KEYS:
        values = [[key(image) for image in images] for images in slices]
        if any(v is None for row in values for v in row) or (some and name == "InstanceNumber"):
            continue
        if all(len(set(row)) == len(row) for row in values):
            return name, key
        if all(len(row) == 1 or len(set(row)) > 1 for row in values):
            some.append((name, key))
    return some[0] if some else ("SOPInstanceUID", lambda instance: 0.0)


def _phase_step(grid: Sequence[Sequence[Instance]]) -> float | None:
    steps = [
        (images[-1].trigger - images[0].trigger) / (len(images) - 1) / 1000
        for images in grid
        if len(images) > 1 and images[0].trigger is not None and images[-1].trigger is not None
    ]
    return float(np.mean(steps)) if steps and np.mean(steps) > 0 else None


def _affine(first: Sequence[Instance]) -> np.ndarray:
    """(4, 4) voxel (column, row, slice) to RAS from the first phase of each slice."""
    along_row, along_column = np.reshape(first[0].orientation, (2, 3))
    between_rows, between_columns = first[0].spacing
    positions = np.array([image.position for image in first])
    if len(positions) > 1:
        step = (positions[-1] - positions[0]) / (len(positions) - 1)
    else:
        step = normal_of(first[0]) * (first[0].thickness or 1.0)
    affine = np.eye(4)
    affine[:3] = np.column_stack([along_row * between_columns, along_column * between_rows, step, positions[0]])
    affine[:2] *= -1  # LPS of DICOM to RAS of NIfTI
    return affine
