"""Figures of the report as inline SVG: text stays text, ink follows the page's colour, in light, dark and print."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fcl.evaluation.overlays import COLOURS

# Stands for "the page's text colour" until the SVG is written; matplotlib knows no currentColor.
_INK = "#010203"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fcl",  # the same figure gives the same file
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **{key: _INK for key in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")},
}


def curve(
    points: Sequence[tuple[float, float]], ylabel: str, xlabel: str = "round", level: tuple[float, str] | None = None
) -> str:
    """A line over rounds.

    Args:
        points: (x, y), in order.
        ylabel: of the y axis.
        xlabel: of the x axis.
        level: a horizontal line and what it means, e.g. ``(0.25, "chance")``.

    Returns:
        An ``<svg>`` element.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes()
        axes.plot(*zip(*points, strict=True), color=COLOURS[0], marker="o", markersize=3.5, linewidth=1.8)
        if level is not None:
            axes.axhline(level[0], color=_INK, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.6)
            axes.annotate(level[1], (1, level[0]), (0, 3), ("axes fraction", "data"), "offset points", ha="right")
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return _svg(figure, f"{ylabel} by {xlabel}")


def dice_by_case(dice: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Every volume's Dice as a dot, its mean as a bar.

    Args:
        dice: arm to class to the volumes' values, 0..1; arms with the same classes.

    Returns:
        An ``<svg>`` element.
    """
    classes = list(next(iter(dice.values())))
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(width=7.0)
        for number, (arm, by_class) in enumerate(dice.items()):
            colour, shift = COLOURS[number % len(COLOURS)], (number - (len(dice) - 1) / 2) * 0.8 / len(dice)
            for place, name in enumerate(classes):
                values = list(by_class[name])
                if not values:
                    continue
                # Spread sideways in a fixed pattern: dots of equal Dice stay apart, and the picture repeats.
                x = [place + shift + 0.08 * ((i * 0.618) % 1 - 0.5) for i in range(len(values))]
                axes.scatter(x, values, s=14, color=colour, alpha=0.55, linewidths=0)
                mean = sum(values) / len(values)
                axes.plot([place + shift - 0.13, place + shift + 0.13], [mean, mean], color=colour, linewidth=2.6)
            axes.plot([], [], color=colour, linewidth=2.6, label=arm)
        axes.set_xticks(range(len(classes)), classes)
        axes.set(ylabel="Dice", ylim=(-0.02, 1.02))
        axes.grid(axis="y", color=_INK, alpha=0.15, linewidth=0.7)
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(3, len(dice)))
        return _svg(figure, "Dice of every volume by class and arm")


def _axes(width: float = 4.6) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, 2.9), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Figure, description: str) -> str:
    stream = io.StringIO()
    # Without metadata: it would carry a date and web addresses.
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.set_canvas(FigureCanvasSVG(figure))
    figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    text = stream.getvalue()
    element = text[text.index("<svg") :].replace(_INK, "currentColor")
    return element.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)
