"""Which volumes an evaluation or inference runs on."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fcl.data import VolumeRecord, check_records, read_split
from fcl.data.splits import USED_SPLIT

logger = logging.getLogger(__name__)


def evaluation_cases(
    validation: Sequence[VolumeRecord],
    everything: Sequence[VolumeRecord],
    subset: Literal["validation", "all"],
    labels: Mapping[str, int],
    weights: str | os.PathLike[str] | None = None,
) -> list[dict[str, Any]]:
    """Items for a MONAI dataset: ``image``, ``truth`` (the untouched label file), ``volume``, ``patient``, ``phase``.

    Args:
        validation: the split's held-out volumes.
        everything: all volumes of the folder (or site).
        subset: which of the two to evaluate on; volumes without label are left out.
        labels: declared classes, for the check of the files.
        weights: file of the model, where folds were drawn anew: what it was fine-tuned on is no validation, and of
            ``"all"`` a warning says how much of it that is.

    Raises:
        ValueError: on another subset, or when it has no labelled volume, or ones that the model was fine-tuned on.
        fcl.data.DataProblems: with everything that is wrong with the files.
    """
    if subset not in ("validation", "all"):
        raise ValueError(f"subset must be 'validation' or 'all', got {subset!r}.")
    chosen = validation if subset == "validation" else everything
    labelled = [record for record in chosen if record.label is not None]
    if not labelled:
        raise ValueError(
            f"subset {subset!r} has {len(chosen)} volumes, none with a label: check split_file, site and fold, "
            "or take --subset all."
        )
    used = Path(weights).with_name(USED_SPLIT) if weights is not None else None
    if used is not None and used.exists():
        _tell_seen(labelled, used, subset)
    elif subset == "all":
        logger.info("evaluating on all volumes of the folder: if some trained the model, the scores flatter it")
    check_records(labelled, partitions=1, labels=labels, progress=True)
    items = [record.as_item() for record in labelled]
    return [{**{k: v for k, v in item.items() if k != "label"}, "truth": item["label"]} for item in items]


def _tell_seen(records: Sequence[VolumeRecord], file: Path, subset: str) -> None:
    """Refuse to call validation, or warn of, patients that the split beside the weights does not hold out."""
    used = read_split(file)
    held_out = used.get("held_out")
    folds = [pair for content in used["sites"].values() for pair in enumerate(content["folds"])]
    seen = {patient for number, fold in folds if number != held_out for patient in fold}
    patients = {record.patient for record in records}
    count = len(patients & seen)
    if not count:
        return
    were = "was" if count == 1 else "were"
    found = (
        f"{count} of the {len(patients)} patients to score {were} not held out when the model beside {file} was trained"
    )
    rest = "" if held_out is None else f"--split_file {file} --fold {held_out}"
    if subset == "all":
        logger.warning("%s: the scores flatter it. %s", found, f"Those that were: {rest}" if rest else "None were")
        return
    way_out = (
        f"Score the patients that were: {rest}"
        if rest
        else "That training held none out: --subset all scores all patients, and flatters the model"
    )
    raise ValueError(f"{found}. {way_out}")


def inference_cases(records: Sequence[VolumeRecord]) -> list[dict[str, Any]]:
    """Items for a MONAI dataset: ``image``, ``volume``, ``patient``, ``phase``.

    Raises:
        fcl.data.DataProblems: with everything that is wrong with the files.
    """
    check_records(records, partitions=1, labels=None, progress=True)
    return [{k: v for k, v in record.as_item().items() if k != "label"} for record in records]
