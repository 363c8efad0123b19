"""Content checks of volumes, before anything is trained or cached."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from .parallel import in_order
from .problems import DataProblems, Problem
from .progress import track
from .records import VolumeRecord

UNREADABLE = (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError)
AFFINE_TOLERANCE_MM = 0.01
LARGEST_LABEL = 254  # 255 marks unlabelled rows of the uint8 slice cache
Report = Callable[[str, str, str, str], None]  # kind, file, what, way out


def check_records(
    records: Sequence[VolumeRecord],
    partitions: int,
    labels: Mapping[str, int] | None,
    progress: bool = False,
    slice_axis: int = 2,
    threads: int = 1,
) -> None:
    """Read every file once and raise with all that is wrong.

    Args:
        records: volumes to check.
        partitions: S; a volume needs at least as many slices.
        labels: declared structures and their values beside background 0; ``None`` checks only that labels are
            whole numbers.
        progress: show a bar.
        slice_axis: which axis of the files counts slices.
        threads: files to read at a time.

    Raises:
        DataProblems: missing, truncated or corrupt files; voxels that are no real numbers; NaN, infinite or constant
            images; 4-D where 3-D is expected; too few slices; label values outside the set; label of other shape or
            place than its image.
    """
    problems = find_problems(records, partitions, labels, progress, slice_axis, threads)
    if problems:
        raise DataProblems(problems)


def find_problems(
    records: Sequence[VolumeRecord],
    partitions: int = 1,
    labels: Mapping[str, int] | None = None,
    progress: bool = False,
    slice_axis: int = 2,
    threads: int = 1,
) -> list[Problem]:
    """What :func:`check_records` raises with, as a list; empty when all is well."""
    if not records:
        fix = "check the dataset folder and the site in the split file"
        return [Problem("(no file)", "no volume was given", fix, "files")]
    problems: list[Problem] = []
    _check_names(records, _reporter(problems))
    by_file: dict[str, list[VolumeRecord]] = {}
    for record in records:
        by_file.setdefault(record.image, []).append(record)

    def check(entry: tuple[str, list[VolumeRecord]]) -> list[Problem]:
        file, group = entry
        found: list[Problem] = []
        report = _reporter(found)
        image = _load(file, report)
        if image is not None and any(record.frame is not None for record in group):
            _check_cine(file, image, group, partitions, slice_axis, report)
        elif image is not None:
            _check_volume(file, image, partitions, slice_axis, report)
        for label_file in dict.fromkeys(record.label for record in group if record.label is not None):
            _check_label(label_file, file, image, labels, report)
        return found

    results = in_order(check, by_file.items(), threads)
    for found in track(results, "checking volumes", "file", progress, total=len(by_file)):
        problems += found
    return problems


def _reporter(into: list[Problem]) -> Report:
    def report(kind: str, file: str, what: str, fix: str) -> None:
        into.append(Problem(file, what, fix, kind))

    return report


def _check_names(records: Sequence[VolumeRecord], report: Report) -> None:
    seen: dict[str, str] = {}
    for record in records:
        if record.volume in seen:
            what = f"has the volume name {record.volume!r}, as has {seen[record.volume]}"
            report("name", record.image, what, "give each volume a name of its own")
        seen.setdefault(record.volume, record.image)


def load_nifti(file: str | Path) -> nib.spatialimages.SpatialImage:
    """Header of ``file``; voxels are read when asked for. A fourth axis of length 1 is left away.

    Raises:
        ValueError: when nibabel takes the file for something without a grid.
    """
    image = nib.loadsave.load(file)
    if not isinstance(image, nib.spatialimages.SpatialImage):
        raise ValueError(f"{file} is a {type(image).__name__}, not a NIfTI volume")
    if image.shape[3:] == (1,) and isinstance(image.dataobj, nib.arrayproxy.ArrayProxy):
        return type(image)(image.dataobj.reshape(image.shape[:3]), image.affine, image.header)
    return image


def voxel_fault(image: nib.spatialimages.SpatialImage) -> tuple[str, str] | None:
    """What is wrong, and the way out, where a voxel is a colour (a structured type) or complex; None elsewhere."""
    if image.get_data_dtype().kind in "biuf":
        return None
    what = f"has colours or complex numbers as voxels, type {image.get_data_dtype()}"
    return what, "save one real number for each voxel, e.g. its brightness"


def _load(file: str, report: Report) -> nib.spatialimages.SpatialImage | None:
    if not Path(file).is_file():
        report("files", file, "is missing", "restore the file, or remove its mention (Info.cfg, datalist, split file)")
        return None
    try:
        if file.endswith(".gz"):
            # Only reading to the end verifies the checksum; nibabel stops at the last voxel it needs.
            with gzip.open(file) as stream:
                while stream.read(1 << 22):
                    pass
        image = load_nifti(file)
        if len(image.shape) not in (3, 4):
            report("files", file, f"has shape {_shape(image)}", "give 3-D volumes (or a 4-D cine)")
            return None
        if 0 in image.shape:
            report("files", file, f"has no voxels, shape {_shape(image)}", "export the volume again")
            return None
        if fault := voxel_fault(image):
            report("files", file, *fault)
            return None
        if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-9:
            report(
                "spacing",
                file,
                f"has an unusable affine {np.round(image.affine, 3).tolist()}",
                "repair the NIfTI header",
            )
            return None
        return image
    except UNREADABLE as error:
        report(
            "files", file, f"cannot be read, truncated or corrupt ({type(error).__name__}: {error})", "copy it again"
        )
        return None


def _voxels(file: str, image: nib.spatialimages.SpatialImage, report: Report) -> np.ndarray | None:
    try:
        return np.asanyarray(image.dataobj)
    except UNREADABLE as error:
        report(
            "files", file, f"cannot be read, truncated or corrupt ({type(error).__name__}: {error})", "copy it again"
        )
        return None


def _check_volume(
    file: str, image: nib.spatialimages.SpatialImage, partitions: int, slice_axis: int, report: Report
) -> None:
    if len(image.shape) != 3:
        report("files", file, f"is 4-D, shape {_shape(image)}, where one volume is expected", "split it into 3-D files")
        return
    _check_depth(file, image, partitions, slice_axis, report)
    voxels = _voxels(file, image, report)
    if voxels is not None:
        _check_values(file, "", voxels, report)


def _check_cine(
    file: str,
    image: nib.spatialimages.SpatialImage,
    group: list[VolumeRecord],
    partitions: int,
    slice_axis: int,
    report: Report,
) -> None:
    _check_depth(file, image, partitions, slice_axis, report)
    voxels = _voxels(file, image, report)
    if voxels is None:
        return
    voxels = voxels.reshape(*image.shape[:3], -1)  # a volume of three axes is a cine of one frame
    for frame in sorted({record.frame for record in group if record.frame is not None}):
        if not 0 <= frame < voxels.shape[3]:
            what = f"has {voxels.shape[3]} frames, shape {_shape(image)}, none with index {frame}"
            report("slices", file, what, "correct the frame number")
        else:
            _check_values(file, f"frame {frame} ", voxels[..., frame], report)


def _check_depth(
    file: str, image: nib.spatialimages.SpatialImage, partitions: int, slice_axis: int, report: Report
) -> None:
    if image.shape[slice_axis] < partitions:
        what = f"has {image.shape[slice_axis]} slices, shape {_shape(image)}, fewer than the {partitions} partitions"
        report("slices", file, what, "leave the volume out, lower `partitions`, or set `slice_axis`")


def _check_values(file: str, which: str, voxels: np.ndarray, report: Report) -> None:
    low, high = voxels.min(), voxels.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        # min and max pass a NaN on, so one pass over the voxels is enough for volumes that are well.
        bad = int(voxels.size - np.count_nonzero(np.isfinite(voxels)))
        report(
            "intensity", file, f"{which}has {bad} of {voxels.size} voxels NaN or infinite", "export the volume again"
        )
    elif low == high:
        report(
            "intensity", file, f"{which}is constant, every voxel is {low:g}", "export the volume again, or leave it out"
        )


def _check_label(
    file: str,
    image_file: str,
    image: nib.spatialimages.SpatialImage | None,
    labels: Mapping[str, int] | None,
    report: Report,
) -> None:
    label = _load(file, report)
    if label is None:
        return
    if image is not None:
        _check_grid(file, label, image_file, image, report)
    voxels = _voxels(file, label, report)
    if voxels is None:
        return
    values = np.unique(voxels)
    allowed = {0, *labels.values()} if labels is not None else None
    outside = [value for value in values.tolist() if not _is_label(value, allowed)]
    if outside:
        declared = dict(labels) if labels is not None else f"whole numbers 0..{LARGEST_LABEL}"
        shown = ", ".join(f"{value:g}" for value in outside[:8]) + (", ..." if len(outside) > 8 else "")
        what = f"has label values {shown}, declared are {declared}"
        report("labels", file, what, "correct the file, or declare them in `labels`")


def _check_grid(
    file: str,
    label: nib.spatialimages.SpatialImage,
    image_file: str,
    image: nib.spatialimages.SpatialImage,
    report: Report,
) -> None:
    if label.shape != image.shape[:3]:
        report(
            "labels", file, f"has shape {_shape(label)}, its image {_shape(image)}", f"label the grid of {image_file}"
        )
    elif not np.allclose(_corners(label), _corners(image), atol=AFFINE_TOLERANCE_MM, rtol=0):
        off = float(np.abs(_corners(label) - _corners(image)).max())
        what = f"has another affine than its image: corners differ by up to {off:.3g} mm"
        report("labels", file, what, f"copy the affine of {image_file}, if the voxels do correspond")


def _is_label(value: float, allowed: set[int] | None) -> bool:
    if allowed is not None:
        return value in allowed
    return np.isfinite(value) and value == int(value) and 0 <= value <= LARGEST_LABEL


def _corners(image: nib.spatialimages.SpatialImage) -> np.ndarray:
    """(8, 3) positions of the corner voxels, in mm."""
    last = np.array(image.shape[:3]) - 1
    voxels = np.array(list(np.ndindex(2, 2, 2))) * last
    return nib.affines.apply_affine(image.affine, voxels)


def _shape(image: nib.spatialimages.SpatialImage) -> str:
    return "x".join(map(str, image.shape))
