"""Datalists of MONAI and of the Medical Segmentation Decathlon."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .folder import require_folder, stem
from .problems import DataProblems, Problem
from .records import VolumeRecord


def read_datalist(
    dataset_dir: str | Path | None, datalist: str | Path = "dataset.json", sections: Sequence[str] = ("training",)
) -> list[VolumeRecord]:
    """Volumes of a datalist, sorted by patient and name.

    An entry is ``{"image": file, "label": file}`` with optional ``patient`` (or ``subject_id``), ``phase`` and
    ``frame`` (0-based, into a 4-D file); a bare file name is an unlabelled volume. Patients are named by text or
    whole numbers, 0 too; an entry without ``patient``, or with an empty one, is a patient of its own.

    Args:
        dataset_dir: folder that relative file names start from.
        datalist: the JSON file.
        sections: which lists of the file to read.

    Raises:
        ValueError: when ``dataset_dir`` is not set.
        DataProblems: folder missing or empty, or every entry of the datalist that cannot be used.
    """
    root = require_folder(dataset_dir)
    file = root / Path(datalist).expanduser()
    content = _read(file)
    records: dict[str, VolumeRecord] = {}
    problems: list[Problem] = []
    for section in sections:
        entries = content.get(section)
        if not isinstance(entries, list) or not entries:
            what = f"has no list {section!r}, only {sorted(content)}"
            problems.append(Problem(str(file), what, "name another in `sections`"))
            continue
        for place, entry in enumerate(entries):
            try:
                record = _record(entry, root)
                if record.volume in records:
                    raise ValueError(f"repeats the volume {record.volume!r}")
                records[record.volume] = record
            except ValueError as error:
                fix = 'write {"image": file, "label": file, "patient": name}, each file name once'
                problems.append(Problem(str(file), f"{section}[{place}] {error}", fix))
    if problems:
        raise DataProblems(problems)
    return sorted(records.values(), key=lambda record: (record.patient, record.volume))


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        fix = "set `datalist` of the reader to the JSON file"
        raise DataProblems([Problem(str(file), f"cannot be read ({error})", fix)]) from error
    except ValueError as error:
        raise DataProblems([Problem(str(file), f"is no JSON ({error})", "repair that line")]) from error
    if not isinstance(content, dict):
        what = f"holds a {type(content).__name__}, not named lists"
        raise DataProblems([Problem(str(file), what, 'write {"training": [...]}')])
    return content


def _record(entry: Any, root: Path) -> VolumeRecord:
    if isinstance(entry, str):
        entry = {"image": entry}
    image, label, frame = (entry.get(key) if isinstance(entry, dict) else None for key in ("image", "label", "frame"))
    if not isinstance(image, str) or not isinstance(label, str | None) or not isinstance(frame, int | None):
        raise ValueError(f"is {entry!r}")
    return VolumeRecord(
        image=str(root / image),
        label=None if label is None else str(root / label),
        patient=_patient(entry) or stem(image),
        volume=stem(image) if frame is None else f"{stem(image)}_t{frame:02d}",
        phase=str(entry.get("phase") or ""),
        frame=frame,
    )


def _patient(entry: dict[str, Any]) -> str:
    for key in ("patient", "subject_id"):
        value = entry.get(key)
        if value is None or value == "":
            continue
        # Python counts booleans as numbers; 1.0 beside 1 would make one patient two, on both sides of a split.
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError(f"has {key} {value!r}, which is neither text nor a whole number")
        return str(value)
    return ""
