"""Volumes to slices: readers, checks, preprocessing, the slice cache, splits by site and fold, the phantom.

Names load when first used: the commands ``python -m fcl.data.splits`` and ``.phantom`` then start without
torch and MONAI, and without the warning that their module is loaded twice.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .acdc import read_acdc
    from .cache import SliceCache, VolumeInfo, build_slice_cache
    from .check import check_records
    from .datalist import read_datalist
    from .folder import read_folder
    from .phantom import ensure_phantom, generate
    from .preprocess import FrameReader, LoadFramed, OrientInPlaned
    from .problems import DataProblems, Problem
    from .records import VolumeRecord, as_items
    from .slices import SliceDataset, SliceLoader
    from .splits import SiteSplit, make_split, read_split, site_records, write_split

__all__ = [
    "DataProblems",
    "FrameReader",
    "LoadFramed",
    "OrientInPlaned",
    "Problem",
    "SiteSplit",
    "SliceCache",
    "SliceDataset",
    "SliceLoader",
    "UnlabelledSlices",
    "VolumeInfo",
    "VolumeRecord",
    "as_items",
    "build_slice_cache",
    "check_records",
    "ensure_phantom",
    "generate",
    "make_split",
    "read_acdc",
    "read_datalist",
    "read_folder",
    "read_split",
    "site_records",
    "write_split",
]

_HOMES = {
    "acdc": ("read_acdc",),
    "cache": ("SliceCache", "VolumeInfo", "build_slice_cache"),
    "check": ("check_records",),
    "datalist": ("read_datalist",),
    "folder": ("read_folder",),
    "phantom": ("ensure_phantom", "generate"),
    "preprocess": ("FrameReader", "LoadFramed", "OrientInPlaned"),
    "problems": ("DataProblems", "Problem"),
    "records": ("VolumeRecord", "as_items"),
    "slices": ("SliceDataset", "SliceLoader"),
    "splits": ("SiteSplit", "make_split", "read_split", "site_records", "write_split"),
    "unlabelled": ("UnlabelledSlices",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
