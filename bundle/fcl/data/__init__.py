"""Volumes to slices: readers, checks, preprocessing, the slice cache, splits by site and fold, the phantom.

Names load when first used: the commands ``python -m fcl.data.splits`` and ``.phantom`` then start without
torch and MONAI, and without the warning that their module is loaded twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fcl.lazy import names_of

if TYPE_CHECKING:
    from .acdc import read_acdc
    from .cache import SliceCache, VolumeInfo, build_slice_cache
    from .check import check_records
    from .datalist import read_datalist
    from .folder import read_folder
    from .identity import data_identity
    from .measures import DataStatistics
    from .phantom import ensure_phantom, generate
    from .preprocess import FrameReader, LoadFramed, OrientInPlaned
    from .problems import DataProblems, Problem
    from .records import VolumeRecord, as_items
    from .site_check import SiteCheck
    from .slices import SliceDataset, SliceLoader
    from .splits import SiteSplit, make_split, read_split, site_records, write_split

__all__ = [
    "DataProblems",
    "DataStatistics",
    "FrameReader",
    "LoadFramed",
    "OrientInPlaned",
    "Problem",
    "SiteCheck",
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
    "data_identity",
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

__getattr__ = names_of(
    __name__,
    {
        "acdc": ("read_acdc",),
        "cache": ("SliceCache", "VolumeInfo", "build_slice_cache"),
        "check": ("check_records",),
        "datalist": ("read_datalist",),
        "folder": ("read_folder",),
        "identity": ("data_identity",),
        "measures": ("DataStatistics",),
        "phantom": ("ensure_phantom", "generate"),
        "preprocess": ("FrameReader", "LoadFramed", "OrientInPlaned"),
        "problems": ("DataProblems", "Problem"),
        "records": ("VolumeRecord", "as_items"),
        "site_check": ("SiteCheck",),
        "slices": ("SliceDataset", "SliceLoader"),
        "splits": ("SiteSplit", "make_split", "read_split", "site_records", "write_split"),
        "unlabelled": ("UnlabelledSlices",),
    },
)
