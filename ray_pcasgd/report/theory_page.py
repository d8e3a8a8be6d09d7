"""The runtime theory compared with the planner, as a table and as pictures."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ray_pcasgd.config import Config
from ray_pcasgd.report.drawing import as_svg, legend, line, logarithmic, name_axes, new_figure, style
from ray_pcasgd.rules.gathering import Gathering
from ray_pcasgd.runs.settings.loading import SettingsError
from ray_pcasgd.runs.settings.reference import short_form
from ray_pcasgd.schedule.laws import Law
from ray_pcasgd.schedule.runtime_theory import (
    Bound,
    error_bound,
    mean_staleness,
    order_statistic,
    plan_updates,
    policies,
    seconds_per_update,
)


def check_theory(config: Config) -> None:
    """Raise ``SettingsError`` where the theory says nothing about the settings' compute times."""
    if config.compute.agents or config.compute.stragglers:
        raise SettingsError("compute.agents, compute.stragglers: allowed for the theory is one law for all workers")
    try:
        mean = order_statistic(config.compute.law, config.num_agents, config.num_agents)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    if not 0 < mean < math.inf:
        law = short_form(config.compute.law)
        raise SettingsError(f"compute.law = {law}: allowed for the theory are laws with a finite mean above 0")


def theory_table(
    law: Law, num_workers: int, num_updates: int, seed: int = 0, gatherings: Sequence[Gathering] | None = None
) -> pd.DataFrame:
    """Return one row for each policy: seconds per update and staleness, by the theory and in a plan."""
    rows = []
    for gathering in policies(num_workers) if gatherings is None else gatherings:
        expected = seconds_per_update(gathering, law, num_workers)
        planned = plan_updates(gathering, law, num_workers, num_updates, seed)
        rows.append(
            {
                "policy": gathering.name,  # type: ignore[attr-defined]
                "K": gathering.num_gradients(num_workers),
                "theory": expected.seconds,
                "kind": expected.kind,
                "planned": planned.seconds,
                "standard_error": planned.deviation,
                "ratio": planned.seconds / expected.seconds,
                "staleness_theory": mean_staleness(gathering, num_workers),
                "staleness_planned": float(planned.staleness.mean()),
                "staleness_max": int(planned.staleness.max()),
                "fresh": planned.fresh,
                "cancelled_per_update": planned.cancelled,
            }
        )
    return pd.DataFrame(rows)


def theory_figure(table: pd.DataFrame, num_workers: int, bound: Bound) -> Figure:
    """Draw seconds per update against K, and the bound of the error against time (Dutta et al. 2018, figure 1)."""
    figure, (left, right) = new_figure(2, height=4.2)
    styles = {str(policy): style(place) for place, policy in enumerate(dict.fromkeys(table["policy"]))}
    for policy, rows in table.groupby("policy", sort=False):
        color, dashes = styles[str(policy)]
        line(left, rows["K"].to_numpy(float), rows["theory"].to_numpy(float), color, dashes)
        left.plot(rows["K"], rows["planned"], color=color, linestyle="", marker="o", markersize=4)
    logarithmic(left.yaxis)
    name_axes(left, "K", "seconds per update", f"{num_workers} workers; lines: theory, dots: planner")
    middle = num_workers // 2
    shown = table[(table["K"] == middle) | table["policy"].isin(["sync", "asgd"])]
    time = np.geomspace(table["planned"].min() * 20, table["planned"].max() * 2000, 300)
    for row in shown.to_dict("records"):
        line(right, time, error_bound(bound, row["K"], row["planned"], row["fresh"], time), *styles[row["policy"]])
    right.set_xscale("log")
    right.set_yscale("log")
    name_axes(right, "seconds", "bound of the mean squared gradient", f"K = {middle} where it may be chosen")
    legend(figure, [(policy, *of_policy) for policy, of_policy in styles.items()])
    return figure


def write_theory(table: pd.DataFrame, num_workers: int, folder: Path, bound: Bound) -> list[Path]:
    """Write the table and the picture into a folder, and return where they lie."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "theory.parquet", folder / "theory.svg"]
    table.to_parquet(paths[0], index=False)
    paths[1].write_bytes(as_svg(theory_figure(table, num_workers, bound)))
    return paths
