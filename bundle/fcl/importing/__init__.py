"""From what a hospital has to what this bundle reads: DICOM, contours, NIfTI trees and MSD datasets to a datalist.

Nothing here needs torch or MONAI. Every import writes beside its target and moves at the end, so that a failed one
leaves nothing behind.
"""

from .contours import ContourSource
from .dicom import import_dicom
from .instances import KEPT, READ_ONLY, Scan, scan
from .msd import import_msd
from .nifti_tree import import_nifti
from .report import ImportReport
from .selection import Choice, Survey

__all__ = [
    "KEPT",
    "READ_ONLY",
    "Choice",
    "ContourSource",
    "ImportReport",
    "Scan",
    "Survey",
    "import_dicom",
    "import_msd",
    "import_nifti",
    "scan",
]
