"""The first steps of workers and their servers on a time line."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ray_pcasgd.report.data import RunData
from ray_pcasgd.report.drawing import COLORS, WIDE, name_axes, new_figure
from ray_pcasgd.report.groups import Group
from ray_pcasgd.report.pictures import time_name

_MOST_WORKERS = 16
_STEPS_SHOWN = 10
"""Steps that the slowest worker takes within the picture."""
_BUSY, _CANCELLED, _FRESH, _STALE = "#9ecae1", "#fdd0a2", COLORS[2], COLORS[1]


def server_time_line(run: RunData) -> Figure | None:
    """Draw when workers compute, what is cancelled, and which gradients the first server takes when.

    ``None`` where steps take no time, or for many workers.
    """
    num_workers = run.num_workers
    rows = run.schedule.to_pylist()
    if num_workers is None or num_workers > _MOST_WORKERS or not any(row["end"] > row["start"] for row in rows):
        return None
    by_worker = [[row for row in rows if row["agent"] == worker] for worker in range(num_workers)]
    ends = [own[min(len(own), _STEPS_SHOWN) - 1]["end"] for own in by_worker if own]
    until = min(ends)
    figure, (axes,) = new_figure(height=1.7 + 0.25 * num_workers)
    figure.set_figwidth(WIDE)
    for worker, own in enumerate(by_worker):
        for kind, color in (("step", _BUSY), ("cancelled", _CANCELLED)):
            spans = [(r["start"], r["end"] - r["start"]) for r in own if r["kind"] == kind and r["start"] < until]
            axes.broken_barh(spans, (worker - 0.3, 0.6), facecolors=color, edgecolors="white", linewidth=0.8)
    updates = [row for row in rows if row["agent"] == num_workers and row["end"] <= until]
    for update in updates:
        _draw_update(axes, update, num_workers)
    axes.set_xlim(0, until * 1.01)
    axes.set_ylim(num_workers + 0.6, -0.6)
    axes.set_yticks([*range(num_workers), num_workers], [*map(str, range(num_workers)), "server"])
    axes.grid(False)
    name_axes(axes, time_name([Group("", (run,))], "seconds"), "worker")
    cancelled = any(row["kind"] == "cancelled" and row["start"] < until for own in by_worker for row in own)
    taken = [staleness for update in updates for staleness in update["staleness"]]
    handles: list[Patch | Line2D] = [Patch(color=_BUSY, label="computes a gradient")]
    if cancelled:
        handles.append(Patch(color=_CANCELLED, label="cancelled"))
    if 0 in taken:
        handles.append(Line2D([], [], color=_FRESH, marker="o", label="takes a fresh gradient"))
    if any(taken):
        handles.append(Line2D([], [], color=_STALE, marker="o", label="takes a stale gradient"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9.5)
    return figure


def _draw_update(axes: Any, update: dict[str, Any], num_workers: int) -> None:
    moment = update["end"]
    axes.plot([moment, moment], [min(update["neighbors"]), num_workers], color="#bbbbbb", linewidth=0.8, zorder=0)
    for worker, staleness in zip(update["neighbors"], update["staleness"], strict=True):
        axes.plot([moment], [worker], color=_STALE if staleness else _FRESH, marker="o", markersize=4)
    axes.plot([moment], [num_workers], color="#333333", marker="|", markersize=9)
