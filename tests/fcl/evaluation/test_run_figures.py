from __future__ import annotations

import re

import pytest

from fcl.evaluation.drawing import Series
from fcl.evaluation.run_figures import mean_and_sites, participation, stacked_rounds, stacked_sites


def _line(label: str, count: int) -> Series:
    return Series(label, [(x, x % 7 + len(label) * (x % 3)) for x in range(count)])


@pytest.mark.parametrize("sites", [2, 9])
def test_pages_do_not_grow_with_the_rounds(sites: int) -> None:
    svg = mean_and_sites("A", "y", _line("mean", 3000), [_line("s" * n, 3000) for n in range(1, 1 + sites)]).svg
    assert svg.count("<use") < 40  # ticks
    assert max(len(re.findall("[ML]", path)) for path in re.findall(r'<path[^>]*?\sd="([^"]*)"', svg)) < 1010


def test_bars_of_many_rounds_are_one_area() -> None:
    few, many = (
        stacked_rounds("A", "s", {name: [(n + 1, 1.0) for n in range(count)] for name in ("a", "b")}).svg
        for count in (20, 1000)
    )
    assert few.count("<path") > 2 * 20
    assert many.count("<path") < 40
    assert all(f">{name}</text>" in many for name in "ab")


def test_names_with_a_leading_underscore_are_in_legends() -> None:
    for figure in (
        mean_and_sites("A", "y", None, [_line("_slow", 3)]),
        stacked_rounds("B", "s", {"_slow": [(1, 1.0)]}),
        stacked_sites("C", "s", {"_slow": {"s": 1.0}}),
    ):
        assert ">_slow</text>" in figure.svg, figure.description
    assert ">answered</text>" in participation([(1, {"_slow": "answered"})]).svg
