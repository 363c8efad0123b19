"""A dataset as its overlay describes it, without building networks or caches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

import fcl
import fcl.data
from fcl.config.errors import root_cause
from fcl.config.guard import check_overlays

_BASE = "pretrain"


@dataclass(frozen=True)
class DatasetDescription:
    """What the base configuration and one overlay say.

    Attributes:
        records: all volumes.
        split: those of the site, divided; ``None`` when the data cannot be divided as asked.
        undivided: why not; else empty.
        labels: structure to value.
        partitions: S.
        slice_axis: which axis of the files counts slices.
    """

    records: list[fcl.data.VolumeRecord]
    split: fcl.data.SiteSplit | None
    undivided: str
    labels: dict[str, int]
    partitions: int
    slice_axis: int


def describe_dataset(data: str | None, overrides: Mapping[str, Any]) -> DatasetDescription:
    """Read an overlay over ``pretrain.json`` and list its volumes.

    Args:
        data: name of a file in the bundle's ``configs/data`` without ``.json``, or the path of a JSON file.
        overrides: keys set on top, e.g. ``dataset_dir``, ``split_file``, ``site``, ``fold``.

    Raises:
        ValueError: unknown overlay or keys.
        fcl.data.DataProblems: what the reader of the overlay finds.
    """
    configs = fcl.bundle_root() / "configs"
    files = [configs / f"{_BASE}.json"] + ([overlay_file(data)] if data is not None else [])
    parser = ConfigParser(globals={"fcl": "fcl"})
    parser.read_config([str(file) for file in files])
    parser.update(dict(overrides))
    check_overlays(parser, _BASE)
    try:
        records = parser.get_parsed_content("records")
    except RuntimeError as error:  # MONAI's, around the reader's own
        raise root_cause(error) from None
    split, undivided = None, ""
    try:
        split = parser.get_parsed_content("site_split")
    except (RuntimeError, ValueError) as error:
        undivided = str(root_cause(error))
    return DatasetDescription(
        records=records,
        split=split,
        undivided=undivided,
        labels=parser.get_parsed_content("labels"),
        partitions=parser.get_parsed_content("partitions"),
        slice_axis=parser.get_parsed_content("slice_axis"),
    )


def overlay_file(data: str) -> Path:
    """File of an overlay.

    Raises:
        ValueError: when there is none, naming those that the bundle has.
    """
    folder = fcl.bundle_root() / "configs" / "data"
    candidates = [Path(data).expanduser(), folder / f"{data}.json"]
    for file in candidates:
        if file.is_file():
            return file
    known = ", ".join(sorted(file.stem for file in folder.glob("*.json")))
    raise ValueError(f"no dataset {data!r}: give one of {known}, or the path of a JSON overlay")
