from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from fcl.evaluation.metrics import CaseScore, ClassScore
from fcl.evaluation.overlays import choose_cases, choose_slices, crop_box, draw_case


def case(name: str, dice: float) -> CaseScore:
    return CaseScore(name, name, "ED", {"rv": ClassScore(dice, 1.0, 1.0, True, True)})


@pytest.mark.parametrize(
    ("dice", "expected"),
    [
        ([], {}),
        ([math.nan], {}),
        ([0.5], {"worst": "c0"}),
        ([0.9, 0.2], {"worst": "c1", "best": "c0"}),
        ([0.5, 0.9, 0.1, math.nan], {"worst": "c2", "median": "c0", "best": "c1"}),
    ],
)
def test_worst_median_and_best_are_chosen(dice: list[float], expected: dict[str, str]) -> None:
    cases = [case(f"c{i}", value) for i, value in enumerate(dice)]
    assert {rank: chosen.case for rank, chosen in choose_cases(cases).items()} == expected


def test_slices_lie_where_structures_are() -> None:
    truth = np.zeros((4, 4, 12))
    truth[1, 1, 3:9] = 1
    assert choose_slices(truth, 3) == [4, 6, 8]
    assert choose_slices(np.zeros((4, 4, 2)), 3) == [0, 1]


def test_box_has_the_margin_in_mm() -> None:
    labels = np.zeros((40, 60, 2), dtype=bool)
    labels[20:23, 30:33] = True
    assert crop_box(labels, (2.0, 1.0), margin_mm=10) == (slice(15, 28), slice(20, 43))
    assert crop_box(np.zeros((4, 4, 2), dtype=bool), (1.0, 1.0)) == (slice(None), slice(None))


def test_picture_shows_truth_and_prediction(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = np.zeros((30, 40, 6), dtype=np.uint8)
    truth[10:20, 10:20, 1:5] = 1
    image = rng.normal(size=truth.shape)
    for name, prediction in (("same", truth), ("empty", np.zeros_like(truth))):
        maps = {"truth": truth, "prediction": prediction}
        draw_case(image, maps, (1.5, 1.5, 8.0), {"rv": 1}, "case", tmp_path / f"{name}.png")
    same, empty = imread(tmp_path / "same.png"), imread(tmp_path / "empty.png")
    assert same.shape == empty.shape
    changed = np.flatnonzero((same != empty).any(axis=(0, 2)))
    # Only the third column, the prediction's, differs.
    assert changed.min() > same.shape[1] * 0.6
