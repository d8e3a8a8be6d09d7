"""What all pictures share: axes, colors and files, without pyplot's global state."""

import base64
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from ray_pcasgd.base.text import is_share
from ray_pcasgd.report.data import Numbers

Dashes = tuple[float, Sequence[float]] | Literal["-"]
Limits = tuple[Numbers, Numbers]
"""The lower and the upper edge of a band."""

# Okabe and Ito's colors, which people with any color vision tell apart; without their yellow, too pale for a line.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5F5F5F")
_DASHES: tuple[Dashes, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
_INK = "#333333"


HALF, WIDE = 6.4, 13.0
"""Widths in inches of a picture that has half a row of the page, and of one that has it all."""


@contextmanager
def own_style() -> Iterator[None]:
    """Draw as this package does, whatever settings of matplotlib lie where the command is given."""
    with mpl.rc_context(), np.errstate(over="ignore", invalid="ignore"):  # numbers of runs that diverged
        mpl.rcdefaults()
        yield


def new_figure(num_panels: int = 1, height: float = 3.6, shared_y: bool = False) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels side by side: half a row of the page for one panel, a whole row for more."""
    width = HALF if num_panels == 1 else WIDE
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(1, num_panels, squeeze=False, sharey=shared_y)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#999999")
        axes.grid(True, color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=_INK, labelsize=9.5, length=3)
    return figure, list(panels.flat)


def name_axes(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Write what a panel shows."""
    axes.set_xlabel(plain(x), fontsize=10.5, color=_INK)
    axes.set_ylabel(plain(y), fontsize=10.5, color=_INK)
    if title:
        axes.set_title(plain(title), fontsize=10.5, color=_INK, loc="left")


def style(place: int) -> tuple[str, Dashes]:
    """Return the color and the dashes of the label at a place; the first 28 places all differ."""
    return COLORS[place % len(COLORS)], _DASHES[place % len(_DASHES)]


def line(axes: Axes, x: Numbers, y: Numbers, color: str, dashes: Dashes = "-") -> None:
    """Draw a line; where it is short, its points too, so that a single evaluation can be seen."""
    axes.plot(x, y, color=color, linestyle=dashes, linewidth=1.8, marker="o" if x.size < 3 else "", markersize=4)


def band(axes: Axes, x: Numbers, limits: Limits, color: str, strength: float = 0.18) -> None:
    """Draw a band between two lines."""
    axes.fill_between(x, *limits, color=color, alpha=strength, linewidth=0)


def legend(figure: Figure, entries: Sequence[tuple[str, str, Dashes]]) -> None:
    """Write what each (label, color, dashes) stands for, below the panels."""
    handles = [Line2D([], [], color=color, linestyle=dashes, linewidth=2) for _, color, dashes in entries]
    longest = max(len(label) for label, _, _ in entries)
    most_columns = max(1, min(len(entries), int(figure.get_figwidth() * 13 / (longest + 6))))
    rows = math.ceil(len(entries) / most_columns)
    # A leading space, as matplotlib leaves out labels that begin with an underscore.
    figure.legend(
        handles,
        [f" {plain(label)}" for label, _, _ in entries],
        loc="outside lower center",
        ncols=math.ceil(len(entries) / rows),
        frameon=False,
        fontsize=9.5,
        handlelength=2.6,
        labelcolor=_INK,
    )


def scale_values(axes: Axes, column: str, values: Sequence[Numbers]) -> None:
    """Choose the scale of the vertical axis: percent for shares, logarithmic where the values span decades."""
    if is_share(column):
        in_percent(axes.yaxis)
    elif spans_decades(values):
        smallest = min(float(part[part > 0].min()) for part in values if (part > 0).any())
        # The lower edge of a band may reach zero, where there is no logarithm: it is cut, not left out.
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(bottom=max(axes.get_ylim()[0], smallest / 10))


def in_percent(axis: Axis) -> None:
    """Write shares on an axis in percent, at round ones, each as it is."""
    axis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10]))
    axis.set_major_formatter(percent_text)


def percent_text(value: float, place: float = 0) -> str:
    """Return a share in percent, as long as it is.

    >>> percent_text(0.25), percent_text(0.125)
    ('25%', '12.5%')
    """
    return f"{round(100 * value, 6):g}%"


def logarithmic(axis: Axis) -> None:
    """Make an axis of numbers above 0 logarithmic, with as many plain numbers along it as it has room for."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})  # type: ignore[attr-defined]
    low, high = axis.get_view_interval()
    subs = (1.0,) if high > 200 * low else (1.0, 3.0) if high > 20 * low else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(lambda value, place: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def spans_decades(values: Sequence[Numbers]) -> bool:
    """Return whether the largest value is more than 50 times the smallest positive one."""
    positive = np.concatenate([part[part > 0] for part in values]) if values else np.empty(0)
    return bool(positive.size) and float(positive.max()) > 50 * float(positive.min())


def plain(text: str) -> str:
    """Return text that matplotlib writes as it is, without taking what stands between dollars for mathematics."""
    return text.replace("$", r"\$")


def as_svg(figure: Figure) -> bytes:
    """Return a figure as SVG, the same bytes for the same figure."""
    file = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "ray_pcasgd"}):
        # The same bytes as by savefig, which would draw all twice: once for the layout, which is made in either case.
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})  # type: ignore[no-untyped-call]
    return file.getvalue()


def as_pdf(figure: Figure) -> bytes:
    """Return a figure as PDF with fonts that publishers take, the same bytes for the same figure."""
    file = io.BytesIO()
    with mpl.rc_context({"pdf.fonttype": 42}):
        figure.savefig(file, format="pdf", metadata={"CreationDate": None})
    return file.getvalue()


def as_data_uri(figure: Figure) -> str:
    """Return a figure as the address of an image that holds it."""
    return "data:image/svg+xml;base64," + base64.b64encode(as_svg(figure)).decode()
