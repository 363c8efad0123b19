"""Scores on the native grid, label maps, tables and pictures."""

from fcl.evaluation.cases import evaluation_cases, inference_cases
from fcl.evaluation.features import write_features
from fcl.evaluation.label_maps import WriteLabelMapd, write_label_map
from fcl.evaluation.metrics import CaseScore, ClassScore, score_volume
from fcl.evaluation.recorder import ScoreRecorder
from fcl.evaluation.table import print_summary, summarise, write_csv, write_summary

__all__ = [
    "CaseScore",
    "ClassScore",
    "ScoreRecorder",
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
