"""Figures of the reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from fcl.evaluation.drawing import (
    INK,
    MARKERS,
    PALETTE,
    Drawing,
    Series,
    draw_figure,
    draw_legend,
    draw_line,
    label_axes,
    legend_below,
    line_style,
)


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
        entries = [
            (line.label, draw_line(axes, line, {**line_style(number), "markersize": 3.5, "linewidth": 1.7}))
            for number, line in zip(places, series, strict=True)
        ]
        label_axes(axes, title, "rounds done", unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        draw_legend(axes, entries)

    last = ", ".join(f"{line.label} ends at {line.points[-1][1]:.3g}" for line in series)
    return draw_figure(draw, f"{title} by round: {last}", (4.8, 3.0 if len(series) < 6 else 4.0))


def dice_by_volume(dice: Mapping[str, Mapping[str, Sequence[float]]]) -> Drawing:
    """Every volume's Dice as a dot, their mean as a bar.

    Args:
        dice: arm to class to the volumes' values, 0..1; all arms with the same classes.
    """
    classes = list(next(iter(dice.values())))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        entries: list[tuple[str, Artist]] = []
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
            entries.append((f"{arm} (bar: mean)", Line2D([], [], color=colour, linewidth=2.6)))
        axes.set_xticks(range(len(classes)), classes)
        axes.set(xlabel="structure", ylabel="Dice (0 to 1)", ylim=(-0.02, 1.02))
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.7)
        draw_legend(axes, entries, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(3, len(dice)))

    return draw_figure(draw, "Dice of every volume by structure and arm", (7.6, 3.2))


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
        entries: list[tuple[str, Any]] = []
        for place, (line, number) in enumerate(zip(curves, colours, strict=True)):
            # A little aside of each other, or bars would hide one another.
            aside = 1 + 0.012 * (place - (len(curves) - 1) / 2)
            x, y = zip(*((n * aside, value) for n, value in line.points), strict=True)
            bars = [value or 0.0 for value in line.spread] or None
            style = {**line_style(number), "markersize": 5, "linewidth": 1.7}
            entries.append((line.label, axes.errorbar(x, y, yerr=bars, **style, capsize=3, elinewidth=1)))
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(counts))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(counts, [f"{n:g}" for n in counts])
        axes.set_xlim(counts[0] / 1.15, counts[-1] * 1.15)
        label_axes(axes, title, "annotated patients of each site, N", "mean Dice per volume (0 to 1)")
        legend_below(axes, entries)

    said = "; ".join(f"{line.label} " + ", ".join(f"{y:.3f} at {x:g}" for x, y in line.points) for line in curves)
    return draw_figure(draw, f"{title}: {said}", (6.4, 4.4))


def dice_by_steps(title: str, curves: Sequence[Series], colours: Sequence[int]) -> Drawing:
    """Dice against fine-tuning steps, a line for each arm, the spread as a band around it.

    Args:
        title: of the figure.
        curves: x is steps; at least one, each with at least one point.
        colours: place of each curve in the palette, so that an arm looks the same in every figure.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        entries = []
        for line, number in zip(curves, colours, strict=True):
            x, y = (np.array(values) for values in zip(*line.points, strict=True))
            style = line_style(number)
            entries.append((line.label, axes.plot(x, y, **style, markersize=4, linewidth=1.7)[0]))
            spread = np.array([value or 0.0 for value in line.spread])
            if spread.any():
                axes.fill_between(x, y - spread, y + spread, color=style["color"], alpha=0.13, linewidth=0)
        label_axes(
            axes,
            title,
            "fine-tuning steps, one after the other",
            "mean Dice, held-out patients of each site,\npreprocessed grid (0 to 1)",
        )
        axes.set_xlim(left=0)
        legend_below(axes, entries)

    last = ", ".join(f"{line.label} ends at {line.points[-1][1]:.3f}" for line in curves)
    return draw_figure(draw, f"{title}, Dice by fine-tuning steps: {last}", (6.4, 4.4))


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
                entries = []
                for number, name in enumerate(names):
                    chosen = points[group == number]
                    colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
                    dots = axes.scatter(*chosen.T, s=9, color=colour, marker=marker, alpha=0.7, linewidths=0)
                    entries.append((name, dots))
                label_axes(axes, f"{state}, by {column}", "component 1", "component 2")
                axes.set(xticks=[], yticks=[])
                if state == last:
                    draw_legend(
                        axes, entries, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=min(4, len(names)),
                        handletextpad=0.1, columnspacing=0.8,
                    )  # fmt: skip

    return draw_figure(draw, title, (3.6 * len(columns), 2.9 * len(states) + 0.5))
