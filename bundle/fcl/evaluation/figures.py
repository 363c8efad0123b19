"""Figures of the report as PNG, each twice: for a light page (and print) and for a dark one."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fcl.evaluation.overlays import COLOURS

_DPI = 160
_LIGHT = ("#1c2430", "#ffffff")  # ink and page, as in the template
_DARK = ("#e4e9f0", "#12161c")
_MARKERS = "osD^v"


@dataclass(frozen=True)
class Series:
    """A line of a figure: ``points`` are (x, y) in order."""

    label: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Drawing:
    """A figure as PNG for light and dark pages, and what it shows in words."""

    light: bytes
    dark: bytes
    description: str


def over_rounds(title: str, unit: str, series: Sequence[Series]) -> Drawing:
    """Lines over the rounds done.

    Args:
        title: of the figure.
        unit: of the y axis.
        series: at least one, each with at least one point.
    """

    def draw(axes: Axes, ink: str) -> None:
        for number, line in enumerate(series):
            style: dict[str, Any] = {
                "color": COLOURS[number % len(COLOURS)],
                "marker": _MARKERS[number % len(_MARKERS)],
            }
            axes.plot(*zip(*line.points, strict=True), **style, markersize=3.5, linewidth=1.7, label=line.label)
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axes.set(xlabel="rounds done", ylabel=unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color=ink, alpha=0.12, linewidth=0.7)
        axes.legend(frameon=False, fontsize=9)

    last = ", ".join(f"{line.label} ends at {line.points[-1][1]:.3g}" for line in series)
    return _draw(draw, f"{title} by round: {last}", (4.8, 3.0))


def dice_by_volume(dice: Mapping[str, Mapping[str, Sequence[float]]]) -> Drawing:
    """Every volume's Dice as a dot, their mean as a bar.

    Args:
        dice: arm to class to the volumes' values, 0..1; all arms with the same classes.
    """
    classes = list(next(iter(dice.values())))

    def draw(axes: Axes, ink: str) -> None:
        for number, (arm, by_class) in enumerate(dice.items()):
            colour, shift = COLOURS[number % len(COLOURS)], (number - (len(dice) - 1) / 2) * 0.8 / len(dice)
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
        axes.grid(axis="y", color=ink, alpha=0.12, linewidth=0.7)
        axes.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(3, len(dice)))

    return _draw(draw, "Dice of every volume by structure and arm", (7.6, 3.2))


def _draw(draw: Callable[[Axes, str], None], description: str, size: tuple[float, float]) -> Drawing:
    pages = []
    for ink, page in (_LIGHT, _DARK):
        inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
        style: dict[Any, Any] = {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 10,
            **dict.fromkeys(inked, ink),
        }
        with matplotlib.rc_context({**style, "figure.facecolor": page, "axes.facecolor": page}):
            figure = Figure(figsize=size, layout="constrained")
            draw(figure.subplots(), ink)
            stream = io.BytesIO()
            figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
            pages.append(stream.getvalue())
    return Drawing(pages[0], pages[1], description)
