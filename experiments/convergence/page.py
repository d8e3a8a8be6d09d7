"""The study's page and its picture, made from what was measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.studies import machine, num_seeds
from ray_pcasgd.report.drawing import as_svg, legend, line, name_axes, new_figure, style

EVEN = 0.05
"""Floors that differ by less than this share count as even."""
CASE = ["problem", "partition"]
_GRAY = "#5F5F5F"


def write_page(settings: Mapping[str, Any], output: Path, scale: str) -> None:
    """Write RESULTS.md and its picture from results.parquet."""
    results = averaged(pd.read_parquet(output / "results.parquet"))
    (output / "floor.svg").write_bytes(as_svg(picture(results)))
    (output / "RESULTS.md").write_text(page(settings, results, scale), encoding="utf-8")


def averaged(results: pd.DataFrame) -> pd.DataFrame:
    """Return the means over the seeds; a point at which any seed diverged counts as diverged."""
    keys = [*CASE, "delay", "topology", "theta", "step_size"]
    measured = ["floor", "rate", "consensus", "smallest", "largest", "distance", "spectral_gap"]
    table = results.groupby(keys, sort=False)[measured].mean().reset_index()
    return table.assign(
        agents=table["floor"] + table["consensus"] ** 2,
        product=table["step_size"] * table["delay"] * table["largest"],
    )


def picture(results: pd.DataFrame) -> Figure:
    """Draw the consensus distance, predicting against clipping, and the floor against the spectral gap."""
    figure, (left, middle, right) = new_figure(3, height=4.4)
    first = results["topology"].iloc[0]
    delays = results[results["topology"] == first]
    shown = delays[(delays["problem"] == "least squares") & (delays["theta"] == delays["theta"].max())]
    shown = shown[shown["partition"] == shown["partition"].iloc[-1]]
    for place, (delay, part) in enumerate(shown.groupby("delay")):
        kept = part[np.isfinite(part["consensus"])]
        # Gray: the legend's colors are those of the cases in the other panels.
        line(left, kept["step_size"].to_numpy(), kept["consensus"].to_numpy(), _GRAY, style(place * 7)[1])
        if len(kept):
            end = kept.iloc[-1]
            left.annotate(f" {delay}", (end["step_size"], end["consensus"]), fontsize=9, color=_GRAY)
    left.set_xscale("log")
    left.set_yscale("log")
    step_sizes = sorted(shown["step_size"].unique())
    title = f"predicting, {shown['problem'].iloc[0]}, {shown['partition'].iloc[0]}, by delay"
    left.set_xticks(step_sizes, [f"{eta:g}" for eta in step_sizes])
    left.minorticks_off()
    name_axes(left, "step size", "consensus distance", title)
    ratios = ratio_of_floors(results)
    entries = []
    for place, (case, part) in enumerate(ratios.groupby(CASE, sort=False)):
        # What diverged stands at the upper edge.
        heights = part["ratio"].clip(1e-2, 1e2)
        middle.scatter(part["product"], heights, s=18, color=style(place)[0])
        entries.append((", ".join(map(str, case)), *style(place)))
    middle.axhline(1, color="#999999", linewidth=1)
    middle.set_xscale("log")
    middle.set_yscale("log")
    name_axes(middle, "step size x delay x curvature", "agents' error over clipping's", "predicting (theta = 1)")
    gaps = results[results["delay"] == _topology_delay(results)]
    for place, (_, part) in enumerate(gaps.groupby(CASE, sort=False)):
        largest = _common_step_size(part)
        means = part[(part["step_size"] == largest) & (part["theta"] == part["theta"].max())]
        means = means.sort_values("spectral_gap")
        line(right, means["spectral_gap"].to_numpy(), means["consensus"].to_numpy(), *style(place))
    right.set_yscale("log")
    name_axes(right, "spectral gap", "consensus distance", "predicting (theta = 1)")
    legend(figure, entries)
    return figure


def _topology_delay(results: pd.DataFrame) -> int:
    return (
        int(results[results["topology"] != results["topology"].iloc[0]]["delay"].min())
        if (results["topology"].nunique() > 1)
        else int(results["delay"].iloc[0])
    )


def _common_step_size(part: pd.DataFrame) -> float:
    """Return the largest step size at which nothing diverged."""
    finite = part.groupby("step_size")["consensus"].apply(lambda values: np.isfinite(values).all())
    return float(max(finite[finite].index, default=part["step_size"].min()))


def ratio_of_floors(results: pd.DataFrame) -> pd.DataFrame:
    """Return the agents' error under predicting over that under clipping, for every case, delay and step size.

    Infinite where predicting diverged.
    """
    keys = [*CASE, "delay", "topology", "step_size", "product"]
    table = results.pivot_table(index=keys, columns="theta", values="agents", sort=False, dropna=False)
    table = table[np.isfinite(table[0.0])]
    return (table[max(table.columns)] / table[0.0]).rename("ratio").dropna().reset_index()


def exponents(results: pd.DataFrame) -> pd.DataFrame:
    """Return a and b of ``consensus ~ step_size^a delay^b`` for each case and theta, by least squares of logarithms.

    Only where step size times delay times curvature is at most 1: beyond, it is no power law.
    """
    rows = []
    first = results["topology"].iloc[0]
    inner = results[(results["topology"] == first) & (results["product"] <= 1) & np.isfinite(results["consensus"])]
    for keys, part in inner.groupby([*CASE, "theta"], sort=False):
        if part["delay"].nunique() < 2 or part["step_size"].nunique() < 2:
            continue
        design = np.stack([np.log(part["step_size"]), np.log(part["delay"]), np.ones(len(part))], 1)
        (a, b, _), *_ = np.linalg.lstsq(design, np.log(part["consensus"]), rcond=None)
        rows.append({**dict(zip([*CASE, "theta"], keys, strict=True)), "step size": a, "delay": b})
    return pd.DataFrame(rows)


def crossover(ratios: pd.DataFrame) -> tuple[float, float]:
    """Return up to where predicting is never behind clipping, and from where on it is never ahead."""
    behind = ratios[ratios["ratio"] > 1 + EVEN]["product"]
    ahead = ratios[ratios["ratio"] < 1 - EVEN]["product"]
    return float(behind.min()) if len(behind) else float("inf"), float(ahead.max()) if len(ahead) else 0.0


def page(settings: Mapping[str, Any], results: pd.DataFrame, scale: str) -> str:
    """Return the page as Markdown."""
    config = settings["config"]
    return f"""# Error floor and rate on strongly convex problems

