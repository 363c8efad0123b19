"""DICOM folders to NIfTI volumes and a datalist, with contours where there are some."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fcl.data.problems import DataProblems, Problem
from fcl.data.progress import track

from .archives import opened
from .contours import LABELS, Annotated, Contours, ContourSource, read_contours
from .instances import scan
from .report import ImportReport
from .selection import Choice, Survey, survey
from .stacks import Stack
from .staging import KEY_FILE, pseudonyms, staging, write_datalist, write_key
from .voxels import read_voxels, write_volume

_KEY_COLUMNS = ("case", "file", "PatientID", "StudyInstanceUID", "SeriesInstanceUID")


def import_dicom(
    source: Path,
    out: Path,
    choice: Choice,
    contours: ContourSource | None = None,
    include_partial: bool = False,
    key: bool = True,
    skip_problems: bool = False,
    progress: bool = True,
    tell: Callable[[Survey], None] | None = None,
) -> ImportReport:
    """Write ``images/``, ``labels/``, ``dataset.json`` and ``private/sources.csv`` of a DICOM folder.

    Args:
        source: folder, or zip archive of one.
        out: new folder.
        choice: which series.
        contours: annotations of them.
        include_partial: frames without myocardium go to ``training`` (their entries name the structures they have), not
            to the list ``partial``, which no overlay reads by itself.
        key: write which patient is behind which case.
        skip_problems: import what is well and give the rest in the report.
        progress: show bars.
        tell: is shown what was found, before anything is written.

    Raises:
        DataProblems: everything that is wrong, unless ``skip_problems``; and always when nothing is left.
    """
    with staging(out) as folder, opened(source, out) as root:
        found = survey(scan(root, progress), choice, str(source))
        if tell is not None:
            tell(found)
        drawn = read_contours(contours, found.stacks) if contours is not None else Contours()
        problems = [*found.problems, *drawn.problems]
        writer = _Writer(folder, found.stacks, drawn, include_partial)
        for index in track(range(len(found.stacks)), "importing", "series", progress, total=len(found.stacks)):
            try:
                voxels = read_voxels(found.stacks[index])
            except DataProblems as error:
                problems += error.problems
                continue
            if not problems or skip_problems:
                writer.write(index, voxels)
        if problems and not (skip_problems and writer.training):
            raise DataProblems(problems)
        write_datalist(folder, "imported from DICOM", LABELS if contours is not None else {}, writer.sections())
        if key:
            write_key(folder, _KEY_COLUMNS, writer.key_rows)
        report = writer.report(str(out), problems, contours is not None)
        if key:
            report.notes.append(f"{KEY_FILE} names the patients: it must never leave the site")
        return report


class _Writer:
    """Writes stacks under pseudonyms and keeps the entries of the datalist."""

    def __init__(self, folder: Path, stacks: list[Stack], drawn: Contours, include_partial: bool) -> None:
        self.folder, self.stacks, self.drawn, self.include_partial = folder, stacks, drawn, include_partial
        self.training: list[dict[str, Any]] = []
        self.partial: list[dict[str, Any]] = []
        self.key_rows: list[tuple[str, ...]] = []
        self.volumes: Counter[str] = Counter()
        self.notes: set[str] = set()
        self._cases = pseudonyms(stack.patient for stack in stacks)
        self._series: Counter[str] = Counter()

    def write(self, index: int, voxels: np.ndarray) -> None:
        """Stack ``index`` and its annotated frames; ``voxels`` is (X, Y, D, T)."""
        stack = self.stacks[index]
        case = self._cases[stack.patient]
        self._series[case] += 1
        name = f"{case}_s{self._series[case]:02d}"
        first = stack.grid[0][0]
        image = f"images/{name}.nii.gz"
        write_volume(voxels, stack.affine, self.folder / image, stack.phase_step_s)
        self.key_rows.append((case, image, first.patient, first.study, first.series))
        if not np.isclose(first.spacing[0], first.spacing[1], rtol=1e-3):
            self.notes.add(
                "some pixels are not square; the affine carries both spacings and preprocessing makes them equal"
            )
        done = {
            frame.frame
            for frame in self.drawn.frames.get(index, [])
            if self._annotate(stack, case, name, frame, voxels)
        }
        cine = voxels.shape[3] > 1
        for t in range(voxels.shape[3]):
            if t not in done:
                frame = {"phase": "cine", "frame": t} if cine else {}
                self.training.append({"image": image, "patient": case, **frame})
                self.volumes["unlabelled cine frames" if cine else "unlabelled volumes"] += 1

    def _annotate(self, stack: Stack, case: str, name: str, frame: Annotated, voxels: np.ndarray) -> bool:
        """Write one contoured frame; whether it is among the volumes to train on."""
        file = f"{name}_frame{frame.frame:02d}.nii.gz"
        depth = frame.label_map.shape[2]
        affine = stack.affine.copy()
        affine[:3, 3] += frame.first * affine[:3, 2]
        part = voxels[:, :, frame.first : frame.first + depth, frame.frame]
        write_volume(part, affine, self.folder / "images" / file)
        write_volume(frame.label_map, affine, self.folder / "labels" / file)
        entry: dict[str, Any] = {"image": f"images/{file}", "label": f"labels/{file}", "patient": case}
        if frame.phase:
            entry["phase"] = frame.phase
        if frame.partial:
            entry["labels"] = ["lv"]
        trained = self.include_partial or not frame.partial
        (self.training if trained else self.partial).append(entry)
        kind = "labelled volumes, cavity only" if frame.partial else "labelled volumes"
        self.volumes[kind] += 1
        return trained

    def sections(self) -> dict[str, list[dict[str, Any]]]:
        """Lists of the datalist."""
        return {"training": self.training, **({"partial": self.partial} if self.partial else {})}

    def report(self, out: str, problems: list[Problem], contoured: bool) -> ImportReport:
        notes = sorted(self.notes) + sorted(set(self.drawn.notes))
        if contoured:
            notes.append(
                "ED and ES were told by the largest and smallest cavity; labelled volumes end with the contours"
            )
        if self.drawn.skipped:
            notes.append(
                f"{self.drawn.skipped} other text files beside the manual endo- and epicardial contours were left out"
            )
        if self.partial:
            notes.append(
                f"{len(self.partial)} frames without myocardium are in the list `partial`, not in `training` "
                "(--include-partial puts them there: their myocardium would count as background)"
            )
        return ImportReport(out, len(self._series), self.volumes, problems, notes)
