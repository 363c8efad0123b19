from __future__ import annotations

import re

import numpy as np
import pytest

from fcl.evaluation.drawing import PALETTE, Series, line_style
from fcl.evaluation.figures import dice_by_annotated, dice_by_steps, dice_by_volume, feature_space, over_rounds


def test_figure_is_an_element_that_html_takes_in_the_page_s_ink() -> None:
    figure = over_rounds("Loss <1>", "nats", [Series("mean & more", [(1, 3.0), (2, 2.5)])])
    assert figure.svg.startswith("<svg")
    assert figure.svg.rstrip().endswith("</svg>")
    assert "currentColor" in figure.svg
    assert "viewBox" in figure.svg
    for absent in ("http", "xmlns", "<metadata", "<?xml", "#010203", "#000000"):
        assert absent not in figure.svg, absent
    opening = figure.svg[: figure.svg.index(">")]
    assert "width=" not in opening
    assert "height=" not in opening
    for text in ("Loss &lt;1&gt;", "nats", "rounds done", "mean &amp; more"):
        assert text in figure.svg, text


def test_a_series_keeps_its_colour_in_every_figure() -> None:
    curve = [(1.0, 0.5), (2.0, 0.8)]
    alone = over_rounds("A", "y", [Series("third", curve)], [2])
    together = dice_by_annotated("B", [Series(name, curve) for name in ("first", "third")], [0, 2])
    assert PALETTE[2].lower() in alone.svg
    assert PALETTE[0].lower() not in alone.svg
    assert PALETTE[2].lower() in together.svg


def test_no_two_of_many_lines_look_alike() -> None:
    styles = [tuple(line_style(number).values()) for number in range(40)]
    assert len(set(styles)) == 40


def test_many_points_are_a_thin_line_without_markers() -> None:
    few, many = (
        over_rounds("A", "y", [Series("mean", [(x, x % 7) for x in range(count)])]).svg for count in (300, 5000)
    )
    assert few.count("<use") > 300
    assert many.count("<use") < 40  # ticks
    line = max(re.findall(r'<path d="([^"]*)"', many), key=len)
    assert 400 < len(re.findall("[ML]", line)) <= 500
    assert len(many) < len(few)
    ends = [re.findall(r"[ML] ([\d.]+) ", max(re.findall(r'<path d="([^"]*)"', svg), key=len)) for svg in (few, many)]
    assert [float(own[place]) for own in ends for place in (0, -1)] == pytest.approx(
        [float(ends[0][0]), float(ends[0][-1])] * 2, abs=2
    )


def test_names_with_a_leading_underscore_are_in_legends() -> None:
    line = Series("_slow", [(1.0, 0.5), (2.0, 0.8)])
    for figure in (
        over_rounds("A", "y", [line]),
        dice_by_annotated("B", [line], [0]),
        dice_by_steps("C", [line], [0]),
        dice_by_volume({"_slow": {"lv": [0.5]}}),
        feature_space("D", {"s": {"site": (np.zeros((2, 2)), np.zeros(2, int), ["_slow"])}}),
    ):
        assert re.search(r">_slow( \(bar: mean\))?</text>", figure.svg), figure.description


def test_ids_of_two_figures_differ() -> None:
    one, two = (over_rounds(title, "nats", [Series("mean", [(1, 3.0), (2, 2.5)])]) for title in ("A", "B"))
    clips = [set(re.findall(r'<clipPath id="([^"]+)"', figure.svg)) for figure in (one, two)]
    assert clips[0]
    assert not clips[0] & clips[1]


@pytest.mark.parametrize("spread", [(), (0.01, None), (None, None)])
def test_curve_shows_every_n_and_arm(spread: tuple[float | None, ...]) -> None:
    lines = [Series(name, [(1.0, 0.5), (6.0, 0.8)], spread) for name in ("random", "FCL")]
    figure = dice_by_annotated("local fine-tuning", lines, [0, 1])
    for text in (">1</text>", ">6</text>", ">random</text>", ">FCL</text>", "annotated patients of each site"):
        assert text in figure.svg, text
    assert figure.description == (
        "local fine-tuning: random 0.500 at 1, 0.800 at 6; FCL 0.500 at 1, 0.800 at 6"
    )  # fmt: skip


@pytest.mark.parametrize(("spread", "bands"), [((0.1, 0.1), 2), ((None, None), 0), ((), 0)])
def test_curve_over_steps_names_its_units_and_shows_the_spread(spread: tuple[float | None, ...], bands: int) -> None:
    lines = [Series(name, [(10.0, 0.5), (450.0, 0.8)], spread) for name in ("random", "FCL")]
    figure = dice_by_steps("local fine-tuning, N = 1", lines, [0, 1])
    for text in (
        ">random</text>",
        ">FCL</text>",
        "fine-tuning steps, one after the other",
        "preprocessed grid (0 to 1)",
    ):
        assert text in figure.svg, text
    assert figure.svg.count("FillBetween") == bands
    assert figure.description == (
        "local fine-tuning, N = 1, Dice by fine-tuning steps: random ends at 0.800, FCL ends at 0.800"
    )


def test_feature_space_has_a_panel_for_each_state_and_colouring() -> None:
    points = np.random.default_rng(0).normal(size=(8, 2))
    views = {"partition": (points, np.arange(8) % 2, ["part 1", "part 2"]), "site": (points, np.zeros(8, int), ["x"])}
    svg = feature_space("Space", {"before": views, "after": views}).svg
    for text in ("before, by partition", "after, by site", "part 2"):
        assert text in svg, text
