"""Dice and surface distances of one case, per class, on the grid that the label was drawn on.

What an absent structure gives (Maier-Hein et al. 2024, "Metrics reloaded", warn that tools differ here):

====================  ====================  ======  ==============
truth                 prediction            Dice    HD95 and ASSD
====================  ====================  ======  ==============
present               present               value   value
present               absent                0       blank (NaN)
absent                present               0       blank (NaN)
absent                absent                blank   blank (NaN)
====================  ====================  ======  ==============

Blank values enter no mean; how many there were is counted beside every mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance
from torch import Tensor

METRICS = ("dice", "hd95_mm", "assd_mm")


@dataclass(frozen=True)
class ClassScore:
    """Scores of one class in one case; NaN where undefined (see the module's table).

    Args:
        dice: overlap, 0..1.
        hd95_mm: symmetric Hausdorff distance of the surfaces, 95th percentile, mm.
        assd_mm: average symmetric surface distance, mm.
        in_truth, in_prediction: whether the structure is there at all.
    """

    dice: float
    hd95_mm: float
    assd_mm: float
    in_truth: bool
    in_prediction: bool


@dataclass(frozen=True)
class CaseScore:
    """Scores of one volume: class name to :class:`ClassScore`, in the order of the declared labels."""

    case: str
    patient: str
    phase: str
    classes: Mapping[str, ClassScore]

    @property
    def mean_dice(self) -> float:
        """Mean over the classes that have a Dice; NaN when none has."""
        values = [score.dice for score in self.classes.values() if not math.isnan(score.dice)]
        return sum(values) / len(values) if values else math.nan


def score_volume(
    prediction: Tensor, truth: Tensor, spacing: Sequence[float], labels: Mapping[str, int]
) -> dict[str, ClassScore]:
    """Score a label map against the truth.

    Args:
        prediction: label map (H, W, D) or (H, W).
        truth: label map of the same shape.
        spacing: voxel size along each axis, mm.
        labels: class name to label value; the background is not among them.

    Returns:
        One :class:`ClassScore` per entry of ``labels``.

    Raises:
        ValueError: when the shapes differ, or ``spacing`` has not one positive value per axis.
    """
    if prediction.shape != truth.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and truth {tuple(truth.shape)} must have the same shape."
        )
    if len(spacing) != truth.ndim or not all(s > 0 and math.isfinite(s) for s in spacing):
        raise ValueError(
            f"spacing must give one positive size in mm for each of {truth.ndim} axes, got {list(spacing)!r}."
        )
    values = torch.tensor(list(labels.values()), device=truth.device).view(-1, *[1] * truth.ndim)
    predicted, true = (prediction[None] == values)[None], (truth[None] == values)[None]
    in_prediction, in_truth = (m.flatten(2).any(dim=2)[0].tolist() for m in (predicted, true))
    dice = compute_dice(predicted, true, include_background=True, ignore_empty=False)[0].tolist()
    both = [c for c, (p, t) in enumerate(zip(in_prediction, in_truth, strict=True)) if p and t]
    hd95, assd = [math.nan] * len(labels), [math.nan] * len(labels)
    if both:
        options = {"include_background": True, "spacing": list(spacing)}
        hausdorff = compute_hausdorff_distance(predicted[:, both], true[:, both], percentile=95, **options)
        average = compute_average_surface_distance(predicted[:, both], true[:, both], symmetric=True, **options)
        for c, h, a in zip(both, hausdorff[0].tolist(), average[0].tolist(), strict=True):
            hd95[c], assd[c] = h, a
    return {
        name: ClassScore(
            dice=dice[c] if in_prediction[c] or in_truth[c] else math.nan,
            hd95_mm=hd95[c],
            assd_mm=assd[c],
            in_truth=in_truth[c],
            in_prediction=in_prediction[c],
        )
        for c, name in enumerate(labels)
    }
