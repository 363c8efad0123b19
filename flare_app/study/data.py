"""The study's patients: which there are, to which site and fold each belongs, and whether a folder fits them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fcl
from flare_app.storage import replacing
from flare_app.study.settings import Selection, Study, StudyError, read_kept

STUDY_FILE = "study.json"
SPLIT_FILE = "split.json"


@dataclass(frozen=True)
class Cohort:
    """The patients of a study.

    Args:
        dataset_dir: folder that holds them.
        split_file: in the study's folder.
        split: its content.
        patients, volumes, labelled: counts of what the split names.
    """

    dataset_dir: Path
    split_file: Path
    split: Mapping[str, Any]
    patients: int
    volumes: int
    labelled: int

    @property
    def sites(self) -> list[str]:
        return list(self.split["sites"])

    def held_out(self, fold: int) -> int:
        """Patients of all sites in a fold."""
        return sum(len(site["folds"][fold]) for site in self.split["sites"].values())


def prepare_cohort(
    study: Study, chosen: Selection, out: Path, dataset_dir: Path | None, split_file: Path | None, tie: bool = True
) -> Cohort:
    """Read the data set, divide its patients, and tie the study's folder to both.

    Args:
        study, chosen: settings and what is asked for.
        out: the study's folder; keeps ``split.json`` and ``study.json``.
        dataset_dir: of the data; None where the study makes a phantom.
        split_file: to take instead of dividing anew.
        tie: whether ``out`` may hold no other study from now on; else it is only looked at.

    Raises:
        StudyError: when data, split and what is asked for do not fit together, ``out`` is of another study, or
            what ties it to one cannot be read.
        fcl.data.DataProblems: with everything that is wrong with the folder or the split.
    """
    from fcl.data import make_split, read_split, write_split

    if dataset_dir is None:
        if study["phantom"] is None:
            raise StudyError("name the folder of the data: --dataset_dir DIR")
        dataset_dir = _phantom(study)
        split_file = split_file or dataset_dir / SPLIT_FILE
    records = _records(study, dataset_dir)
    if split_file is not None:
        split = read_split(split_file)
    else:
        patients = _enough(study, sorted({record.patient for record in records}))
        split = make_split(patients, study["sites"], study["folds"], study["split_seed"])
    _check(study, chosen, split, records)
    named = {patient for site in split["sites"].values() for fold in site["folds"] for patient in fold}
    own = [record for record in records if record.patient in named]
    identity = _identity(study["data"], own, split)
    known = _tied_to(out / STUDY_FILE)
    if known is not None:
        _refuse_another(out, known, identity)
    if tie:
        if known != identity:
            with replacing(out / STUDY_FILE) as stream:
                stream.write((json.dumps(identity, indent=2) + "\n").encode())
        write_split({"description": "", "seed": 0, **split}, out / SPLIT_FILE)
    labelled = sum(record.label is not None for record in own)
    return Cohort(dataset_dir, out / SPLIT_FILE, split, len(named), len(own), labelled)


def _phantom(study: Study) -> Path:
    from fcl.data import ensure_phantom

    counts = {"sites": study["sites"], "patients": study["patients"] or study["folds"], "folds": study["folds"]}
    return Path(ensure_phantom(**counts, **study["phantom"]))


def _records(study: Study, dataset_dir: Path) -> Sequence[Any]:
    """What the overlay of the data set finds in the folder."""
    from monai.bundle import ConfigParser

    configs = fcl.bundle_root() / "configs"
    overlay = configs / "data" / f"{study['data']}.json"
    if not overlay.is_file():
        known = ", ".join(sorted(path.stem for path in overlay.parent.glob("*.json")))
        raise StudyError(f"there is no data set {study['data']!r} in bundle/configs/data; choose from {known}")
    parser = ConfigParser()
    parser.read_config([str(configs / "finetune.json"), str(overlay)])
    parser.update({**study["set"], "dataset_dir": str(dataset_dir)})
    return parser.get_parsed_content("records")


def _enough(study: Study, patients: Sequence[str]) -> list[str]:
    """The patients to divide: all, or as many as the study wants, drawn by its seed."""
    import numpy as np

    if study["patients"] is None:
        return list(patients)
    wanted = study["sites"] * study["patients"]
    if wanted > len(patients):
        fitting = len(patients) // study["sites"]
        raise StudyError(
            f"the study wants {study['sites']} sites of {study['patients']} patients, {wanted} in all, but the folder "
            f"holds {len(patients)}: --set patients={fitting} (and folds and annotated to fit), or fewer sites"
        )
    drawn = np.random.default_rng(study["split_seed"]).permutation(len(patients))[:wanted]
    return sorted(patients[i] for i in drawn)


def _check(study: Study, chosen: Selection, split: Mapping[str, Any], records: Sequence[Any]) -> None:
    annotated = {record.patient for record in records if record.label is not None}
    problems = []
    if len(split["sites"]) != study["sites"]:
        problems.append(f"the split has {len(split['sites'])} sites, the study {study['sites']}: --set sites=…")
    for name, site in split["sites"].items():
        if len(site["folds"]) != study["folds"]:
            problems.append(
                f"{name} has {len(site['folds'])} folds in the split, the study {study['folds']}: --set folds=…"
            )
            continue
        for fold in chosen.folds:
            training = [p for number, group in enumerate(site["folds"]) if number != fold for p in group]
            own = len(annotated.intersection(training))
            problems += [
                f"N={count} annotated patients are asked for, but {name} has {own} to train on when fold {fold} is "
                f"held out: --annotated up to {own}"
                for count in chosen.annotated
                if count > own
            ]
    if problems:
        raise StudyError("\n".join(problems))


def _identity(data: str, records: Sequence[Any], split: Mapping[str, Any]) -> dict[str, Any]:
    files = [[r.volume, Path(r.image).stat().st_size, _digest(r.label) if r.label else None] for r in records]
    return {
        "data": data,
        "files": hashlib.sha256(json.dumps(sorted(files)).encode()).hexdigest()[:12],
        "sites": {name: site["folds"] for name, site in split["sites"].items()},
    }


def _tied_to(file: Path) -> dict[str, Any] | None:
    """What the folder is tied to; None as long as it is to nothing."""
    return read_kept(file, dict) if file.is_file() else None


def _refuse_another(out: Path, known: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """A folder whose cells are of other patients or labels: their results could not be compared."""
    words = {"data": "another data set", "files": "other files", "sites": "another split into sites and folds"}
    differing = [word for key, word in words.items() if known.get(key) != identity[key]]
    if differing:
        raise StudyError(
            f"{out} holds a study of {' and '.join(differing)}, which cannot be continued with this one. To start "
            f"afresh name another folder with --out, or delete this one"
        )


def _digest(file: str | Path) -> str:
    """Of its content: a redrawn label may be as long as the one before."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
