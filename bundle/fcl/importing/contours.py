"""Contours in the layout of the Sunnybrook Cardiac Data (Radau et al., The MIDAS Journal, 2009) to label maps.

``<id>/**/IM-0001-0048-icontour-manual.txt`` is the endocardium (``i``) or epicardium (``o``) on the image with
InstanceNumber 48; other contours are counted and left out. ``link.csv`` maps ``original_id`` to ``patient_id``.

What is annotated is labelled and nothing else: a frame becomes a volume of the slices from its first to its last
contoured one, and a frame without epicardium has a cavity but no myocardium.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fcl.data.problems import Problem

from .polygons import area, inside, read_polygon
from .stacks import Stack

LABELS = {"myo": 2, "lv": 3}
_NAME = re.compile(r"IM-\d+-(\d+)-([io])contour-manual\.txt", re.IGNORECASE)
_FIX = "correct the file, or leave its frame out with --skip-problems"
# Share of a cavity that a hand may draw beyond its own epicardium.
_OVERHANG = 0.05


@dataclass(frozen=True)
class ContourSource:
    """Where contours are.

    Args:
        folder: holds one folder per original id.
        link: ``link.csv``; without it the folders are named by PatientID.
        first_pixel: how the files count the first column and row, 0 or 1; they do not say.
    """

    folder: Path
    link: Path | None = None
    first_pixel: int = 0

    def __post_init__(self) -> None:
        if self.first_pixel not in (0, 1):
            raise ValueError(f"--first-pixel must be 0 or 1, got {self.first_pixel}")


@dataclass(frozen=True)
class Annotated:
    """One contoured frame of a stack.

    Attributes:
        frame: 0-based phase.
        first: index of the first slice of ``label_map`` in the stack.
        label_map: (X, Y, slices) uint8.
        partial: the myocardium is not annotated.
        cavity: mean area inside the endocardium by slice index, mm^2.
    """

    frame: int
    first: int
    label_map: np.ndarray
    partial: bool
    cavity: Mapping[int, float]
    phase: str = ""


@dataclass
class Contours:
    """All that was found: frames by stack (index), problems, and counts for the person at the site."""

    frames: dict[int, list[Annotated]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    files: int = 0
    skipped: int = 0
    notes: list[str] = field(default_factory=list)


def read_contours(source: ContourSource, stacks: Sequence[Stack]) -> Contours:
    """Label maps of every contoured frame of the stacks."""
    result = Contours()
    patient_of = _links(source, result)
    folders = sorted(path for path in source.folder.iterdir() if path.is_dir()) if source.folder.is_dir() else []
    if not folders:
        what = "holds no folder of contours"
        result.problems.append(Problem(str(source.folder), what, "give the folder that holds <id>/.../IM-*.txt"))
    drawn: dict[int, dict[tuple[int, int], dict[str, Path]]] = defaultdict(lambda: defaultdict(dict))
    for folder in folders:
        files = _files(folder, result)
        patient = patient_of.get(folder.name, folder.name)
        own = [index for index, stack in enumerate(stacks) if stack.patient == patient]
        if files and not own:
            fix = "give its DICOM folder too, or correct the link file"
            result.problems.append(
                Problem(str(folder), f"has {len(files)} contours, but no series was taken for it", fix)
            )
        elif files:
            _place(files, own, stacks, drawn, result)
    for index in sorted(drawn):
        result.frames[index] = _frames(stacks[index], drawn[index], source.first_pixel, result)
    return result


def _links(source: ContourSource, result: Contours) -> dict[str, str]:
    if source.link is None:
        return {}
    try:
        with open(source.link, encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
        return {row["original_id"].strip(): row["patient_id"].strip() for row in rows}
    except (OSError, KeyError, AttributeError, csv.Error, UnicodeDecodeError) as error:
        what = f"is no link file ({type(error).__name__}: {error})"
        result.problems.append(Problem(str(source.link), what, "give a CSV with the columns patient_id,original_id"))
        return {}


def _files(folder: Path, result: Contours) -> list[tuple[int, str, Path]]:
    """(image number, "i" or "o", file) of the manual contours."""
    found = []
    for file in sorted(folder.rglob("*.txt")):
        match = _NAME.fullmatch(file.name)
        if match:
            found.append((int(match[1]), match[2].lower(), file))
        else:
            result.skipped += 1
    result.files += len(found)
    return found


def _place(
    files: Sequence[tuple[int, str, Path]],
    own: Sequence[int],
    stacks: Sequence[Stack],
    drawn: dict[int, dict[tuple[int, int], dict[str, Path]]],
    result: Contours,
) -> None:
    """Find the image of each contour; all contours of a folder are on one series."""
    places = {
        index: {image.number: (z, t) for z, row in enumerate(stacks[index].grid) for t, image in enumerate(row)}
        for index in own
    }
    hits = {index: sum(number in places[index] for number, _, _ in files) for index in own}
    best = [index for index in own if hits[index] == max(hits.values())]
    if len(best) > 1:
        what = f"fits {len(best)} series of its patient by image number alone"
        fix = "choose one with --series-description"
        result.problems.append(Problem(str(files[0][2].parent), what, fix))
        return
    for number, kind, file in files:
        place = places[best[0]].get(number)
        if place is None:
            fix = "correct its name, or the link file; the number is that of InstanceNumber"
            result.problems.append(Problem(str(file), f"is on image {number}, which {stacks[best[0]].name} lacks", fix))
        elif kind in drawn[best[0]][place]:
            result.problems.append(Problem(str(file), f"is the second of its kind on image {number}", "keep one"))
        else:
            drawn[best[0]][place][kind] = file


def _frames(
    stack: Stack, drawn: Mapping[tuple[int, int], Mapping[str, Path]], first_pixel: int, result: Contours
) -> list[Annotated]:
    frames = []
    for t in sorted({frame for _, frame in drawn}):
        slices = {z: files for (z, frame), files in drawn.items() if frame == t}
        annotated = _frame(stack, t, slices, first_pixel, result)
        if annotated is not None:
            frames.append(annotated)
    return _with_phases(frames)


def _frame(
    stack: Stack, t: int, slices: Mapping[int, Mapping[str, Path]], first_pixel: int, result: Contours
) -> Annotated | None:
    """One frame; ``None`` when it has a problem, which is then on the list."""
    size = stack.grid[0][0].size
    before = len(result.problems)
    polygons: dict[int, dict[str, np.ndarray]] = defaultdict(dict)
    for z, files in slices.items():
        for kind, file in files.items():
            try:
                polygons[z][kind] = read_polygon(file, size, first_pixel)
            except ValueError as error:
                result.problems.append(Problem(str(file), str(error), _FIX))
    where = f"{stack.name}, frame {t + 1}"
    both = sorted(z for z, files in slices.items() if {"i", "o"} <= set(files))
    chosen = both or sorted(z for z, files in slices.items() if "i" in files)
    if not chosen:
        result.problems.append(Problem(where, "has an epicardium but no endocardium", _FIX))
        return None
    if gaps := sorted(set(range(chosen[0], chosen[-1] + 1)) - set(chosen)):
        missing = ", ".join(str(z + 1) for z in gaps)
        what = f"has no {'pair of contours' if both else 'contour'} on slice {missing}, between contoured ones"
        result.problems.append(
            Problem(where, what, "draw what is missing, or leave the frame out with --skip-problems")
        )
    if outside := sorted(set(slices) - set(range(chosen[0], chosen[-1] + 1))):
        result.notes.append(f"{len(outside)} slices with one contour beyond the first or last pair were not taken")
    if len(result.problems) > before:
        return None
    label_map = np.zeros((size[1], size[0], len(chosen)), np.uint8)
    cavity = {}
    for place, z in enumerate(chosen):
        endo = inside(polygons[z]["i"], size)
        if both:
            epi = inside(polygons[z]["o"], size)
            if np.count_nonzero(endo & ~epi) > _OVERHANG * np.count_nonzero(endo):
                file = slices[z]["i"]
                result.problems.append(Problem(str(file), "does not lie inside the epicardium of its image", _FIX))
            label_map[epi, place] = LABELS["myo"]
        label_map[endo, place] = LABELS["lv"]
        if not endo.any():
            result.problems.append(Problem(str(slices[z]["i"]), "encloses no pixel centre", _FIX))
        cavity[z] = area(polygons[z]["i"]) * float(np.prod(stack.grid[z][t].spacing))
    return None if len(result.problems) > before else Annotated(t, chosen[0], label_map, not both, cavity)


def _with_phases(frames: Sequence[Annotated]) -> list[Annotated]:
    """ED is the frame with the largest cavity, ES the one with the smallest, on the slices that all of them share."""
    shared = set.intersection(*(set(frame.cavity) for frame in frames)) if frames else set()
    sizes = [sum(frame.cavity[z] for z in shared) for frame in frames]
    if len(frames) < 2 or not shared or min(sizes) == max(sizes):
        return list(frames)
    names = {int(np.argmax(sizes)): "ED", int(np.argmin(sizes)): "ES"}
    return [
        Annotated(f.frame, f.first, f.label_map, f.partial, f.cavity, names.get(index, ""))
        for index, f in enumerate(frames)
    ]
