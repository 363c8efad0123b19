"""How the figures of reports are drawn: inline SVG in the ink of the page, so that one serves light, dark and print."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import matplotlib
from markupsafe import Markup, escape
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Okabe & Ito 2008: told apart with any colour vision.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
MARKERS = "osD^vP*X<>"
DASHES = ("-", "--", ":", "-.")
_MARKED, _DRAWN = 300, 500  # points of a line that have markers, and that are drawn at all
INK = "#010203"  # stands for the page's text colour
# Told apart on white and on near-black; Okabe and Ito's first, without their yellow.
PALETTE = (*COLOURS[:6], "#8a8f00", "#8d6bd1", "#7f7f7f", "#b5651d")


_Point = TypeVar("_Point")


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


def line_style(number: int) -> dict[str, Any]:
    """Colour, marker and dashes of the series at a place of the palette."""
    again = number // len(PALETTE)  # colours that were there before come with other dashes and markers
    style = {"color": PALETTE[number % len(PALETTE)], "marker": MARKERS[(number + again) % len(MARKERS)]}
    return {**style, "linestyle": DASHES[again % len(DASHES)]}


def label_axes(axes: Axes, title: str, x: str, y: str) -> None:
    """Title, units and a faint grid."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set(xlabel=x, ylabel=y)
    axes.grid(color=INK, alpha=0.12, linewidth=0.7)


def thinned(points: Sequence[_Point]) -> Sequence[_Point]:
    """No more than a page can show, evenly, with the first and the last."""
    if len(points) <= _DRAWN:
        return points
    last = len(points) - 1
    return [points[round(place * last / (_DRAWN - 1))] for place in range(_DRAWN)]


def draw_line(axes: Axes, line: Series, style: Mapping[str, Any]) -> Artist:
    """A line, which a legend takes; one of very many points is :func:`thinned`, and without markers."""
    marker = style.get("marker") if len(line.points) <= _MARKED else None
    return axes.plot(*zip(*thinned(line.points), strict=True), **{**style, "marker": marker})[0]


def draw_legend(axes: Axes, entries: Sequence[tuple[str, Any]], **options: Any) -> None:
    """Names of what was drawn, in order.

    Given with their artists: matplotlib leaves out a name with a leading underscore that it finds itself.
    """
    labels, handles = zip(*entries, strict=True)
    columns = {"ncols": 1 if len(labels) < 6 else 2}
    axes.legend(handles, labels, frameon=False, fontsize=9, **{**columns, **options})


def legend_below(axes: Axes, entries: Sequence[tuple[str, Any]]) -> None:
    """Under the axes, where it hides nothing; as many columns as its words leave room for. See :func:`draw_legend`."""
    labels, handles = zip(*entries, strict=True)
    width = 14 * axes.figure.bbox.width / axes.figure.dpi  # letters in a line: 14 an inch
    columns = int(max(1, min(len(labels), width // (max(map(len, labels)) + 5))))
    axes.figure.legend(
        handles, labels,
        frameon=False, fontsize=9, loc="outside lower center", ncols=columns, handlelength=1.4, columnspacing=1.2,
    )  # fmt: skip


def draw_figure(draw: Callable[[Figure], None], description: str, size: tuple[float, float]) -> Drawing:
    """Have ``draw`` fill a figure of ``size`` inches; ``description`` is for those who cannot see it."""
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = {
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 10,
        "text.parse_math": False,  # a "$" in a name is no formula
        "svg.fonttype": "none",  # text stays text: found, read aloud, scaled
        "svg.hashsalt": hashlib.sha256(description.encode()).hexdigest(),  # ids of several figures on one page differ
        **dict.fromkeys(inked, INK),
        **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none"),
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        stream = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(stream, metadata=nothing)  # savefig would draw everything twice
    return Drawing(_inline(stream.getvalue(), description), description)


def _inline(svg: str, description: str) -> Markup:
    """The SVG element alone, as HTML takes it: no prolog, no namespaces, sized by the page."""
    body = svg[svg.index("<svg") :]
    width = float(re.search(r'\swidth="([\d.]+)pt"', body).group(1))  # type: ignore[union-attr]
    # A point becomes 1 to 1.5 pixels: letters stay legible on a phone, where a wide figure scrolls in its frame.
    size = f"min-width:{width:.0f}px;max-width:{1.5 * width:.0f}px"
    body = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", body)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", body, count=1)
    body = body.replace("<svg", f'<svg role="img" aria-label="{escape(description)}" style="{size}"', 1)
    return Markup(body.replace(INK, "currentColor"))
