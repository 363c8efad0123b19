from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from fcl.evaluation.metrics import CaseScore, ClassScore, score_volume

LABELS = {"rv": 1, "myo": 2, "lv": 3}


def box(shape: tuple[int, ...], low: tuple[int, ...], high: tuple[int, ...], value: int = 1) -> torch.Tensor:
    volume = torch.zeros(shape, dtype=torch.long)
    volume[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = value
    return volume


def surface_points(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Voxels of the mask with a face neighbour outside of it (or outside of the image), in mm."""
    points = []
    for index in zip(*np.nonzero(mask), strict=True):
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            neighbour = list(index)
            neighbour[axis] += step
            if not 0 <= neighbour[axis] < mask.shape[axis] or not mask[tuple(neighbour)]:
                points.append([i * s for i, s in zip(index, spacing, strict=True)])
                break
    return np.array(points)


def reference_distances(prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...]) -> tuple[float, float]:
    """HD95 and ASSD from all pairs of surface voxels."""
    p, t = surface_points(prediction, spacing), surface_points(truth, spacing)
    pairs = np.linalg.norm(p[:, None] - t[None], axis=-1)
    there, back = pairs.min(axis=1), pairs.min(axis=0)
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    return float(hd95), float(np.concatenate([there, back]).mean())


@pytest.mark.parametrize("shift", [0, 1, 3])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.5, 1.25, 8.0)])
def test_shifted_box_has_closed_form_scores(shift: int, spacing: tuple[float, float, float]) -> None:
    truth = box((20, 12, 5), (4, 3, 1), (10, 8, 4))
    prediction = box((20, 12, 5), (4 + shift, 3, 1), (10 + shift, 8, 4))
    score = score_volume(prediction, truth, spacing, {"rv": 1})["rv"]
    assert score.dice == pytest.approx((6 - shift) / 6)
    assert score.hd95_mm == pytest.approx(shift * spacing[0], abs=1e-5)
    assert (score.in_truth, score.in_prediction) == (True, True)


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_brute_force_over_surface_voxels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spacing = (1.4, 1.1, 6.0)
    prediction, truth = (torch.from_numpy(rng.integers(0, 4, (9, 8, 4))) for _ in range(2))
    scores = score_volume(prediction, truth, spacing, LABELS)
    for name, value in LABELS.items():
        p, t = (prediction == value).numpy(), (truth == value).numpy()
        hd95, assd = reference_distances(p, t, spacing)
        assert scores[name].dice == pytest.approx(2 * (p & t).sum() / (p.sum() + t.sum()), abs=1e-6)
        assert scores[name].hd95_mm == pytest.approx(hd95, rel=1e-5)
        assert scores[name].assd_mm == pytest.approx(assd, rel=1e-5)


@pytest.mark.parametrize(
    ("in_prediction", "in_truth", "dice"), [(True, False, 0.0), (False, True, 0.0), (False, False, math.nan)]
)
def test_absent_structures(in_prediction: bool, in_truth: bool, dice: float) -> None:
    there, absent = box((8, 8, 3), (2, 2, 1), (5, 5, 2)), torch.zeros(8, 8, 3, dtype=torch.long)
    score = score_volume(there if in_prediction else absent, there if in_truth else absent, (1.0, 1.0, 1.0), {"rv": 1})[
        "rv"
    ]
    assert score.dice == pytest.approx(dice, nan_ok=True)
    assert math.isnan(score.hd95_mm)
    assert math.isnan(score.assd_mm)
    assert (score.in_prediction, score.in_truth) == (in_prediction, in_truth)


def test_classes_do_not_disturb_each_other() -> None:
    truth = box((10, 10, 3), (1, 1, 0), (4, 4, 3), 1) + box((10, 10, 3), (6, 6, 0), (9, 9, 3), 3)
    prediction = box((10, 10, 3), (1, 1, 0), (4, 4, 3), 1)
    scores = score_volume(prediction, truth, (1.0, 1.0, 5.0), LABELS)
    assert scores["rv"].dice == 1.0
    assert scores["lv"].dice == 0.0
    assert math.isnan(scores["myo"].dice)


def test_two_dimensional_maps_are_scored() -> None:
    truth = box((10, 10), (2, 2), (6, 6))
    assert score_volume(truth, truth, (1.0, 2.0), {"rv": 1})["rv"] == ClassScore(1.0, 0.0, 0.0, True, True)


@pytest.mark.parametrize(
    ("shape", "spacing", "message"),
    [
        ((4, 4, 3), (1.0, 1.0, 1.0), "same shape"),
        ((4, 4, 4), (1.0, 1.0), "3 axes"),
        ((4, 4, 4), (1.0, 0.0, 1.0), "0.0"),
    ],
)
def test_bad_input_is_refused(shape: tuple[int, ...], spacing: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_volume(torch.zeros(shape), torch.zeros(4, 4, 4), spacing, LABELS)


def test_mean_dice_of_a_case_leaves_blanks_out() -> None:
    def score(dice: float) -> ClassScore:
        return ClassScore(dice, math.nan, math.nan, True, True)

    assert CaseScore(
        "c", "p", "ED", {"a": score(0.5), "b": score(math.nan), "c": score(0.7)}
    ).mean_dice == pytest.approx(0.6)
    assert math.isnan(CaseScore("c", "p", "ED", {"a": score(math.nan)}).mean_dice)
