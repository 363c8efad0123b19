"""What a volume is like in a few numbers, for checks and statistics. Nothing here needs torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import nibabel as nib
import numpy as np

from .check import UNREADABLE, load_nifti, voxel_fault
from .progress import track
from .records import VolumeRecord

QUANTILES = (0.01, 0.5, 0.99)
SHARE = "share_"  # begins the name of a measure that is a structure's part of the volume


@dataclass(frozen=True)
class VolumeSummary:
    """One volume as its file has it.

    Attributes:
        record: which one.
        shape: voxels along the axes of the file.
        spacing: mm along them.
        orientation: where the axes point, e.g. ``"LPS"``, by the nearest anatomical ones.
        across: (3,) unit vector along the slice axis, RAS.
        quantiles: 1 %, 50 % and 99 % of the intensities.
        digest: the same for two volumes with the same voxels.
        label_ml: volume of each declared structure; empty without label map.
    """

    record: VolumeRecord
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    orientation: str
    across: tuple[float, ...]
    quantiles: tuple[float, ...]
    digest: str
    label_ml: Mapping[str, float] = field(default_factory=dict)


def summarise(
    records: Sequence[VolumeRecord],
    labels: Mapping[str, int] | None = None,
    slice_axis: int = 2,
    progress: bool = False,
) -> list[VolumeSummary]:
    """A summary of each volume that can be read, in the order of the records; the rest is for ``find_problems``.

    Args:
        records: volumes.
        labels: declared structures and values.
        slice_axis: which axis of the files counts slices.
        progress: show a bar.
    """
    by_file: dict[str, list[VolumeRecord]] = {}
    for record in records:
        by_file.setdefault(record.image, []).append(record)
    found: dict[str, VolumeSummary] = {}
    for file, group in track(by_file.items(), "measuring volumes", "file", progress, total=len(by_file)):
        try:
            image, voxels = _read(file)
            for record in group:
                found[record.volume] = _summary(record, image, voxels, labels or {}, slice_axis)
        except (*UNREADABLE, IndexError):
            continue
    return [found[record.volume] for record in records if record.volume in found]


def _read(file: str) -> tuple[Any, np.ndarray]:
    image = load_nifti(file)
    if fault := voxel_fault(image):
        raise ValueError(f"{file} {fault[0]}")
    return image, np.asanyarray(image.dataobj)


def _summary(
    record: VolumeRecord, image: Any, voxels: np.ndarray, labels: Mapping[str, int], slice_axis: int
) -> VolumeSummary:
    part = voxels if record.frame is None or voxels.ndim == 3 else voxels[..., record.frame]
    if part.ndim != 3:
        raise ValueError(f"{record.image} has {part.ndim} axes")
    spacing = nib.affines.voxel_sizes(image.affine)
    direction = image.affine[:3, slice_axis] / spacing[slice_axis]
    digest = hashlib.sha256(f"{part.shape}".encode() + np.ascontiguousarray(part, np.float32).data)
    return VolumeSummary(
        record=record,
        shape=tuple(map(int, part.shape)),
        spacing=tuple(map(float, spacing)),
        orientation="".join(nib.aff2axcodes(image.affine)),
        across=tuple(map(float, direction)),
        quantiles=tuple(map(float, np.quantile(part, QUANTILES))),
        digest=digest.hexdigest(),
        label_ml=_volumes(record.label, labels) if record.label is not None else {},
    )


def _volumes(file: str, labels: Mapping[str, int]) -> dict[str, float]:
    """Millilitres of each structure."""
    image, voxels = _read(file)
    millilitres = abs(float(np.linalg.det(image.affine[:3, :3]))) / 1000
    return {name: float(np.count_nonzero(voxels == value)) * millilitres for name, value in labels.items()}


def statistics(summaries: Sequence[VolumeSummary]) -> dict[str, Any]:
    """Counts, and median, least and largest of spacing (mm), shape, intensity quantiles and label volumes (ml)."""
    records = [summary.record for summary in summaries]
    structures = sorted({name for summary in summaries for name in summary.label_ml})
    return {
        "patients": len({record.patient for record in records}),
        "volumes": len(records),
        "labelled": sum(record.label is not None for record in records),
        "phases": {
            phase or "-": sum(record.phase == phase for record in records)
            for phase in sorted({record.phase for record in records})
        },
        "orientations": {
            code: sum(summary.orientation == code for summary in summaries)
            for code in sorted({summary.orientation for summary in summaries})
        },
        "spacing_mm": [_spread([s.spacing[axis] for s in summaries]) for axis in range(3)],
        "shape": [_spread([s.shape[axis] for s in summaries]) for axis in range(3)],
        "intensity": {
            f"{100 * q:g} %": _spread([s.quantiles[place] for s in summaries]) for place, q in enumerate(QUANTILES)
        },
        "label_ml": {name: _spread([s.label_ml[name] for s in summaries if name in s.label_ml]) for name in structures},
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    return {"median": float(np.median(values)), "min": float(min(values)), "max": float(max(values))}
