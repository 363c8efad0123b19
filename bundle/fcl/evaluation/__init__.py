"""Scores on the native grid, label maps, tables and pictures.

Names load when first used: reports of runs need no MONAI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fcl.lazy import names_of

if TYPE_CHECKING:
    from fcl.evaluation.cases import evaluation_cases, inference_cases
    from fcl.evaluation.features import write_features
    from fcl.evaluation.history import ValidationHistory
    from fcl.evaluation.label_maps import WriteLabelMapd, write_label_map
    from fcl.evaluation.metrics import CaseScore, ClassScore, score_volume
    from fcl.evaluation.recorder import ScoreRecorder
    from fcl.evaluation.site_pictures import OverlayPictures, ViewPictures
    from fcl.evaluation.table import print_summary, summarise, write_csv, write_summary

__all__ = [
    "CaseScore",
    "ClassScore",
    "OverlayPictures",
    "ScoreRecorder",
    "ValidationHistory",
    "ViewPictures",
    "WriteLabelMapd",
    "evaluation_cases",
    "inference_cases",
    "print_summary",
    "score_volume",
    "summarise",
    "write_csv",
    "write_features",
    "write_label_map",
    "write_summary",
]

__getattr__ = names_of(
    __name__,
    {
        "cases": ("evaluation_cases", "inference_cases"),
        "features": ("write_features",),
        "history": ("ValidationHistory",),
        "label_maps": ("WriteLabelMapd", "write_label_map"),
        "metrics": ("CaseScore", "ClassScore", "score_volume"),
        "recorder": ("ScoreRecorder",),
        "site_pictures": ("OverlayPictures", "ViewPictures"),
        "table": ("print_summary", "summarise", "write_csv", "write_summary"),
    },
)
