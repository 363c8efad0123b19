"""Which volumes an evaluation or inference runs on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fcl.data import VolumeRecord, check_records

logger = logging.getLogger(__name__)


def evaluation_cases(
    validation: Sequence[VolumeRecord],
    everything: Sequence[VolumeRecord],
    subset: Literal["validation", "all"],
    labels: Mapping[str, int],
) -> list[dict[str, Any]]:
    """Items for a MONAI dataset: ``image``, ``truth`` (the untouched label file), ``volume``, ``patient``, ``phase``.

    Args:
        validation: the split's held-out volumes.
        everything: all volumes of the folder (or site).
        subset: which of the two to evaluate on; volumes without label are left out.
        labels: declared classes, for the check of the files.

    Raises:
        ValueError: on another subset, or when it has no labelled volume.
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
    if subset == "all":
        logger.info("evaluating on all volumes of the folder: if some trained the model, the scores flatter it")
    check_records(labelled, partitions=1, labels=labels, progress=True)
    items = [record.as_item() for record in labelled]
    return [{**{k: v for k, v in item.items() if k != "label"}, "truth": item["label"]} for item in items]


def inference_cases(records: Sequence[VolumeRecord]) -> list[dict[str, Any]]:
    """Items for a MONAI dataset: ``image``, ``volume``, ``patient``, ``phase``.

    Raises:
        fcl.data.DataProblems: with everything that is wrong with the files.
    """
    check_records(records, partitions=1, labels=None, progress=True)
    return [{k: v for k, v in record.as_item().items() if k != "label"} for record in records]
