"""Reader of the layout of the Automated Cardiac Diagnosis Challenge (Bernard et al., IEEE TMI 2018).

``patientNNN/Info.cfg`` names the ED and ES frames (1-based); ``patientNNN_frameMM.nii.gz`` and ``..._gt.nii.gz`` are
those frames and their labels; ``patientNNN_4d.nii.gz``, where present, is the whole cine.
"""

from __future__ import annotations

from pathlib import Path

from .check import find_problems, load_nifti
from .folder import SUFFIXES, require_folder
from .problems import DataProblems, Problem
from .records import VolumeRecord

PHASES = ("ED", "ES")


def read_acdc(dataset_dir: str | Path | None, cine: bool = True) -> list[VolumeRecord]:
    """Volumes of a folder in ACDC's layout, sorted by patient and name.

    A frame without a ``_gt`` file is an unlabelled volume. Cine frames are unlabelled; the ED and ES frames, which have
    files of their own, are not taken from the cine a second time.

    Args:
        dataset_dir: folder that holds the ``patientNNN`` folders.
        cine: also read ``patientNNN_4d.nii.gz`` where there is one.

    Raises:
        ValueError: when ``dataset_dir`` is not set.
        DataProblems: folder missing or empty, no patients, ``Info.cfg`` missing or unusable; files that can be read
            are then checked as well, so that one run reports all that can be known.
    """
    folder = require_folder(dataset_dir)
    patients = sorted(path for path in folder.iterdir() if path.is_dir() and path.name.startswith("patient"))
    if not patients:
        nested = sorted({path.parent.name for path in folder.glob("*/patient*") if path.is_dir()})
        fix = f"set --dataset_dir to its folder {nested[0]!r}" if nested else "ACDC's layout is patientNNN/Info.cfg"
        raise DataProblems([Problem(str(folder), "holds no patientNNN folder", fix)])
    records: list[VolumeRecord] = []
    problems: list[Problem] = []
    for patient in patients:
        found = _read_patient(patient, cine)
        if isinstance(found, Problem):
            problems.append(found)
        else:
            records.extend(found)
    if problems:
        raise DataProblems(problems + find_problems(records))
    return records


def _read_patient(folder: Path, cine: bool) -> list[VolumeRecord] | Problem:
    info = folder / "Info.cfg"
    if not info.is_file():
        return Problem(str(info), "is missing, so ED and ES are unknown", "write it, with an ED: and an ES: line")
    text = info.read_text(encoding="utf-8", errors="replace")
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    frames: dict[str, int] = {}
    for phase in PHASES:
        value = values.get(phase, "")
        if not value.isdecimal() or int(value) < 1:
            return Problem(str(info), f"gives {phase} as {value!r}", f"write `{phase}: <frame number from 1>`")
        frames[phase] = int(value)
    if frames["ED"] == frames["ES"]:
        return Problem(str(info), f"gives frame {frames['ED']} as both ED and ES", "correct the frame numbers")
    records = [_annotated_frame(folder, number, phase) for phase, number in frames.items()]
    cine_file = _nifti(folder, f"{folder.name}_4d")
    if cine and cine_file.is_file():
        records += _cine_frames(folder, cine_file, skip={number - 1 for number in frames.values()})
    return sorted(records, key=lambda record: record.volume)


def _annotated_frame(folder: Path, number: int, phase: str) -> VolumeRecord:
    volume = f"{folder.name}_frame{number:02d}"
    label = _nifti(folder, f"{volume}_gt")
    return VolumeRecord(
        image=str(_nifti(folder, volume)),
        label=str(label) if label.is_file() else None,
        patient=folder.name,
        volume=volume,
        phase=phase,
    )


def _cine_frames(folder: Path, file: Path, skip: set[int]) -> list[VolumeRecord]:
    try:
        shape = load_nifti(file).shape
    except Exception:
        # The reader only lists; one record makes the content check name this file beside all others.
        shape = (0, 0, 0, 1)
        skip = set()
    frames = shape[3] if len(shape) == 4 else 1
    return [
        VolumeRecord(str(file), None, folder.name, f"{folder.name}_4d_t{t:02d}", "cine", frame=t)
        for t in range(frames)
        if t not in skip or frames == 1
    ]


def _nifti(folder: Path, name: str) -> Path:
    files = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
    return next((file for file in files if file.is_file()), files[0])