{_first(results)}

**What is claimed** (Wang et al., TMLR 2024): the consensus error of PC-ASGD grows with step size and delay, and falls
with the spectral gap; predicting wins where step size times delay is small, clipping where it is large.

**What was measured**: half the squared error (a quadratic) and the cross-entropy of a linear model with weight decay
{config["optimizer"]["weight_decay"]:g} on the digits, {config["num_agents"]} agents in two clusters whose links are
late, batch {config["batch_size"]}, {config["num_steps"]} steps, {num_seeds(settings["seeds"])}, shards that are alike
(iid) or hold two labels each (by-label). The optimum is known (Newton's method in float64), so errors are squared
distances from it: that of the averaged weights, and the agents' own, which is that plus the squared consensus
distance. Floors are means over the last quarter of the steps. All thetas and step sizes of a case run at once. Written
by `python -m experiments.convergence --scale {scale}` ({machine()}).

![consensus distance, floors of predicting over clipping, spectral gap](floor.svg)

## Rule of thumb

{_rule(results)}

## Consensus distance: exponents of step size and delay

`consensus ~ (step size)^a (delay)^b`, fitted where step size x delay x curvature is at most 1.

{_exponents(results)}

## Error floor by theta, at the best step size

The least floor over the step sizes, and the step size it is at. Of the agents' own weights:

{_best(results, "agents")}

Of the averaged weights:

{_best(results, "floor")}

## Rate

Decay of the squared error per step over `2 x step size x smallest eigenvalue`, at the smallest step size: 1 is
gradient descent's own.

{_rates(results)}

## Spectral gap

Consensus distance of predicting (theta = {results["theta"].max():g}) at delay {_topology_delay(results)}.

{_gaps(results)}
"""


def _first(results: pd.DataFrame) -> str:
    """Return whether the dependence is the claimed one."""
    lines = []
    for case, part in ratio_of_floors(results).groupby(CASE, sort=False):
        never_behind, never_ahead = crossover(part)
        ahead = int((part["ratio"] < 1 - EVEN).sum())
        behind = int((part["ratio"] > 1 + EVEN).sum())
        text = f"- {', '.join(map(str, case))}: predicting has the lower floor in {ahead} of {len(part)} cases, "
        text += f"clipping in {behind}"
        if ahead == 0:
            text += "; **predicting never wins, unlike the claim**"
        elif behind == 0:
            text += "; **clipping never wins, unlike the claim**"
        else:
            text += (
                f"; predicting is never behind below {never_behind:.2g}, and never ahead above {never_ahead:.2g} (step "
                "size x delay x curvature)"
            )
        lines.append(text + ".")
    return "\n".join(lines)


def _rule(results: pd.DataFrame) -> str:
    limits = {case: crossover(part) for case, part in ratio_of_floors(results).groupby(CASE, sort=False)}
    skewed = [limit for (_, partition), limit in limits.items() if partition != "iid"] or list(limits.values())
    low, high = min(limit[0] for limit in skewed), max(limit[1] for limit in skewed)
    if low == float("inf") or high == 0:
        return "None at this scale: one of the two is never ahead."
    return f"""With shards that differ, predict (theta near 1) while step size x delay x curvature stays below
{low:.2g}, clip (theta = 0) above {high:.2g}; between, a theta between them, or probing, decides. Curvature is the
largest eigenvalue of the loss's Hessian; for networks, where it is unknown, one over the largest stable step size
without delay stands for it, up to a factor of two.

Its limits: strongly convex problems, two clusters of four, constant delays, plain SGD. It says what is left at the end
of training, not how fast one gets there."""


def _exponents(results: pd.DataFrame) -> str:
    table = exponents(results)
    if table.empty:
        return "Too few points for a fit at this scale."
    lines = ["| problem | shards | theta | a (step size) | b (delay) |", "|---|---|---|---|---|"]
    for row in table.to_dict("records"):
        fitted = f"{row['step size']:.2f} | {row['delay']:.2f}"
        lines.append(f"| {row['problem']} | {row['partition']} | {row['theta']:g} | {fitted} |")
    return "\n".join(lines)


def _best(results: pd.DataFrame, column: str) -> str:
    first = results[results["topology"] == results["topology"].iloc[0]]
    thetas = sorted(first["theta"].unique())
    lines = [f"| problem | shards | delay | {' | '.join(f'theta {theta:g}' for theta in thetas)} |"]
    lines.append("|---" * (3 + len(thetas)) + "|")
    for (problem, partition, delay), part in first.groupby([*CASE, "delay"], sort=False):
        cells = []
        for theta in thetas:
            own = part[part["theta"] == theta]
            place = own[column].idxmin()
            cells.append(f"{own.loc[place, column]:.3g} (at {own.loc[place, 'step_size']:g})")
        lines.append(f"| {problem} | {partition} | {delay} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _rates(results: pd.DataFrame) -> str:
    first = results[results["topology"] == results["topology"].iloc[0]]
    first = first[first["step_size"] == first["step_size"].min()]
    thetas = sorted(first["theta"].unique())
    lines = [f"| problem | shards | delay | {' | '.join(f'theta {theta:g}' for theta in thetas)} |"]
    lines.append("|---" * (3 + len(thetas)) + "|")
    for (problem, partition, delay), part in first.groupby([*CASE, "delay"], sort=False):
        relative = (part["rate"] / (2 * part["step_size"] * part["smallest"])).set_axis(part["theta"])
        cells = [f"{relative[theta]:.2f}" if np.isfinite(relative[theta]) else "–" for theta in thetas]
        lines.append(f"| {problem} | {partition} | {delay} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _gaps(results: pd.DataFrame) -> str:
    part = results[(results["delay"] == _topology_delay(results)) & (results["theta"] == results["theta"].max())]
    step_sizes = sorted(part["step_size"].unique())
    lines = [f"| problem | shards | topology | gap | {' | '.join(f'step size {eta:g}' for eta in step_sizes)} |"]
    lines.append("|---" * (4 + len(step_sizes)) + "|")
    for (problem, partition, topology), own in part.groupby([*CASE, "topology"], sort=False):
        values = own.set_index("step_size")["consensus"]
        cells = [f"{values[eta]:.3g}" if np.isfinite(values[eta]) else "diverged" for eta in step_sizes]
        gap = own["spectral_gap"].iloc[0]
        lines.append(f"| {problem} | {partition} | {topology} | {gap:.3f} | {' | '.join(cells)} |")
    return "\n".join(lines)
