"""Plain folders of volumes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from .problems import DataProblems, Problem
from .records import VolumeRecord

SUFFIXES = (".nii.gz", ".nii")


def require_folder(dataset_dir: str | Path | None) -> Path:
    """``dataset_dir`` as an existing folder.

    Raises:
        ValueError: when it is not set.
        DataProblems: when it is missing, no folder, or empty.
    """
    if not dataset_dir:
        raise ValueError("dataset_dir is not set. Say where the data are: --dataset_dir <folder>")
    folder = Path(dataset_dir).expanduser()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "the dataset folder does not exist"
        raise DataProblems([Problem(str(folder), what, "set --dataset_dir to the folder that holds the data")])
    if not any(folder.iterdir()):
        raise DataProblems([Problem(str(folder), "the dataset folder is empty", "copy the data there, or set another")])
    return folder


def stem(file: str | Path) -> str:
    """File name without ``.nii`` or ``.nii.gz``."""
    name = Path(file).name
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.endswith(suffix)), Path(name).stem)


def read_folder(dataset_dir: str | Path | None) -> list[VolumeRecord]:
    """Every ``.nii`` and ``.nii.gz`` directly in a folder, unlabelled, sorted by name; each file is its own patient.

    Raises:
        DataProblems: when the folder is missing, holds no such file, or two files share a name.
    """
    folder = require_folder(dataset_dir)
    files = sorted(filter(_is_volume, folder.iterdir()))
    if not files:
        inner = [
            path.name for path in sorted(folder.iterdir()) if path.is_dir() and any(map(_is_volume, path.iterdir()))
        ]
        way_out = f"give its folder {inner[0]!r}" if inner else "convert the volumes to NIfTI, one file each"
        problem = Problem(str(folder), "holds no .nii or .nii.gz file", way_out)
        raise DataProblems([problem])
    problems = [
        Problem(str(b), f"has the same volume name {stem(b)!r} as {a.name}", "rename or remove one of the two")
        for a, b in pairwise(files)
        if stem(a) == stem(b)
    ]
    if problems:
        raise DataProblems(problems)
    return [VolumeRecord(str(file), None, patient=stem(file), volume=stem(file)) for file in files]


def _is_volume(file: Path) -> bool:
    return file.name.endswith(SUFFIXES) and not file.name.startswith(".")
