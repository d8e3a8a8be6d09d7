"""Pictures of what was read when: staleness, waiting, and the first steps on a time line."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.compute as compute
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ray_pcasgd.base.text import format_value
from ray_pcasgd.report.data import Numbers, RunData
from ray_pcasgd.report.drawing import COLORS, WIDE, in_percent, name_axes, new_figure
from ray_pcasgd.report.groups import Group
from ray_pcasgd.report.pictures import time_name

_MOST_BARS = 40
"""Of the histogram."""
_MOST_WAITING = 500
"""Up to this number of agents, each one's waiting has a bar of its own."""
_MOST_PANELS = 3
_MOST_AGENTS = 16
_BUSY, _WAITING, _FRESH, _STALE = "#9ecae1", "#d9d9d9", COLORS[2], COLORS[1]


def staleness_histogram(groups: Sequence[Group]) -> Figure | None:
    """Draw the staleness of all reads; methods that ran under the same schedules share a panel.

    The panels are those of the first three different schedules.
    """
    panels: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        if any(run.staleness.size for run in group.counted):
            panels.setdefault(_schedules(group), []).append(group)
    if not panels:
        return None
    chosen = list(panels.values())[:_MOST_PANELS]
    figure, axes = new_figure(len(chosen), height=3.4)
    for panel, members in zip(axes, chosen, strict=True):
        staleness = members[0].staleness
        _histogram(panel, staleness)
        others = f" and {len(members) - 1} more" if len(members) > 1 else ""
        title = (members[0].label + others) if len(groups) > 1 else ""
        mean = format_value("staleness", members[0].mean_staleness)
        summary = f"mean {mean}, most {staleness.max():.0f}, fresh {(staleness == 0).mean():.0%}"
        name_axes(panel, _staleness_axis(members), "share of reads", f"{title}\n{summary}" if title else summary)
    return figure


def _staleness_axis(groups: Sequence[Group]) -> str:
    """Return what the staleness of these runs counts: versions, which are rounds where agents take local steps."""
    has_rounds = any(run.has_rounds for group in groups for run in group.runs)
    return f"staleness in {'rounds of local steps' if has_rounds else 'steps'}"


