"""Output folders that appear whole or not at all, and the key from pseudonyms to patients."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fcl.data.problems import DataProblems, Problem

KEY_FILE = "private/sources.csv"
_WARNING = "# Names the patients behind the cases. This file must never leave the site."


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A new folder beside ``out`` that takes its place at the end, or is removed when anything fails.

    Raises:
        DataProblems: when ``out`` exists and is not empty, or its parent cannot be written.
    """
    out = out.expanduser().absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataProblems([Problem(str(out), "exists already", "give --out a new folder, or remove this one")])
    folder = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise DataProblems([Problem(str(out.parent), f"cannot be written ({error})", "give another --out")]) from error
    try:
        yield folder
        if out.exists():
            out.rmdir()
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def pseudonyms(patients: Iterable[str]) -> dict[str, str]:
    """``case-0001``, ``case-0002``, ... for each patient, in an order that tells nothing of their names."""
    hidden = sorted(set(patients), key=lambda patient: hashlib.sha256(patient.encode()).digest())
    return {patient: f"case-{number:04d}" for number, patient in enumerate(hidden, 1)}


def write_key(folder: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """``private/sources.csv``, which only its owner may read; the first line says that it must not leave the site."""
    file = folder / KEY_FILE
    file.parent.mkdir(mode=0o700)
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8", newline="") as stream:
        stream.write(_WARNING + "\n")
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(rows)


def write_datalist(
    folder: Path, description: str, labels: Mapping[str, int], sections: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """``dataset.json`` in the idiom of the Medical Segmentation Decathlon, one entry a line."""
    table = {"0": "background", **{str(value): name for name, value in sorted(labels.items(), key=lambda i: i[1])}}
    lines = [f'  "description": {json.dumps(description)}', f'  "labels": {json.dumps(table)}']
    for name, entries in sections.items():
        body = ",\n".join(f"    {json.dumps(entry)}" for entry in entries)
        lines.append(f'  "{name}": [\n{body}\n  ]' if entries else f'  "{name}": []')
    (folder / "dataset.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
