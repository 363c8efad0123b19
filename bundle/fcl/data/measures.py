"""A site's data in numbers that can be compared across sites: of each patient one value of each measure.

With one value a patient (the mean over the volumes, so that a cine of thirty frames weighs as much as one frame), a
count is a number of people, as rules on the least size of a group mean it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np

from .site_check import SiteCheck
from .summary import SHARE, VolumeSummary

Range = tuple[float, float]
Of = Callable[[VolumeSummary, int], float | None]

_SHARE_RANGE = (0.0, 0.1)


def _in_plane(values: Sequence[float], slice_axis: int) -> float:
    """Geometric mean over the two axes of a slice."""
    return math.sqrt(math.prod(value for axis, value in enumerate(values) if axis != slice_axis))


def _centre(summary: VolumeSummary, slice_axis: int) -> float | None:
    low, median, high = summary.quantiles
    return (median - low) / (high - low) if high > low else None


# Measure to the range of its histogram, which must not depend on anyone's data, and its value for a volume. Intensities
# of MR have no scale of their own, so no range can be declared for them; but for where the median lies between the
# 1st (0) and the 99th percentile (1), which shows images that are inverted or badly windowed.
_MEASURES: dict[str, tuple[Range | None, Of]] = {
    "in_plane_spacing_mm": ((0.0, 4.0), lambda summary, axis: _in_plane(summary.spacing, axis)),
    "slice_distance_mm": ((0.0, 20.0), lambda summary, axis: summary.spacing[axis]),
    "slices": ((0.0, 40.0), lambda summary, axis: float(summary.shape[axis])),
    "in_plane_pixels": ((0.0, 640.0), lambda summary, axis: _in_plane(summary.shape, axis)),
    "intensity_low": (None, lambda summary, axis: summary.quantiles[0]),
    "intensity_median": (None, lambda summary, axis: summary.quantiles[1]),
    "intensity_high": (None, lambda summary, axis: summary.quantiles[2]),
    "intensity_centre": ((0.0, 1.0), _centre),
}


class DataStatistics:
    """Aggregates of a site's measures, over its patients.

    Measures: ``in_plane_spacing_mm`` and ``in_plane_pixels`` (geometric mean of both axes of a slice),
    ``slice_distance_mm``, ``slices``, ``intensity_low``, ``_median``, ``_high`` (1st, 50th and 99th percentile as the
    files have them), ``intensity_centre`` (median between the two others, 0 to 1), and of each structure
    ``share_<name>``, its part of the volume's space, over labelled volumes.

    Args:
        check: of the site; measures its volumes.
        bins: of each histogram.
        ranges: of histograms, by measure, in place of the declared ones; values beyond count in the last bins. In a
            federation both are the site's: whoever may move the edges finds single values by doing so.

    Raises:
        ValueError: on a range of an unknown measure, or one that is none.
    """

    def __init__(self, check: SiteCheck, bins: int = 10, ranges: Mapping[str, Sequence[float]] | None = None) -> None:
        self.bins = bins
        self._check = check
        self._shares = {share_name(label): label for label in check.labels}
        self._ranges: dict[str, Range | None] = {name: declared for name, (declared, _) in _MEASURES.items()}
        self._ranges.update(dict.fromkeys(self._shares, _SHARE_RANGE))
        if bins < 1 or len(self._shares) < len(check.labels):
            raise ValueError(f"expected at least 1 bin, and names that differ in letters; got {bins}, {check.labels}")
        for name, given in (ranges or {}).items():
            if name not in self._ranges or len(given) != 2 or not given[0] < given[1]:
                raise ValueError(f"no range {list(given)} of {name!r}: measures are {', '.join(self._ranges)}")
            self._ranges[name] = (float(given[0]), float(given[1]))

    def measures(self) -> dict[str, Range | None]:
        """Names of all measures, and the range of each histogram; None where there is no range to declare."""
        return dict(self._ranges)

    def totals(self) -> dict[str, int]:
        """Patients, volumes and slices (of all volumes together)."""
        axis = self._check.slice_axis
        return {
            "patients": len(self._patients),
            "volumes": len(self._summaries),
            "slices": sum(summary.shape[axis] for summary in self._summaries),
        }

    def count(self, measure: str) -> int:
        """Patients, those without a value included."""
        return len(self._patients)

    def missing(self, measure: str) -> int:
        """Patients without a value, e.g. those that are not labelled."""
        return len(self._patients) - len(self._values[measure])

    def mean(self, measure: str) -> float:
        """Over the patients with a value, of whom there must be one."""
        return float(np.mean(self._values[measure]))

    def stddev(self, measure: str) -> float:
        """With n - 1; 0 for a single patient."""
        values = self._values[measure]
        return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

    def extremes(self, measure: str) -> Range:
        """Least and largest."""
        values = self._values[measure]
        return float(values.min()), float(values.max())

    def histogram(self, measure: str) -> list[int]:
        """Patients in each bin of the declared range.

        Raises:
            ValueError: when none is declared.
        """
        declared = self._ranges[measure]
        if declared is None:
            raise ValueError(f"{measure} has no declared range, so no histogram")
        counts, _ = np.histogram(np.clip(self._values[measure], *declared), bins=self.bins, range=declared)
        return [int(count) for count in counts]

    @cached_property
    def _summaries(self) -> list[VolumeSummary]:
        return self._check.summaries()

    @cached_property
    def _patients(self) -> list[str]:
        return sorted({record.patient for record in self._check.split.records})

    @cached_property
    def _values(self) -> dict[str, np.ndarray]:
        """Measure to one value for each patient who has it."""
        return {name: self._of_patients(self._of(name)) for name in self._ranges}

    def _of(self, name: str) -> Of:
        if name not in self._shares:
            return _MEASURES[name][1]
        label = self._shares[name]

        def share(summary: VolumeSummary, slice_axis: int) -> float | None:
            millilitres = math.prod(summary.shape) * math.prod(summary.spacing) / 1000
            return summary.label_ml[label] / millilitres if label in summary.label_ml else None

        return share

    def _of_patients(self, of: Of) -> np.ndarray:
        by_patient: dict[str, list[float]] = {}
        for summary in self._summaries:
            value = of(summary, self._check.slice_axis)
            if value is not None:
                by_patient.setdefault(summary.record.patient, []).append(value)
        return np.array([np.mean(by_patient[patient]) for patient in sorted(by_patient)])


def share_name(label: str) -> str:
    """Measure of a structure: letters and underscores, which is all that may leave a site as a name."""
    return SHARE + re.sub("[^A-Za-z]", "_", label)[:26]
