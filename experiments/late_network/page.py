"""The page of the two hosts, from what was measured."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from experiments.studies import machine, num_seeds


def page(found: Mapping[str, Any], chosen: Mapping[str, Any], scale: str) -> str:
    """Return the page as Markdown."""
    command = "python -m experiments.late_network" + ("" if scale == "cpu" else f" --scale {scale}")
    lines = [
        "# Two hosts with a slow network between them",
        "",
        f"Written by `{command}`; {machine()}. Two hosts in network namespaces of one machine with 2 cores,",
        "between them a relay with real latency, jitter and 200 Mbit/s; Ray across both. CIFAR-10, a small CNN,",
        f"four live agents, two on each host, {chosen['num_steps']} steps of 32 images, {num_seeds(chosen['seeds'])}, "
        "no delay injected. Seconds count from the first step on.",
        "",
    ]
    for network in found["networks"]:
        lines += _network(network, chosen)
    return "\n".join(lines)


def _network(network: Mapping[str, Any], chosen: Mapping[str, Any]) -> list[str]:
    trip = network["round_trip_ms"]
    lines = [
        f"## {network['delay_ms']} ms one way",
        "",
        f"Round trip as pinged: {trip['mean']:.1f} ms ({trip['min']:.1f} to {trip['max']:.1f}).",
        "",
        f"| method | seconds to {chosen['accuracy']:.0%} | seconds in all | accuracy at the end | "
        "staleness between hosts, mean (95 %, most) | within a host, mean |",
        "|---|---|---|---|---|---|",
    ]
    runs = pd.DataFrame(network["runs"])
    for method, group in runs.groupby("method", sort=False):
        whole = group[group["error"] == ""]
        if whole.empty:
            lines.append(f"| {method} | failed: {group['error'].iloc[0]} | | | | |")
            continue
        seconds = ", ".join("never" if pd.isna(value) else f"{value:.1f}" for value in whole["seconds"])
        far = f"{whole['far_mean'].mean():.2f} ({whole['far_p95'].mean():.0f}, {whole['far_max'].max():.0f})"
        near = f"{whole['near_mean'].mean():.2f}" if "near_mean" in whole else "-"
        lines.append(
            f"| {method} | {seconds} | {whole['whole_seconds'].mean():.1f} | "
            f"{', '.join(f'{value:.1%}' for value in whole['accuracy'])} | {far} | {near} |"
        )
    lines += ["", "The recorded schedules of the PC-ASGD runs, replayed on one machine under other thetas:", ""]
    replayed = [
        {"seed": run["seed"], **one} for run in network["runs"] for one in run.get("replays") or [] if not run["error"]
    ]
    if replayed:
        table = pd.DataFrame(replayed).pivot_table(index="seed", columns="theta", values="accuracy")
        lines += ["| seed | " + " | ".join(f"theta {theta:g}" for theta in table.columns) + " |"]
        lines += ["|---" * (len(table.columns) + 1) + "|"]
        lines += [f"| {seed} | " + " | ".join(f"{v:.1%}" for v in row) + " |" for seed, row in table.iterrows()]
    return [*lines, ""]
