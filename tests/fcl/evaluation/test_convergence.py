from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import pytest

from fcl.evaluation.convergence import StepPoint, Validations, curves_by_steps, federated_scores


def _of(
    arm: str, dice: Sequence[tuple[int, Mapping[str, float]]], annotated: int = 1, mode: str = "local", site: str = "a"
) -> Validations:
    return Validations(arm, mode, annotated, 0, 0, site, dice)


def _mean(*points: tuple[int, float]) -> list[tuple[int, dict[str, float]]]:
    return [(steps, {"mean_dice": dice, "dice_lv": 0.0}) for steps, dice in points]


def test_a_line_is_the_mean_over_runs_and_sites_at_the_same_steps() -> None:
    found = curves_by_steps(
        [
            _of("random", _mean((10, 0.3), (20, 0.5))),
            _of("random", _mean((20, 0.7), (10, 0.4)), site="b"),
            _of("fcl", _mean((10, 0.6))),
        ]
    )
    assert list(found) == [("local", 1)]
    random = found["local", 1]["random"]
    assert list(random) == [10, 20]
    assert random[20] == StepPoint(pytest.approx(0.6), pytest.approx(statistics.stdev((0.5, 0.7))), 2)
    assert found["local", 1]["fcl"] == {10: StepPoint(0.6, None, 1)}


def test_figures_come_by_mode_then_n() -> None:
    one = _mean((10, 0.3))
    runs = [_of("x", one, 2, "federated"), _of("x", one, 4), _of("x", one, 1), _of("x", one, 1, "federated")]
    assert list(curves_by_steps(runs)) == [("federated", 1), ("federated", 2), ("local", 1), ("local", 4)]


def test_what_has_no_dice_is_no_line() -> None:
    assert curves_by_steps([]) == {}
    undefined = _of("random", [(10, {"dice_lv": 0.5})])
    assert curves_by_steps([undefined]) == {}
    assert list(curves_by_steps([undefined, _of("fcl", _mean((10, 0.3)))])["local", 1]) == ["fcl"]


def test_a_federation_validates_what_a_round_began_with() -> None:
    def site(**validation: float) -> dict[str, object]:
        return {"count": 4, "validation": validation}

    lines = [
        {"round": 0, "sites": {"a": site(mean_dice=0.1, count=2.0), "b": site(mean_dice=0.2, dice_lv=0.3)}},
        {"round": 1, "sites": {"a": site(), "b": {}}},
        {"round": 2, "sites": {"a": site(mean_dice=0.5)}},
    ]
    assert federated_scores(lines, 15) == {
        "a": [(0, {"mean_dice": 0.1}), (30, {"mean_dice": 0.5})],
        "b": [(0, {"mean_dice": 0.2, "dice_lv": 0.3})],
    }
    assert federated_scores([], 15) == {}
