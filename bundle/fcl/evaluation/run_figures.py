"""Figures of the report on one run: curves with their sites, who took part, seconds and bytes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from fcl.evaluation.drawing import (
    INK,
    PALETTE,
    Drawing,
    Series,
    draw_figure,
    draw_line,
    label_axes,
    legend_below,
    line_style,
    thinned,
)

_SHOWN_SITES = 6  # with more, the lines of single sites tell nothing apart
_MOST_BARS = 300  # of more rounds they are one area: each would be an element of the page
_SIZE = (4.8, 3.1)
# A site's part in a round, best first.
STATE_COLOURS = {
    "answered": "#009E73",
    "late": "#E69F00",
    "rejected": "#D55E00",
    "resting": "#c8d1da",
    "absent": "#8c959f",
    "excluded": "#CC79A7",
}


def mean_and_sites(title: str, unit: str, mean: Series | None, sites: Sequence[Series]) -> Drawing:
    """A measurement over the rounds: a line for each site, or of many the range, and their mean.

    Args:
        title: of the figure.
        unit: of the y axis.
        mean: None draws none.
        sites: those with a value in any round.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        entries: list[tuple[str, Artist]] = []
        if mean is not None and mean.points:
            style = {"color": INK, "linewidth": 2.2, "zorder": 3, "marker": "o" if len(mean.points) == 1 else None}
            entries.append((mean.label, draw_line(axes, mean, style)))
        if len(sites) <= _SHOWN_SITES:
            for number, line in enumerate(sites):
                style = {**line_style(number), "markersize": 3, "linewidth": 1}
                entries.append((line.label, draw_line(axes, line, style)))
        else:
            x, low, high = zip(*thinned(_range(sites)), strict=True)
            band = axes.fill_between(x, low, high, color=PALETTE[0], alpha=0.25, linewidth=0)
            entries.append((f"all {len(sites)} sites", band))
        label_axes(axes, title, "rounds done", unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_below(axes, entries)

    lines = [*([mean] if mean is not None and mean.points else []), *sites]
    last = ", ".join(f"{line.label} ends at {line.points[-1][1]:.3g}" for line in lines[: _SHOWN_SITES + 1])
    return draw_figure(draw, f"{title} by round: {last}", (_SIZE[0], _SIZE[1] + (0.4 if len(lines) > 3 else 0)))


def participation(states: Sequence[tuple[int, Mapping[str, str]]]) -> Drawing:
    """A row for each site, a column for each round: what became of its part.

    Args:
        states: number of the round (1 the first), and site to one of ``STATE_COLOURS``.
    """
    sites = sorted({site for _, of_round in states for site in of_round}, key=site_order)
    shown = [name for name in STATE_COLOURS if any(name in of_round.values() for _, of_round in states)]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for row, site in enumerate(sites):
            own = [(number, of_round.get(site)) for number, of_round in states]
            # Equal rounds in a row as one bar: hundreds of rounds stay a small picture.
            for (state, _), group in itertools.groupby(enumerate(own), key=lambda item: (item[1][1], _run(item))):
                numbers = [number for _, (number, _) in group]
                if state is not None:
                    start, length = numbers[0] - 0.5, len(numbers)
                    axes.broken_barh([(start + 0.03, length - 0.06)], (row - 0.36, 0.72), color=STATE_COLOURS[state])
        entries = [(name, Patch(color=STATE_COLOURS[name])) for name in shown]
        label_axes(axes, "Sites by round", "round", "")
        axes.grid(visible=False)
        axes.set_yticks(range(len(sites)), sites)
        axes.set(xlim=(states[0][0] - 0.6, states[-1][0] + 0.6), ylim=(len(sites) - 0.5, -0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        legend_below(axes, entries)

    said = "; ".join(
        f"{site} " + ", ".join(f"{sum(s.get(site) == name for _, s in states)} {name}" for name in shown)
        for site in sites[:20]
    )
    return draw_figure(draw, f"Part of each site, in rounds: {said}", (_SIZE[0], 1.5 + 0.26 * len(sites)))


def stacked_rounds(title: str, unit: str, parts: Mapping[str, Sequence[tuple[int, float]]]) -> Drawing:
    """Bars over the rounds, in parts on top of each other.

    Args:
        title: of the figure.
        unit: of the y axis.
        parts: name to round (1 the first) and value, of the same rounds.
    """
    numbers = [number for number, _ in next(iter(parts.values()))]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        below, entries = np.zeros(len(numbers)), []
        for (name, points), colour in zip(parts.items(), PALETTE, strict=False):
            height = np.array([value for _, value in points])
            if len(numbers) > _MOST_BARS:
                axes.fill_between(numbers, below, below + height, step="mid", color=colour, linewidth=0)
            else:
                axes.bar(numbers, height, width=0.82 if len(numbers) < 60 else 1, bottom=below, color=colour)
            entries.append((name, Patch(color=colour)))
            below = below + height
        label_axes(axes, title, "round", unit)
        axes.grid(visible=False, axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        legend_below(axes, entries)

    means = ", ".join(f"{name} {np.mean([v for _, v in points]):.3g}" for name, points in parts.items())
    return draw_figure(draw, f"{title}, mean of a round in {unit}: {means}", (_SIZE[0], _SIZE[1] + 0.4))


def stacked_sites(title: str, unit: str, parts: Mapping[str, Mapping[str, float]]) -> Drawing:
    """Lying bars, one for each site, in parts beside each other.

    Args:
        title: of the figure.
        unit: of the x axis.
        parts: name to site to value.
    """
    sites = sorted({site for own in parts.values() for site in own}, key=site_order)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        left, entries = np.zeros(len(sites)), []
        for (name, own), colour in zip(parts.items(), PALETTE, strict=False):
            width = np.array([own.get(site, 0.0) for site in sites])
            axes.barh(range(len(sites)), width, height=0.7, left=left, color=colour)
            entries.append((name, Patch(color=colour)))
            left += width
        label_axes(axes, title, unit, "")
        axes.grid(visible=False, axis="y")
        axes.set_yticks(range(len(sites)), sites)
        axes.set_ylim(len(sites) - 0.5, -0.5)
        legend_below(axes, entries)

    totals = ", ".join(f"{site} {sum(own.get(site, 0) for own in parts.values()):.3g}" for site in sites[:20])
    return draw_figure(draw, f"{title} in {unit}: {totals}", (_SIZE[0], max(_SIZE[1] + 0.4, 1.4 + 0.24 * len(sites))))


def site_order(site: str) -> tuple[int, str]:
    """Sorts site-2 before site-10."""
    return len(site), site


def _run(item: tuple[int, tuple[int, str | None]]) -> int:
    """The same for rounds that follow each other without a gap."""
    place, (number, _) = item
    return number - place


def _range(sites: Sequence[Series]) -> list[tuple[float, float, float]]:
    """Round, least and most over the sites that have a value in it."""
    values: dict[float, list[float]] = {}
    for line in sites:
        for x, y in line.points:
            values.setdefault(x, []).append(y)
    return [(x, min(own), max(own)) for x, own in sorted(values.items())]