def waiting_bars(run: RunData) -> Figure | None:
    """Draw each agent's share of the time that it waited for others; ``None`` where no one did."""
    shares = run.waiting_shares()
    if not any(shares.values()):
        return None
    figure, (axes,) = new_figure(height=3.2)
    if len(shares) <= _MOST_WAITING:
        axes.bar(list(shares), list(shares.values()), color=COLORS[0], width=0.7)
    else:  # one outline: so many bars touch each other, and each takes a millisecond and more
        heights = np.zeros(max(shares) + 1)
        heights[list(shares)] = list(shares.values())
        axes.stairs(heights, np.arange(heights.size + 1) - 0.5, fill=True, color=COLORS[0])
    in_percent(axes.yaxis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
    axes.grid(False, axis="x")
    name_axes(axes, "agent" if run.num_workers is None else "worker", "share of time waiting")
    return figure


def time_line(run: RunData) -> Figure | None:
    """Draw the first steps of all agents, and where from one of them reads as it ends its last step shown.

    That agent is the one whose reads are the stalest then. ``None`` where steps take no time, or for many agents.
    """
    rows = _first_rows(run)
    if not rows:
        return None
    last = max(row["step"] for row in rows)
    reader = max((row for row in rows if row["step"] == last), key=lambda row: (sum(row["staleness"]), -row["agent"]))
    agents = sorted({row["agent"] for row in rows})
    figure, (axes,) = new_figure(height=1.7 + 0.25 * len(agents))
    figure.set_figwidth(WIDE)
    # A passive row has the times of the agent that asked, not of its own.
    busy = [row for row in rows if row["kind"] != "passive" and row["start"] < reader["end"]]
    waits = any(row["end"] > row["ready"] for row in busy)
    for agent in agents:
        own = [row for row in busy if row["agent"] == agent]
        for begin, end, color in (("start", "ready", _BUSY), ("ready", "end", _WAITING)):
            spans = [(row[begin], row[end] - row[begin]) for row in own]
            axes.broken_barh(spans, (agent - 0.3, 0.6), facecolors=color, edgecolors="white", linewidth=0.8)
        between = _waits_between(own) if run.combines_first else []
        axes.broken_barh(between, (agent - 0.3, 0.6), facecolors=_WAITING, edgecolors="white", linewidth=0.8)
        waits |= bool(between)
    _draw_reads(axes, rows, reader, "start" if run.combines_first else "end")
    axes.set_xlim(0, reader["end"] * 1.01)
    axes.set_ylim(max(agents) + 0.6, -0.6)
    axes.set_yticks(agents)
    axes.grid(False)
    name_axes(axes, time_name([Group("", (run,))], "seconds"), "agent")
    _time_line_legend(figure, reader, "one round" if run.has_rounds else "one step", waits)
    return figure


def _first_rows(run: RunData) -> list[dict[str, Any]]:
    num_agents = len(run.agent_numbers) or _MOST_AGENTS
    if num_agents > _MOST_AGENTS or not run.staleness.size:
        return []
    # Enough steps for the stalest read to point at one of them, and few enough to be seen.
    num_steps = min(max(12, int(run.staleness.max()) + 4), 30)
    first = run.schedule.filter(compute.less(run.schedule["step"], num_steps)).to_pylist()
    return first if any(row["end"] > row["start"] for row in first) else []


def _waits_between(own: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """Return when an agent waits between its rows, and how long."""
    ends = [0.0, *(row["end"] for row in own)]
    return [(end, row["start"] - end) for end, row in zip(ends[:-1], own, strict=True) if row["start"] > end]


def _draw_reads(axes: Axes, rows: Sequence[dict[str, Any]], reader: dict[str, Any], moment: str) -> None:
    """Draw from where versions were published to the reader, at the ``moment`` of its row at which it reads."""
    published = {(row["agent"], row["step"] + 1): row["end"] for row in rows}
    for neighbor, version, staleness in zip(reader["neighbors"], reader["versions"], reader["staleness"], strict=True):
        sent = published.get((neighbor, version), 0.0)
        color = _STALE if staleness else _FRESH
        axes.plot([sent, reader[moment]], [neighbor, reader["agent"]], color=color, linewidth=1.4)
        axes.plot([sent], [neighbor], color=color, marker="o", markersize=5, clip_on=False)


def _time_line_legend(figure: Figure, reader: dict[str, Any], computed: str, waits: bool) -> None:
    """Write what is drawn, and nothing else."""
    handles: list[Patch | Line2D] = [Patch(color=_BUSY, label=f"computes {computed}")]
    if waits:
        handles.append(Patch(color=_WAITING, label="waits"))
    reads = f"agent {reader['agent']} reads"
    if 0 in reader["staleness"]:
        handles.append(Line2D([], [], color=_FRESH, marker="o", label=f"{reads} a fresh version"))
    if any(reader["staleness"]):
        handles.append(Line2D([], [], color=_STALE, marker="o", label=f"{reads} a stale version"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9.5)


def _schedules(group: Group) -> tuple[str, ...]:
    return tuple(sorted(run.schedule_hash or str(run.path) for run in group.counted))


def _histogram(axes: Axes, staleness: Numbers) -> None:
    width = max(1, int(np.ceil((staleness.max() + 1) / _MOST_BARS)))
    bins = np.arange(0, staleness.max() + width + 1, width)
    counts, _ = np.histogram(staleness, bins)
    axes.bar(bins[:-1] + (width - 1) / 2, counts / staleness.size, width=0.85 * width, color=COLORS[0])
    in_percent(axes.yaxis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(False, axis="x")
    axes.set_xlim(-0.75 * width, max(4.75, bins[-1] - 0.25 * width))
