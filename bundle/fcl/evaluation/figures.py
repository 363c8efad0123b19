"""Figures of the reports as inline SVG that takes the page's own ink, so that one serves light, dark and print."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from fcl.evaluation.overlays import COLOURS

_MARKERS = "osD^vP*X<>"
_INK = "#010203"  # stands for the page's text colour
# Told apart on white and on near-black; Okabe and Ito's first, without their yellow.
PALETTE = (*COLOURS[:6], "#8a8f00", "#8d6bd1", "#7f7f7f", "#b5651d")


@dataclass(frozen=True)
class Series:
    """A line of a figure: ``points`` are (x, y) in order, ``spread`` the half height of each point's bar."""

    label: str
    points: Sequence[tuple[float, float]]
    spread: Sequence[float | None] = ()


@dataclass(frozen=True)
class Drawing:
    """A figure as SVG elements, and what it shows in words."""

    svg: Markup
    description: str


def over_rounds(title: str, unit: str, series: Sequence[Series], colours: Sequence[int] | None = None) -> Drawing:
    """Lines over the rounds done.

    Args:
        title: of the figure.
        unit: of the y axis.
        series: at least one, each with at least one point.
        colours: place of each series in the palette; None for the first ones.
    """
    places = range(len(series)) if colours is None else colours

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for number, line in zip(places, series, strict=True):
            axes.plot(*zip(*line.points, strict=True), **_style(number), markersize=3.5, linewidth=1.7)
        _label(axes, title, "rounds done", unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(axes, series)

    last = ", ".join(f"{line.label} ends at {line.points[-1][1]:.3g}" for line in series)
    return _draw(draw, f"{title} by round: {last}", (4.8, 3.0 if len(series) < 6 else 4.0))


def dice_by_volume(dice: Mapping[str, Mapping[str, Sequence[float]]]) -> Drawing:
    """Every volume's Dice as a dot, their mean as a bar.

    Args:
        dice: arm to class to the volumes' values, 0..1; all arms with the same classes.
    """
    classes = list(next(iter(dice.values())))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for number, (arm, by_class) in enumerate(dice.items()):
            colour, shift = PALETTE[number % len(PALETTE)], (number - (len(dice) - 1) / 2) * 0.8 / len(dice)
            for place, name in enumerate(classes):
                values = list(by_class[name])
                if not values:
                    continue
                # Sideways in a fixed pattern: dots of equal Dice stay apart, and the picture repeats.
                x = [place + shift + 0.12 * ((i * 0.618) % 1 - 0.5) for i in range(len(values))]
                axes.scatter(x, values, s=16, color=colour, alpha=0.55, linewidths=0)
                axes.hlines(
                    sum(values) / len(values), place + shift - 0.14, place + shift + 0.14, colour, linewidth=2.6
                )
            axes.plot([], [], color=colour, linewidth=2.6, label=f"{arm} (bar: mean)")
        axes.set_xticks(range(len(classes)), classes)
        axes.set(xlabel="structure", ylabel="Dice (0 to 1)", ylim=(-0.02, 1.02))
        axes.grid(axis="y", color=_INK, alpha=0.12, linewidth=0.7)
        axes.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(3, len(dice)))

    return _draw(draw, "Dice of every volume by structure and arm", (7.6, 3.2))


def dice_by_annotated(title: str, curves: Sequence[Series], colours: Sequence[int]) -> Drawing:
    """Dice against annotated patients of each site, a line for each arm, its bars the spread.

    Args:
        title: of the figure.
        curves: x is N, on a logarithmic axis; at least one, each with at least one point.
        colours: place of each curve in the palette, so that an arm looks the same in every figure.
    """
    counts = sorted({x for line in curves for x, _ in line.points})

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, (line, number) in enumerate(zip(curves, colours, strict=True)):
            # A little aside of each other, or bars would hide one another.
            aside = 1 + 0.012 * (place - (len(curves) - 1) / 2)
            x, y = zip(*((n * aside, value) for n, value in line.points), strict=True)
            bars = [value or 0.0 for value in line.spread] or None
            axes.errorbar(
                x,
                y,
                yerr=bars,
                **_style(number),
                markersize=5,
                linewidth=1.7,
                capsize=3,
                elinewidth=1,
                label=line.label,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(counts))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(counts, [f"{n:g}" for n in counts])
        axes.set_xlim(counts[0] / 1.15, counts[-1] * 1.15)
        _label(axes, title, "annotated patients of each site, N", "mean Dice per volume (0 to 1)")
        columns = 1 if len(curves) < 5 else 2
        axes.legend(frameon=False, fontsize=9, loc="lower right", ncols=columns)

    said = "; ".join(f"{line.label} " + ", ".join(f"{y:.3f} at {x:g}" for x, y in line.points) for line in curves)
    return _draw(draw, f"{title}: {said}", (6.4, 4.2))


def feature_space(title: str, states: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray, list[str]]]]) -> Drawing:
    """Features in the plane: a row for each state of the network, a column for each colouring.

    Args:
        title: of the figure.
        states: row to column to points (n, 2), group of each point (n,), and the groups' names.
    """
    columns, last = list(next(iter(states.values()))), list(states)[-1]

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(states), len(columns), squeeze=False)
        for line, (state, views) in zip(grid, states.items(), strict=True):
            for axes, column in zip(line, columns, strict=True):
                points, group, names = views[column]
                for number, name in enumerate(names):
                    chosen = points[group == number]
                    colour, marker = PALETTE[number % len(PALETTE)], _MARKERS[number % len(_MARKERS)]
                    axes.scatter(*chosen.T, s=9, color=colour, marker=marker, alpha=0.7, linewidths=0, label=name)
                _label(axes, f"{state}, by {column}", "component 1", "component 2")
                axes.set(xticks=[], yticks=[])
                if state == last:
                    columns_shown = min(4, len(names))
                    anchor = (0.5, -0.12)
                    axes.legend(
                        frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=anchor, ncols=columns_shown,
                        handletextpad=0.1, columnspacing=0.8,
                    )  # fmt: skip

    return _draw(draw, title, (3.6 * len(columns), 2.9 * len(states) + 0.5))


def _style(number: int) -> dict[str, Any]:
    style = {"color": PALETTE[number % len(PALETTE)], "marker": _MARKERS[number % len(_MARKERS)]}
    return {**style, "linestyle": "-" if number < len(COLOURS) else "--"}


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set(xlabel=x, ylabel=y)
    axes.grid(color=_INK, alpha=0.12, linewidth=0.7)


def _legend(axes: Axes, series: Sequence[Series]) -> None:
    axes.legend([line.label for line in series], frameon=False, fontsize=9, ncols=1 if len(series) < 6 else 2)


def _draw(draw: Callable[[Figure], None], description: str, size: tuple[float, float]) -> Drawing:
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 10,
        "svg.fonttype": "none",  # text stays text: found, read aloud, scaled
        "svg.hashsalt": hashlib.sha256(description.encode()).hexdigest(),  # ids of several figures on one page differ
        **dict.fromkeys(inked, _INK),
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        stream = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return Drawing(_inline(stream.getvalue(), description), description)


def _inline(svg: str, description: str) -> Markup:
    """The SVG element alone, as HTML takes it: no prolog, no namespaces, sized by the page."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", body)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", body, count=1)
    body = body.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1)
    return Markup(body.replace(_INK, "currentColor"))
