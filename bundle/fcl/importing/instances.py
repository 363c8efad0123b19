"""The images of a DICOM folder, by the few tags that an import reads."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import MediaStorageDirectoryStorage

from fcl.data.problems import Problem
from fcl.data.progress import track

from .reading import lenient, read_dicom

# What an output holds of an image; everything else stays behind. `fcl data import dicom --list-tags` shows this.
KEPT = {
    "PixelData": "the voxels",
    "RescaleSlope": "applied to the voxels",
    "RescaleIntercept": "applied to the voxels",
    "Rows": "shape of the volume",
    "Columns": "shape of the volume",
    "PixelSpacing": "in the affine",
    "ImageOrientationPatient": "in the affine",
    "ImagePositionPatient": "in the affine",
    "TriggerTime": "order of the phases; the mean step between them (s) in the NIfTI header",
}

# Read to sort images into series, slices and phases, or to leave them out; never written into an image or a datalist.
READ_ONLY = (
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "SOPClassUID",
    "SeriesNumber",
    "SeriesDescription",
    "InstanceNumber",
    "TemporalPositionIdentifier",
    "ImageType",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BurnedInAnnotation",
    "SliceThickness",
)

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_AGAIN = "copy or export it again, or remove it"
_NO_SCANS = {"LOCALIZER": "localisers", "SCREEN SAVE": "secondary captures"}


@dataclass(frozen=True)
class Instance:
    """One slice at one phase.

    Args:
        file: where it lies.
        patient: PatientID, or the study's UID where that is empty: two people without an id are not one case.
        study, series, uid: of DICOM.
        series_number, description: of the series, for the person at the site.
        number: InstanceNumber.
        trigger: TriggerTime (ms).
        temporal: TemporalPositionIdentifier.
        size: (rows, columns).
        spacing: (between rows, between columns) in mm.
        orientation: directions of increasing column and of increasing row, LPS.
        position: of the first pixel's centre, LPS, mm.
        thickness: SliceThickness (mm).
    """

    file: Path
    patient: str
    study: str
    series: str
    uid: str
    series_number: int | None
    description: str
    number: int | None
    trigger: float | None
    temporal: float | None
    size: tuple[int, int]
    spacing: tuple[float, ...]
    orientation: tuple[float, ...]
    position: tuple[float, ...]
    thickness: float | None


@dataclass(frozen=True)
class Skipped:
    """A file that was left out.

    Args:
        reason: why, as a plural.
        series, study, description: of the series it says it is of; empty where it says nothing.
    """

    reason: str
    series: str = ""
    study: str = ""
    description: str = ""


@dataclass
class Scan:
    """What a folder holds: usable images, files left out with the reason, files that cannot be read."""

    files: int = 0
    instances: list[Instance] = field(default_factory=list)
    left_out: list[Skipped] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def skipped(self) -> Counter[str]:
        """Files left out by reason."""
        return Counter(file.reason for file in self.left_out)


def scan(folder: Path, progress: bool = True) -> Scan:
    """Read the header of every file below ``folder``, whatever its name.

    Images that are no part of a scan (localisers, secondary captures, colour, text burnt into pixels) and files that
    are no DICOM are counted and left out. Files that a copy left empty, or that end before they name their series, are
    problems: nothing tells which series lacks them.
    """
    result = Scan()
    files = sorted(Path(top) / name for top, _, names in os.walk(folder) for name in names)
    for file in track(files, "reading headers", "file", progress, total=len(files)):
        result.files += 1
        try:
            if not (file.stat().st_size or file.name.startswith(".")):
                result.problems.append(Problem(str(file), "is empty", _AGAIN))
                continue
            with lenient():
                header = read_dicom(file, [*KEPT, *READ_ONLY])
                reason = _not_wanted(header)
                if reason is None:
                    result.instances.append(_instance(file, header))
                elif _ends_early(header):
                    result.problems.append(Problem(str(file), "ends before it names its series", _AGAIN))
                else:
                    series = (
                        _text(header, tag) for tag in ("SeriesInstanceUID", "StudyInstanceUID", "SeriesDescription")
                    )
                    result.left_out.append(Skipped(reason, *series))
        except InvalidDicomError:
            result.left_out.append(Skipped("no DICOM files"))
        except Exception as error:  # pydicom raises what its parts raise: any of them means a damaged file
            what = f"is DICOM that cannot be read ({type(error).__name__}: {error})"
            result.problems.append(Problem(str(file), what, _AGAIN))
    return result


def _ends_early(header: pydicom.FileDataset) -> bool:
    """Whether there is neither an image nor a series; of what is whole only a DICOMDIR has neither."""
    kind = header.file_meta.get("MediaStorageSOPClassUID")
    return "Rows" not in header and "SeriesInstanceUID" not in header and kind != MediaStorageDirectoryStorage


def _not_wanted(header: pydicom.Dataset) -> str | None:
    if "Rows" not in header or "Columns" not in header:
        return "DICOM files without image"
    if str(header.get("SOPClassUID", "")).startswith(_SECONDARY_CAPTURE):
        return "secondary captures"
    kinds = {str(kind).strip().upper() for kind in header.get("ImageType") or ()}
    for kind, reason in _NO_SCANS.items():
        if kind in kinds:
            return reason
    if str(header.get("BurnedInAnnotation", "")).upper() == "YES":
        return "images with text burnt into the pixels"
    if int(header.get("SamplesPerPixel") or 1) != 1 or header.get("PhotometricInterpretation") != "MONOCHROME2":
        return "images that are not MONOCHROME2"
    if int(header.get("NumberOfFrames") or 1) > 1:
        return "multi-frame images (export them as single frames)"
    if any(header.get(tag) is None for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")):
        return "images without position in space"
    return None


def _text(header: pydicom.Dataset, tag: str) -> str:
    return str(header.get(tag) or "").strip()


def _instance(file: Path, header: pydicom.Dataset) -> Instance:
    def number(tag: str) -> Any:
        value = header.get(tag)
        return None if value is None or value == "" else float(value)

    def numbers(tag: str, count: int) -> tuple[float, ...]:
        values = tuple(float(value) for value in header[tag].value)
        if len(values) != count:
            raise ValueError(f"{tag} has {len(values)} values, not {count}")
        return values

    return Instance(
        file=file,
        patient=_text(header, "PatientID") or _text(header, "StudyInstanceUID") or str(file.parent),
        study=_text(header, "StudyInstanceUID"),
        series=_text(header, "SeriesInstanceUID"),
        uid=_text(header, "SOPInstanceUID"),
        series_number=_whole(number("SeriesNumber")),
        description=_text(header, "SeriesDescription"),
        number=_whole(number("InstanceNumber")),
        trigger=number("TriggerTime"),
        temporal=number("TemporalPositionIdentifier"),
        size=(int(header.Rows), int(header.Columns)),
        spacing=numbers("PixelSpacing", 2),
        orientation=numbers("ImageOrientationPatient", 6),
        position=numbers("ImagePositionPatient", 3),
        thickness=number("SliceThickness"),
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
