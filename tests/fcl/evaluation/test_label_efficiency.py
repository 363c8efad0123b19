from __future__ import annotations

import math

import pytest

from fcl.evaluation.label_efficiency import Needed, patients_needed

CURVE = {1: 0.5, 4: 0.7, 2: 0.6}


@pytest.mark.parametrize(
    ("dice", "needed"),
    [
        (0.5, Needed(1)),
        (0.6, Needed(2)),
        (0.65, Needed(math.sqrt(8))),  # halfway between 2 and 4 on the logarithmic axis
        (0.7, Needed(4)),
        (0.71, Needed(4, "more than")),
        (0.4, Needed(1, "at most")),
    ],
)
def test_read_from_the_curve_and_never_beyond_its_ends(dice: float, needed: Needed) -> None:
    found = patients_needed(CURVE, dice)
    assert found.patients == pytest.approx(needed.patients)
    assert found.bound == needed.bound


def test_a_curve_that_falls_again_counts_where_it_first_reached_the_dice() -> None:
    assert patients_needed({1: 0.5, 2: 0.7, 4: 0.6, 8: 0.8}, 0.65).patients == pytest.approx(2**0.75)
    assert patients_needed({1: 0.5, 2: 0.4, 4: 0.6}, 0.5).patients == 1


def test_a_single_point_gives_bounds_only() -> None:
    assert patients_needed({3: 0.5}, 0.6) == Needed(3, "more than")


@pytest.mark.parametrize("curve", [{}, {0: 0.5}])
def test_curves_without_patients_are_refused(curve: dict[int, float]) -> None:
    with pytest.raises(ValueError, match="at least one N"):
        patients_needed(curve, 0.5)
