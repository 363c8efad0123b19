"""Datasets in the layout of the Medical Segmentation Decathlon (MSD) to a datalist. The source is only read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fcl.data.folder import stem
from fcl.data.problems import DataProblems, Problem

from .archives import opened
from .placement import Pair, write_pairs
from .report import ImportReport
from .staging import staging


def import_msd(
    source: Path,
    out: Path,
    channel: int | None = None,
    copy: bool = False,
    skip_problems: bool = False,
    progress: bool = True,
) -> ImportReport:
    """A dataset in MSD's layout under its own file names, which are public; its label table becomes an overlay.

    Volumes of the list ``test`` have no labels; they go into ``training`` as unlabelled ones.

    Args:
        source: folder with ``dataset.json``, ``imagesTr``, ``labelsTr``, or zip archive of one.
        out: new folder.
        channel: which of the channels along the fourth axis (T2, ADC, ...) to take; needed where there is one.
        copy, skip_problems, progress: as in :func:`import_nifti`.

    Raises:
        DataProblems: everything that is wrong, unless ``skip_problems``.
    """
    with staging(out) as folder, opened(source, out) as root:
        copy = copy or root != source.expanduser()
        root = _msd_root(root)
        content = _read_json(root / "dataset.json")
        problems: list[Problem] = []
        labels = _msd_labels(content, root, problems)
        pairs = _pairs_of_msd(content, root, channel, problems)
        return write_pairs(pairs, root, folder, out, labels, copy, False, skip_problems, problems, progress, False)


def _msd_root(root: Path) -> Path:
    """The folder with ``dataset.json``: ``root``, or its only sub-folder that has one, as in MSD's archives."""
    nested = [file.parent for file in sorted(root.glob("*/dataset.json"))]
    return nested[0] if not (root / "dataset.json").is_file() and len(nested) == 1 else root


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fix = "give the folder that holds MSD's dataset.json"
        raise DataProblems([Problem(str(file), f"cannot be read ({error})", fix)]) from error
    if not isinstance(content, dict):
        raise DataProblems([Problem(str(file), f"holds a {type(content).__name__}", "restore MSD's dataset.json")])
    return content


def _msd_labels(content: Mapping[str, Any], root: Path, problems: list[Problem]) -> dict[str, int]:
    """Names to values; MSD writes values to names, some later datasets names to values."""
    table = content.get("labels")
    try:
        pairs = [(k, v) if str(v).isdecimal() else (v, k) for k, v in dict(table or {}).items()]
        labels = {re.sub(r"\W+", "_", str(name).strip()).strip("_").lower(): int(value) for name, value in pairs}
    except (TypeError, ValueError):
        labels = {}
    if not any(labels.values()):
        what = f"has no table of labels ({table!r})"
        problems.append(Problem(str(root / "dataset.json"), what, 'write {"labels": {"0": "background", "1": "name"}}'))
    return {name: value for name, value in labels.items() if value}


def _pairs_of_msd(content: Mapping[str, Any], root: Path, channel: int | None, problems: list[Problem]) -> list[Pair]:
    file = str(root / "dataset.json")
    pairs = []
    for section in ("training", "test"):
        for place, entry in enumerate(content.get(section) or ()):
            entry = {"image": entry} if isinstance(entry, str) else entry
            if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
                problems.append(
                    Problem(file, f"{section}[{place}] is {entry!r}", 'write {"image": file, "label": file}')
                )
                continue
            label = root / entry["label"] if isinstance(entry.get("label"), str) else None
            pairs.append(Pair(root / entry["image"], label, stem(entry["image"]), channel, section))
    if not pairs:
        problems.append(Problem(file, "lists no volume in `training`", "restore MSD's dataset.json"))
    return pairs
