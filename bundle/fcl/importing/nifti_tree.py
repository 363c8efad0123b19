"""A folder tree of NIfTI files to a datalist under running pseudonyms. The source is only read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from fcl.data.folder import SUFFIXES, stem
from fcl.data.problems import Problem

from .archives import opened
from .placement import Pair, write_pairs
from .report import ImportReport
from .staging import staging


def import_nifti(
    source: Path,
    out: Path,
    label_suffix: str | None = None,
    label_dir: Path | None = None,
    patient: str | None = None,
    labels: Mapping[str, int] | None = None,
    copy: bool = False,
    key: bool = True,
    skip_problems: bool = False,
    progress: bool = True,
    channel: int | None = None,
) -> ImportReport:
    """A folder tree of NIfTI files under running pseudonyms.

    Args:
        source: folder at any depth, or zip archive of one.
        out: new folder.
        label_suffix: a label map is called as its image with this at the end, e.g. ``_gt``, and lies beside it.
        label_dir: label maps lie here instead, under the path (and, with ``label_suffix``, suffix) of their image.
        patient: regular expression on the path below ``source`` whose first group names the patient; volumes of one
            patient are then never divided. Without it each file is a patient of its own.
        labels: structure to value, written into the datalist and an overlay.
        copy: copy, with a header that holds geometry only, not link.
        key: write which file is behind which case.
        skip_problems: import what is well and give the rest in the report.
        progress: show bars.
        channel: which of those along a fourth axis to take; needed for an image that has several and a label map.

    Raises:
        DataProblems: everything that is wrong, unless ``skip_problems``.
        ValueError: ``patient`` is no regular expression with a group.
    """
    pattern = _pattern(patient)
    with staging(out) as folder, opened(source, out) as root:
        copy = copy or root != source.expanduser()
        problems: list[Problem] = []
        pairs = _pairs_of_tree(root, label_suffix, label_dir, pattern, channel, problems)
        return write_pairs(pairs, root, folder, out, labels or {}, copy, key, skip_problems, problems, progress, True)


def _pattern(patient: str | None) -> re.Pattern[str] | None:
    if patient is None:
        return None
    try:
        pattern = re.compile(patient)
    except re.error as error:
        raise ValueError(f"--patient {patient!r} is no regular expression: {error}") from error
    if pattern.groups < 1:
        raise ValueError(f"--patient {patient!r} needs a group that names the patient, as in '(sub-[0-9]+)'")
    return pattern


def _pairs_of_tree(
    root: Path,
    suffix: str | None,
    label_dir: Path | None,
    pattern: re.Pattern[str] | None,
    channel: int | None,
    problems: list[Problem],
) -> list[Pair]:
    files = [file for file in sorted(root.rglob("*")) if file.name.endswith(SUFFIXES) and not file.name.startswith(".")]
    labels_at = label_dir.expanduser() if label_dir is not None else None
    if labels_at is not None:
        files = [file for file in files if labels_at.resolve() not in file.resolve().parents]
    elif suffix:
        files = [file for file in files if not stem(file).endswith(suffix)]
    if not files:
        problems.append(Problem(str(root), "holds no .nii or .nii.gz image", "give the folder of the volumes"))
    pairs = []
    for file in files:
        below = file.relative_to(root)
        found = pattern.search(below.as_posix()) if pattern is not None else None
        if pattern is not None and (found is None or not found[1]):
            problems.append(
                Problem(str(file), f"does not match --patient {pattern.pattern!r}", "correct the expression")
            )
            continue
        label = None
        if suffix or labels_at is not None:
            home = labels_at / below.parent if labels_at is not None else file.parent
            candidates = [home / f"{stem(file)}{suffix or ''}{ending}" for ending in SUFFIXES]
            label = next((candidate for candidate in candidates if candidate.is_file()), None)
        pairs.append(Pair(file, label, found[1] if found is not None else below.as_posix(), channel))
    if (suffix or labels_at is not None) and pairs and not any(pair.label for pair in pairs):
        fix = "correct --label-suffix or --label-dir, or leave them out for unlabelled volumes"
        problems.append(Problem(str(root), f"has {len(pairs)} images and no label map for any of them", fix))
    return pairs
