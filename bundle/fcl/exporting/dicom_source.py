"""Volumes out of a DICOM folder for inference, with the way back to the images that each came from."""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from pydicom.uid import generate_uid

from fcl.data import VolumeRecord
from fcl.data.folder import require_folder
from fcl.data.problems import DataProblems, Problem
from fcl.data.progress import track
from fcl.importing import Choice, scan
from fcl.importing.reading import lenient, read_dicom
from fcl.importing.selection import survey
from fcl.importing.stacks import Stack
from fcl.importing.voxels import read_voxels, write_volume
from fcl.importing.wording import Wording

logger = logging.getLogger(__name__)

# What a segmentation must repeat of its images.
_NEEDED = ("FrameOfReferenceUID", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_WORDING = Wording(
    min_slices="--records::min_slices",
    description="--records::series_description",
    tolerance="--records::tolerance_mm",
    or_leave_out="",
    choose="choose with --records::series_description or --records::min_slices; slices that the scanner wrote as "
    "series of their own must be made NIfTI volumes first (fcl data import dicom --static --join-series), which "
    "inference.json takes without dicom.json",
)


@dataclass(frozen=True)
class Source:
    """Where a volume came from.

    Args:
        images: its DICOM files, in the order of the volume's slices.
        phase: which of the series' phases it is, from 0.
        series: UID for the series of segmentations, one for all phases.
    """

    images: tuple[Path, ...]
    phase: int
    series: str


class DicomRecords(Sequence[VolumeRecord]):
    """Every stack of slices below a folder, one volume for each phase, unlabelled.

    The volumes lie in a temporary folder, which only this user may read and which goes with the process. Names of
    volumes tell the series' numbers, never the patient. A series that cannot be used, or to which no segmentation
    could refer, is left out with a warning; so is one of which some image was left out, as its volume could be short.

    Args:
        dataset_dir: folder of DICOM files, in any order and under any name; only read.
        min_slices: parallel slices that make a stack; localisers and long-axis series have fewer.
        series_description: regular expression; other series are left out.
        tolerance_mm: how far a slice may lie from where equal spacing puts it.

    Raises:
        DataProblems: everything that is wrong with the folder, when it leaves no volume.
    """

    def __init__(
        self,
        dataset_dir: str | Path | None,
        min_slices: int = 4,
        series_description: str | None = None,
        tolerance_mm: float = 0.1,
    ) -> None:
        folder = require_folder(dataset_dir)
        choice = Choice(min_slices, series_description, static=True, tolerance_mm=tolerance_mm, wording=_WORDING)
        found = survey(scan(folder), choice, str(folder))
        problems = list(found.problems)
        self._folder = tempfile.TemporaryDirectory(prefix="fcl_dicom_")
        self._sources: dict[str, Source] = {}
        self._records: list[VolumeRecord] = []
        for number, stack in enumerate(track(found.stacks, "reading images", "series", True, total=len(found.stacks))):
            try:
                self._add(stack, number)
            except DataProblems as error:
                problems += error.problems
        if not self._records:
            raise DataProblems(problems)
        for problem in problems:
            logger.warning("left out, everything else is segmented: %s", problem)
        # Without this, a folder of which half is no image that can be segmented would look like any other.
        logger.info("%s: %s", folder, found.summary())

    def _add(self, stack: Stack, number: int) -> None:
        _require_references(stack)
        first = stack.grid[0][0]
        name = f"{number + 1:03d}_series{first.series_number or 0}"
        # Not compressed: frames of a cine are read one by one.
        file = Path(self._folder.name) / f"{name}.nii"
        write_volume(read_voxels(stack), stack.affine, file, stack.phase_step_s)
        phases, series = stack.shape[3], generate_uid()
        for phase in range(phases):
            volume = f"{name}_t{phase:02d}" if phases > 1 else name
            frame = phase if phases > 1 else None
            self._records.append(VolumeRecord(str(file), None, patient=name, volume=volume, frame=frame))
            images = tuple(images[phase].file for images in stack.grid)
            self._sources[volume] = Source(images, phase, series)

    def source(self, volume: str) -> Source:
        """Where the volume of that name came from."""
        return self._sources[volume]

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> VolumeRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[VolumeRecord]: ...
    def __getitem__(self, index: int | slice) -> VolumeRecord | list[VolumeRecord]:
        return self._records[index]

    def __iter__(self) -> Iterator[VolumeRecord]:
        return iter(self._records)


def _require_references(stack: Stack) -> None:
    missing = set()
    with lenient():
        for image in itertools.chain.from_iterable(stack.grid):
            header = read_dicom(image.file, _NEEDED)
            missing |= {tag for tag in _NEEDED if not header.get(tag)}
    if missing:
        what = f"lacks {', '.join(sorted(missing))}, without which nothing can refer to it in DICOM"
        fix = "export it again with these tags, or import it to NIfTI (fcl data import dicom) for label maps alone"
        raise DataProblems([Problem(stack.name, what, fix)])
