"""Evaluations of a study that never was."""

from __future__ import annotations

import math
from pathlib import Path

from fcl.evaluation import CaseScore, ClassScore, write_csv
from fcl.evaluation.study_runs import Evaluation


def score(dice: float) -> ClassScore:
    """NaN: neither in truth nor in prediction; 0: not predicted."""
    hd95 = 10 * dice if dice else math.nan
    return ClassScore(dice, hd95, 1.0, in_truth=not math.isnan(dice), in_prediction=dice > 0)


def evaluation(
    folder: Path, arm: str, dice: dict[str, dict[str, float]], annotated: int = 1, fold: int = 0, mode: str = "local",
    seed: int = 0,
) -> Evaluation:  # fmt: skip
    """``dice``: model to patient to Dice of "a"; "b" is 0.1 more, ES 0.2 less than ED."""
    files = {}
    for who, patients in dice.items():
        files[who] = folder / f"{mode}{arm}{annotated}{fold}{seed}{who}.csv"
        cases = [
            CaseScore(f"{patient}_{phase}", patient, phase, {"a": score(d - less), "b": score(d - less + 0.1)})
            for patient, d in patients.items()
            for phase, less in (("ED", 0.0), ("ES", 0.2))
        ]
        write_csv(cases, files[who])
    return Evaluation(arm, mode, annotated, fold, seed, files)
