"""The planner against the theory, for every K: ``python -m experiments.runtime_theory [--scale smoke|cpu|paper]``."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.running import arguments_of
from experiments.studies import machine
from ray_pcasgd.report.drawing import COLORS, as_svg, in_percent, name_axes, new_figure
from ray_pcasgd.report.theory_page import theory_table
from ray_pcasgd.rules.gathering import ASGD, KAsync, KBatchAsync, KBatchSync, KSync, NSoftsync
from ray_pcasgd.schedule.laws import Exponential, Law, Pareto, ShiftedExponential, UniformLaw
from ray_pcasgd.schedule.runtime_theory import plan_updates

HERE = Path(__file__).parent
LAWS: dict[str, Law] = {
    "exponential(1)": Exponential(mean=1),
    "1 + exponential(1)": ShiftedExponential(shift=1, mean=1),
    "pareto(2.5, 1)": Pareto(shape=2.5, scale=1),
}
SCALES = {"smoke": ((4,), 2_000, 400), "cpu": ((8, 16), 60_000, 4000), "paper": ((8, 16, 32), 600_000, 4000)}
"""Numbers of workers, the gradients that are taken in each plan, at least, and the updates under n-softsync."""
SOFTNESS = (1, 2, 4, 8)


def main() -> None:
    """Plan everything, and write the page."""
    arguments = arguments_of(HERE, __doc__)
    workers, gradients, updates = SCALES[arguments.scale]
    tables = []
    for name, law in LAWS.items():
        for number in workers:
            kinds = (KSync, KBatchSync, KAsync, KBatchAsync)
            for k in range(1, number + 1):
                table = theory_table(law, number, gradients // k, 0, [kind(k=k) for kind in kinds])
                tables.append(table.assign(law=name, workers=number))
            tables.append(theory_table(law, number, gradients, 0, [ASGD()]).assign(law=name, workers=number))
    results = pd.concat(tables, ignore_index=True)
    results.to_parquet(arguments.output / "results.parquet", index=False)
    law = UniformLaw(low=0.9, high=1.1)
    softsync = {n: plan_updates(NSoftsync(n=n), law, 8, updates).staleness for n in SOFTNESS}
    (arguments.output / "n-softsync.svg").write_bytes(as_svg(histogram(softsync)))
    (arguments.output / "RESULTS.md").write_text(page(results, softsync, gradients), encoding="utf-8")


def histogram(softsync: dict[int, np.ndarray]) -> Figure:
    """Draw the staleness under n-softsync, one panel for each n."""
    figure, panels = new_figure(len(softsync), height=3.2, shared_y=True)
    for axes, (n, staleness) in zip(panels, softsync.items(), strict=True):
        values, counts = np.unique(staleness, return_counts=True)
        axes.bar(values, counts / len(staleness), color=COLORS[0], width=0.8)
        axes.axvline(n, color=COLORS[1], linestyle="--")
        axes.set_xlim(-0.6, 2 * max(softsync) + 0.6)
        in_percent(axes.yaxis)
        name_axes(axes, "staleness", "share of gradients" if n == min(softsync) else "", f"n = {n} (dashed)")
    return figure


def page(results: pd.DataFrame, softsync: dict[int, np.ndarray], gradients: int) -> str:
    """Return the page as Markdown."""
    lines = ["| law | P | policy | largest deviation, exact formula | at K | its standard error | K beyond 2 % |"]
    lines.append("|---|---|---|---|---|---|---|")
    for (law, number, policy), rows in results[results["kind"] == "exact"].groupby(
        ["law", "workers", "policy"], sort=False
    ):
        off = rows.assign(off=(rows["ratio"] - 1).abs())
        worst = off.loc[off["off"].idxmax()]
        beyond = ", ".join(map(str, off[off["off"] > 0.02]["K"])) or "none"
        lines.append(
            f"| {law} | {number} | {policy} | {100 * (worst['ratio'] - 1):+.2f} % | {worst['K']} | "
            f"{100 * worst['standard_error'] / worst['theory']:.2f} % | {beyond} |"
        )
    bounded = results[results["kind"] == "at most"]
    stale = ["| n | mean staleness | largest | share above n | share of 2n and more |", "|---|---|---|---|---|"]
    stale += [
        f"| {n} | {values.mean():.2f} | {values.max()} | {(values > n).mean():.1%} | {(values >= 2 * n).mean():.1%} |"
        for n, values in softsync.items()
    ]
    asgd = results[results["policy"] == "asgd"]
    means = ", ".join(f"{row.staleness_planned:.2f} (P = {row.workers}, {row.law})" for row in asgd.itertuples())
    table, softsync_table = "\n".join(lines), "\n".join(stale)
    return f"""# The planner against the runtime theory

Mean seconds between updates in plans of {gradients} gradients, for every K from 1 to P, against Dutta et al.'s
formulas (K-batch-sync beyond the memoryless law: integrated numerically; K = 1 and K = P of K-async: exact for every
law). Written by `python -m experiments.runtime_theory` ({machine()}); `results.parquet` has each K.

{table}

For K-async under 1 + exponential(1) the formula bounds from above: planned over bound is
{bounded["ratio"].min():.2f} to {bounded["ratio"].max():.2f}, never above 1. Under Pareto there is no bound.

## Staleness

Without delays of links, as here, ASGD's mean staleness is P - 1 for every law: {means}. Staleness counts the server's
updates between the version that a gradient was computed at and the update that takes it, that one not included.

n-softsync, 8 workers of 0.9 to 1.1 s (Zhang et al. 2016 report staleness near n, and hardly any of 2n and more). Its
mean is n (P - 1) / P here, since a worker's own last gradient does not count:

{softsync_table}

![staleness under n-softsync](n-softsync.svg)
"""


if __name__ == "__main__":
    main()
