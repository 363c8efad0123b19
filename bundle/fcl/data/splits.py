"""Which patient belongs to which site and fold, as a JSON file that a person can read and edit.

    python -m fcl.data.splits --dataset_dir <folder> --sites 10 --folds 4 --seed 0 --out split.json

File: ``{"description": str, "seed": int, "sites": {"site-1": {"folds": [[patient, ...], ...]}, ...}}``. Sites are
named as FLARE's simulator names its clients. With ``fold`` set to ``i``, fold ``i`` is for validation, the others for
training. The file that a fine-tuning leaves beside its model also says which fold that was: ``"held_out": i``, or null.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from fcl.config.options import unless

from .acdc import read_acdc
from .problems import DataProblems, Problem
from .records import VolumeRecord

logger = logging.getLogger(__name__)

USED_SPLIT = "split_used.json"  # beside a model: the division that it was fine-tuned with
# Byte-identical images in ACDC: apart, one would be trained on and the other validated on.
ACDC_TWINS = (("patient074", "patient076"),)
_TOLD = ("description", "seed", "held_out")


@dataclass(frozen=True)
class SiteSplit:
    """A site's volumes.

    Attributes:
        train: volumes to train on; with ``annotated``, labelled ones of the chosen patients only.
        validation: volumes of the held-out fold.
        records: every volume of the site, whatever fold and ``annotated`` are, so that all of a study's runs share one
            slice cache.
        division: sites and folds that all of this comes of, in a split file's form, with the fold that was held out.
        oddities: what in the split file is worth a look.
    """

    train: list[VolumeRecord]
    validation: list[VolumeRecord]
    records: list[VolumeRecord]
    division: dict[str, Any]
    oddities: list[Problem]

    @property
    def train_volumes(self) -> list[str]:
        """Names of the volumes in ``train``, for ``SliceDataset(volumes=...)``."""
        return [record.volume for record in self.train]

    @property
    def validation_volumes(self) -> list[str]:
        """Names of the volumes in ``validation``."""
        return [record.volume for record in self.validation]

    @property
    def unlabelled_volumes(self) -> list[str]:
        """Names of the training patients' volumes that supervised training leaves aside: those without label and, with
        ``annotated``, all that were not chosen, whose labels count as unknown. A validation patient has none here."""
        held_out = {record.patient for record in self.validation}
        annotated = {record.volume for record in self.train if record.label is not None}
        return [
            record.volume
            for record in self.records
            if record.patient not in held_out and record.volume not in annotated
        ]


def make_split(
    patients: Iterable[str],
    sites: int,
    folds: int,
    seed: int = 0,
    together: Sequence[Sequence[str]] = (),
) -> dict[str, Any]:
    """Divide patients over sites and folds; sizes differ by one at most, as far as ``together`` lets them.

    Args:
        patients: names, in any order.
        sites: C, number of sites, named ``site-1`` to ``site-C``.
        folds: folds per site.
        seed: of the division.
        together: groups of patients that stay in one site and fold, beside ACDC's twins, which always do; groups
            that share a patient become one.

    Raises:
        ValueError: too few patients to fill every fold of every site, or ``together`` names others than ``patients``.
    """
    names = sorted(set(patients))
    if sites < 1 or folds < 1:
        raise ValueError(f"sites and folds must be at least 1, got {sites} and {folds}")
    # A misspelt name would part a group without a word.
    if strange := sorted({name for group in together for name in group} - set(names)):
        raise ValueError(f"the data lack patients that are to stay together: {strange}. Correct or remove these names")
    rng = np.random.default_rng(seed)
    by_site = _divide(_groups(names, [*ACDC_TWINS, *together]), sites, rng)
    content: dict[str, Any] = {}
    for number, groups in enumerate(by_site, 1):
        members = _divide(groups, folds, rng)
        if not all(members):
            raise ValueError(
                f"{len(names)} patients are too few for {sites} sites of {folds} folds: site-{number} has "
                f"{sum(map(len, groups))} patients in {len(groups)} groups that stay together. Use fewer sites or folds"
            )
        content[f"site-{number}"] = {"folds": [sorted(p for group in fold for p in group) for fold in members]}
    description = f"{len(names)} patients over {sites} sites, {folds} folds each; edit freely, each patient once"
    return {"description": description, "seed": seed, "sites": content}


def write_split(split: dict[str, Any], path: str | Path) -> None:
    """Write ``split`` with one fold per line; the folder is made."""
    sites = ",\n".join(
        f'    {json.dumps(site)}: {{"folds": [\n'
        + ",\n".join(f"      {json.dumps(fold)}" for fold in content["folds"])
        + "\n    ]}"
        for site, content in split["sites"].items()
    )
    head = "".join(f"  {json.dumps(key)}: {json.dumps(split[key])},\n" for key in _TOLD if key in split)
    file = Path(path).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'{{\n{head}  "sites": {{\n{sites}\n  }}\n}}\n', encoding="utf-8")


def read_split(path: str | Path) -> dict[str, Any]:
    """Read a split file and check it.

    Raises:
        DataProblems: with everything wrong in the file.
    """
    file = Path(path).expanduser()
    try:
        split = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        fix = "make one: python -m fcl.data.splits --dataset_dir <folder> --sites C --out <file>"
        raise DataProblems([Problem(str(file), "the split file does not exist", fix, "split")]) from None
    except ValueError as error:
        raise DataProblems([Problem(str(file), f"is no JSON ({error})", "repair that line", "split")]) from error
    problems = [Problem(str(file), what, fix, "split") for what, fix in _faults(split)]
    if problems:
        raise DataProblems(problems)
    return split


def site_records(
    records: Sequence[VolumeRecord],
    split_file: str | Path | None = None,
    site: str | None = None,
    fold: int | str | None = 0,
    folds: int = 4,
    seed: int = 0,
    annotated: int | str | None = None,
) -> SiteSplit:
    """A site's training and validation volumes.

    Args:
        records: all volumes that the reader found.
        split_file: sites and folds; ``None`` or ``"none"``: all patients are of this site, ``folds`` folds are drawn by
            ``seed``.
        site: site of the split file; ``None`` or ``"all"``: all of its sites together.
        fold: held-out fold, 0-based; ``None`` or ``"none"``: train on everything.
        folds: number of folds, where there is no split file.
        seed: of the folds and of the choice of annotated patients.
        annotated: N, keep for training only the labelled volumes of N training patients (of N in each site, where
            several are taken together); ``None`` or ``"all"``: all volumes. The choice for N is part of that for N + 1.

    Raises:
        DataProblems: the split file is wrong or names patients that ``records`` lack.
        ValueError: a site, fold or number of annotated patients that does not exist.
    """
    split_file, fold, annotated = unless("none", split_file), unless("none", fold), unless("all", annotated)
    if not isinstance(split_file, str | Path | None):
        raise ValueError(f"split_file must be a path, or the word none, got {split_file!r}")
    if annotated is not None and not (_whole(annotated) and annotated >= 1):
        raise ValueError(f"annotated must be at least 1, or the word all, got {annotated!r}")
    patients = {record.patient for record in records}
    oddities: list[Problem] = []
    if split_file is None:
        split = make_split(patients, 1, folds if fold is not None else 1, seed)
        chosen = split["sites"]
    else:
        split = read_split(split_file)
        chosen = _chosen_sites(split["sites"], site, split_file)
        missing = sorted(_members(chosen) - patients)
        if missing:
            fix = "set --dataset_dir to the folder that holds them, set `site`, or edit the file"
            what = f"names patients that the data lack: {missing}"
            raise DataProblems([Problem(str(split_file), what, fix, "split")])
        oddities += _in_no_fold(patients - _members(split["sites"]), split_file)
    train: list[VolumeRecord] = []
    validation: list[VolumeRecord] = []
    own: set[str] = set()
    for content in chosen.values():
        held_out, others = _hold_out(content["folds"], fold)
        own |= held_out | others
        validation += [record for record in records if record.patient in held_out]
        ours = [record for record in records if record.patient in others]
        train += ours if annotated is None else _annotated(ours, annotated, seed)
    every = [record for record in records if record.patient in own]
    logger.info("%d volumes to train on, %d to validate on, of %d", len(train), len(validation), len(every))
    for oddity in oddities:
        logger.warning("Worth a look: %s", oddity)
    return SiteSplit(train, validation, every, {**split, "sites": chosen, "held_out": fold}, oddities)


def _groups(names: Sequence[str], together: Sequence[Sequence[str]]) -> list[list[str]]:
    """Patients as groups that stay together; groups that share a patient become one."""
    group_of = {name: [name] for name in names}
    for wish in together:
        present = [name for name in wish if name in group_of]
        merged = sorted({member for name in present for member in group_of[name]})
        for member in merged:
            group_of[member] = merged
    return [group for name, group in group_of.items() if group[0] == name]


def _divide(groups: Sequence[list[str]], parts: int, rng: np.random.Generator) -> list[list[list[str]]]:
    """Groups over parts: large ones first, each to the emptiest part, ties by a drawn order of parts."""
    shuffled = [groups[i] for i in rng.permutation(len(groups))]
    tie_break = rng.permutation(parts)
    result: list[list[list[str]]] = [[] for _ in range(parts)]
    for group in sorted(shuffled, key=len, reverse=True):
        emptiest = min(range(parts), key=lambda part: (sum(map(len, result[part])), tie_break[part]))
        result[emptiest].append(group)
    return result


def _faults(split: Any) -> Iterable[tuple[str, str]]:
    if not isinstance(split, dict) or not isinstance(split.get("sites"), dict) or not split["sites"]:
        yield 'has no "sites"', 'write {"sites": {"site-1": {"folds": [[patient, ...], ...]}}}'
        return
    for key in sorted(set(split) - {*_TOLD, "sites"}):
        yield f"has the unknown key {key!r}", f"known are {', '.join(_TOLD)} and sites"
    home: dict[str, str] = {}
    for site, content in split["sites"].items():
        folds = content.get("folds") if isinstance(content, dict) else None
        if not isinstance(folds, list) or not folds:
            yield f"{site} has no list of folds", '{"folds": [[patient, ...], ...]}'
            continue
        for key in sorted(set(content) - {"folds"}):
            yield f"{site} has the unknown key {key!r}", "known is folds"
        for number, fold in enumerate(folds):
            where = f"{site} fold {number}"
            if not isinstance(fold, list) or not fold or not all(isinstance(patient, str) for patient in fold):
                yield f"{where} is {fold!r}", "give at least one patient name, in quotes"
                continue
            for patient in fold:
                if patient in home:
                    yield f"{patient} is in {home[patient]} and in {where}", "keep each patient once"
                home[patient] = where
    held_out, most = split.get("held_out"), max(_fold_counts(split["sites"]), default=0)
    if held_out is not None and not (_whole(held_out) and 0 <= held_out < most):
        yield f"held_out is {held_out!r}", "write the number of a fold, from 0, or null"


def _fold_counts(sites: dict[str, Any]) -> Iterable[int]:
    for content in sites.values():
        if isinstance(content, dict) and isinstance(content.get("folds"), list):
            yield len(content["folds"])


def _members(sites: dict[str, Any]) -> set[str]:
    return {patient for content in sites.values() for fold in content["folds"] for patient in fold}


def _in_no_fold(patients: Collection[str], file: str | Path) -> Iterable[Problem]:
    if patients:
        count, shown = len(patients), sorted(patients)[:3]
        subject = "1 patient of the data is" if count == 1 else f"{count} patients of the data are"
        what = f"{subject} in no fold: {', '.join(shown)}{', …' if count > len(shown) else ''}"
        yield Problem(str(file), what, "add them to the file, unless they are to be left out", "split")


def _chosen_sites(sites: dict[str, Any], site: str | None, file: str | Path) -> dict[str, Any]:
    # A number on the command line is a text in the file.
    if site is not None and str(site) in sites:
        return {str(site): sites[str(site)]}
    if unless("all", site) is None:
        return sites
    raise ValueError(f"{file} has no site {str(site)!r}, only {sorted(sites)}. Set `site` to one of them, or to all")


def _hold_out(folds: Sequence[Collection[str]], fold: int | str | None) -> tuple[set[str], set[str]]:
    if fold is not None and not (_whole(fold) and 0 <= fold < len(folds)):
        raise ValueError(f"fold must be 0 to {len(folds) - 1}, or the word none to hold none out, got {fold!r}")
    held_out = set(folds[fold]) if fold is not None else set()
    return held_out, {patient for group in folds for patient in group} - held_out


def _whole(value: int | str | None) -> TypeGuard[int]:
    return type(value) is int


def _annotated(records: Sequence[VolumeRecord], count: int, seed: int) -> list[VolumeRecord]:
    labelled = [record for record in records if record.label is not None]
    patients = sorted({record.patient for record in labelled})
    if count > len(patients):
        raise ValueError(f"annotated is {count}, but only {len(patients)} training patients have labels")
    chosen = {patients[i] for i in np.random.default_rng(seed).permutation(len(patients))[:count]}
    return [record for record in labelled if record.patient in chosen]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a split of a folder in ACDC's layout."""
    parser = argparse.ArgumentParser(
        prog="python -m fcl.data.splits", description="Divide patients over sites and folds."
    )
    parser.add_argument("--dataset_dir", required=True, help="folder in ACDC's layout")
    parser.add_argument("--sites", type=int, required=True, help="number of sites")
    parser.add_argument("--folds", type=int, default=4, help="folds per site (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument(
        "--together",
        nargs="+",
        action="append",
        default=[],
        metavar="PATIENT",
        help="patients that share site and fold, beside ACDC's twins; may be repeated",
    )
    options = parser.parse_args(arguments)
    try:
        patients = {record.patient for record in read_acdc(options.dataset_dir, cine=False)}
        split = make_split(patients, options.sites, options.folds, options.seed, options.together)
    except ValueError as error:
        parser.error(str(error))
    write_split(split, options.out)
    print(f"{options.out}: {split['description']}")


if __name__ == "__main__":
    main()
