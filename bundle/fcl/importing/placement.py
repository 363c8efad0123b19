"""NIfTI files of a source linked or copied into a new dataset, with its datalist."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from fcl.data.check import UNREADABLE, load_nifti, voxel_fault
from fcl.data.folder import SUFFIXES, stem
from fcl.data.problems import DataProblems, Problem
from fcl.data.progress import track

from .report import ImportReport
from .staging import KEY_FILE, pseudonyms, write_datalist, write_key

_NARROWER = (np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32)


@dataclass(frozen=True)
class Pair:
    """An image with what belongs to it.

    Args:
        image: file.
        label: its label map.
        patient: whose it is.
        frame: index along a fourth axis; ``None`` takes all frames of a cine.
        section: list of the source's datalist it was in; an image for tests has one channel, it is no cine.
    """

    image: Path
    label: Path | None
    patient: str
    frame: int | None = None
    section: str = "training"


def write_pairs(
    pairs: Sequence[Pair],
    root: Path,
    folder: Path,
    out: Path,
    labels: Mapping[str, int],
    copy: bool,
    key: bool,
    skip_problems: bool,
    problems: list[Problem],
    progress: bool,
    hide_names: bool,
) -> ImportReport:
    """Check the headers of all pairs, then write ``images/``, ``labels/``, ``dataset.json``, overlay and key.

    Args:
        pairs: what to take; ``problems`` holds what was wrong on the way here.
        root: folder of the source.
        folder: where to write; it becomes ``out`` later.
        labels: structure to value; with some, ``overlay.json`` is written.
        copy, key, skip_problems, progress: as in :func:`fcl.importing.import_nifti`.
        hide_names: pseudonyms in place of the source's file names.

    Raises:
        DataProblems: everything that is wrong, unless ``skip_problems`` and something is left. What is wrong with the
            voxels shows only while copying.
    """
    shown = list(track(pairs, "reading headers", "file", progress, total=len(pairs)))
    checked = [(pair, _frames(pair, problems)) for pair in shown]
    good = [(pair, frames) for pair, frames in checked if frames is not None]
    if problems and not (skip_problems and good):
        raise DataProblems(problems)
    cases = pseudonyms(pair.patient for pair, _ in good) if hide_names else {}
    volumes: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    entries: list[dict[str, Any]] = []
    sources = []
    for pair, frames in track(good, "importing", "volume", progress, total=len(good)):
        copies = _copies(pair, problems) if copy else {}
        if copies is None or (problems and not skip_problems):
            continue
        case = cases.get(pair.patient, pair.patient)
        numbers[case] += 1
        name = f"{case}_v{numbers[case]:02d}" if hide_names else stem(pair.image)
        placed = {
            kind: _place(file, folder / f"{kind}s", name, copies.get(kind)) for kind, file in _files(pair).items()
        }
        entry: dict[str, Any] = {**placed, "patient": case}
        sources.append((case, entry["image"], str(pair.image.relative_to(root)), pair.patient))
        phase = {"phase": "cine"} if len(frames) > 1 else {}
        for place in [{"frame": frame} for frame in frames] or [{}]:
            entries.append({**entry, **phase, **place})
            volumes["labelled volumes" if pair.label is not None else "unlabelled volumes"] += 1
    if problems and not (skip_problems and entries):
        raise DataProblems(problems)
    write_datalist(folder, "imported from NIfTI", labels, {"training": entries})
    if labels:
        _write_overlay(folder, labels)
    if key:
        write_key(folder, ("case", "file", "source", "patient"), sources)
    return ImportReport(str(out), len(numbers), volumes, problems, _notes(copy, key, bool(labels), hide_names))


def _frames(pair: Pair, problems: list[Problem]) -> list[int] | None:
    """Frames to list of a file: none for a 3-D one; ``None`` when it has a problem."""
    before = len(problems)
    image = _header(pair.image, problems)
    label = _header(pair.label, problems) if pair.label is not None else None
    if label is not None and len(label.shape) != 3:
        problems.append(
            Problem(str(pair.label), f"is a label map of {len(label.shape)} axes", "give one of three axes")
        )
    if image is None or len(problems) > before:
        return None
    count = image.shape[3] if len(image.shape) == 4 else 1
    name = str(pair.image)
    if len(image.shape) not in (3, 4):
        problems.append(
            Problem(name, f"has {len(image.shape)} axes", "give volumes of three, or of four with time last")
        )
    elif len(image.shape) == 4 and pair.frame is None and (pair.label is not None or pair.section == "test"):
        problems.append(Problem(name, f"has {count} channels along its fourth axis", "choose one: --channel 0"))
    elif len(image.shape) == 4 and pair.frame is not None and not 0 <= pair.frame < count:
        problems.append(
            Problem(name, f"has {count} channels, none is {pair.frame}", "choose another --channel, from 0")
        )
    if len(problems) > before:
        return None
    if len(image.shape) == 3:
        return []
    return list(range(count)) if pair.frame is None else [pair.frame]


def _header(file: Path, problems: list[Problem]) -> Any:
    if not file.is_file():
        fix = "restore the file, or take it out of dataset.json"
        problems.append(Problem(str(file), "is missing", fix))
        return None
    try:
        image = load_nifti(file)
    except UNREADABLE as error:
        problems.append(Problem(str(file), f"is no NIfTI ({type(error).__name__}: {error})", "copy it again"))
        return None
    if fault := voxel_fault(image):
        problems.append(Problem(str(file), *fault))
        return None
    return image


def _files(pair: Pair) -> dict[str, Path]:
    """``image`` and, where there is one, ``label``."""
    return {"image": pair.image, **({"label": pair.label} if pair.label is not None else {})}


def _copies(pair: Pair, problems: list[Problem]) -> dict[str, nib.Nifti1Image] | None:
    """What to write of a pair; ``None`` when a file has a problem, as an image without its label is none of its own."""
    copies = {kind: _copy(file, problems) for kind, file in _files(pair).items()}
    well = {kind: image for kind, image in copies.items() if image is not None}
    return well if len(well) == len(copies) else None


def _copy(file: Path, problems: list[Problem]) -> nib.Nifti1Image | None:
    """Voxels of a file with a new header, of geometry only."""
    try:
        image = load_nifti(file)
        voxels = np.asanyarray(image.dataobj)
    except UNREADABLE as error:
        what = f"cannot be read, truncated or corrupt ({type(error).__name__}: {error})"
        problems.append(Problem(str(file), what, "copy it again"))
        return None
    try:
        stored = nib.Nifti1Image(_narrowed(voxels), image.affine)
        stored.header.set_zooms(image.header.get_zooms())
    except (ValueError, HeaderDataError) as error:
        what = f"holds {voxels.dtype} voxels that cannot be copied ({type(error).__name__}: {error})"
        problems.append(Problem(str(file), what, "save it again, as int32 or float32"))
        return None
    stored.header.set_xyzt_units("mm", "sec")
    return stored


def _narrowed(voxels: np.ndarray) -> np.ndarray:
    """Integers of 64 bits, which nibabel refuses to write, in the smallest type that holds them all.

    Raises:
        ValueError: when none of 32 bits does.
    """
    if voxels.dtype.kind not in "iu" or voxels.dtype.itemsize < 8:
        return voxels
    low, high = voxels.min(), voxels.max()
    for kind in _NARROWER:
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return voxels.astype(kind)
    raise ValueError(f"{low} to {high} is more than 32 bits hold")


def _place(source: Path, folder: Path, name: str, copy: nib.Nifti1Image | None) -> str:
    """Write the copy, or link the file where there is none; gives its place in the datalist."""
    folder.mkdir(exist_ok=True)
    ending = next(suffix for suffix in SUFFIXES if source.name.endswith(suffix))
    target = folder / f"{name}{ending}"
    if copy is None:
        target.symlink_to(source.resolve())
    else:
        nib.save(copy, target)
    return f"{folder.name}/{target.name}"


def _write_overlay(folder: Path, labels: Mapping[str, int]) -> None:
    records = {
        "_target_": "fcl.data.read_datalist",
        "dataset_dir": "@dataset_dir",
        "datalist": "dataset.json",
        "sections": ["training"],
    }
    (folder / "overlay.json").write_text(json.dumps({"records": records, "labels": labels}, indent=4) + "\n", "utf-8")


def _notes(copy: bool, key: bool, overlay: bool, hide_names: bool) -> list[str]:
    notes = []
    if not copy and hide_names:
        notes.append("images are links: the headers are the sources' own; --copy writes headers with geometry only")
    if overlay:
        notes.append("overlay.json describes the dataset: add spacing and size, see bundle/docs/datasets.md")
    if key:
        notes.append(f"{KEY_FILE} names the sources: it must never leave the site")
    return notes
