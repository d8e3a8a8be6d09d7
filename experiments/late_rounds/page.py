"""The page of local steps on two hosts, from what was measured."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from experiments.gpt.text import gpt
from experiments.studies import machine, num_seeds
from ray_pcasgd.tasks.models import num_parameters


def page(found: Mapping[str, Any], chosen: Mapping[str, Any], scale: str) -> str:
    """Return the page as Markdown."""
    size = num_parameters(gpt(**chosen["model"]))
    head = f"""# Local steps on two hosts with a slow network between them

Two hosts in network namespaces of one machine with 2 cores, between them a relay with real latency, jitter and
200 Mbit/s; Ray across both. A GPT of {size:,} parameters on bytes of Python's own sources, AdamW, four live agents,
two on each host, {chosen["num_steps"]} steps of 8 windows, {num_seeds(chosen["seeds"])}, no delay injected; PC-ASGD as
it comes, with `overlap: false`. Seconds count from the first step on; `waited` is what an agent's reports call so: for
its barrier, or its server's answer.

"""
    command = "python -m experiments.late_rounds" + ("" if scale == "cpu" else f" --scale {scale}")
    sections = [_network(network, chosen) for network in found["networks"]]
    return head + "\n".join(sections) + f"\nWritten by `{command}` ({machine()}).\n"


def _network(network: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    trip = network["round_trip_ms"]
    columns = (
        f"seconds to a loss of {chosen['loss']:g}",
        "seconds in all",
        "loss at the end",
        "waited, seconds an agent",
        "MB an agent",
        "staleness between hosts, mean (95 %, most)",
    )
    lines = [
        f"## {2 * network['delay_ms']} ms round trip",
        "",
        f"As pinged: {trip['mean']:.1f} ms ({trip['min']:.1f} to {trip['max']:.1f}).",
        "",
        f"| method | {' | '.join(columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for method, group in pd.DataFrame(network["runs"]).groupby("method", sort=False):
        whole = group[group["error"] == ""]
        if whole.empty:
            lines.append(f"| {method} | failed: {group['error'].iloc[0]} |" + " |" * (len(columns) - 1))
            continue
        cells = [
            ", ".join("never" if pd.isna(value) else f"{value:.1f}" for value in whole["seconds"]),
            f"{whole['whole_seconds'].mean():.1f}",
            ", ".join(f"{value:.3f}" for value in whole["loss"]),
            f"{whole['waited'].mean():.1f}",
            f"{whole['megabytes'].mean():.3g}",
            f"{whole['far_mean'].mean():.2f} ({whole['far_p95'].mean():.0f}, {whole['far_max'].max():.0f})",
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_replays(network)])


def _replays(network: Mapping[str, Any]) -> list[str]:
    """Return the table of the losses at equal mini-batches with several seeds, and of their distance to D-PSGD's."""
    if not network.get("replays"):
        return []
    live = [{"method": run["method"], "seed": run["seed"], "test_loss": run["loss"]} for run in network["runs"]]
    table = pd.DataFrame([*live, *network["replays"]]).pivot(index="seed", columns="method", values="test_loss")
    first = network["runs"][0]["method"]
    lines = [
        "The same schedules, replayed with other seeds (model, shards, mini-batches): the loss at the end, and by how",
        f"much it is above {first}'s with the same seed, mean and standard deviation over seeds.",
        "",
        f"| method | {' | '.join(f'seed {seed}' for seed in table.index)} | above |",
        "|---" * (len(table) + 2) + "|",
    ]
    for run in network["runs"]:
        losses = table[run["method"]]
        above = losses - table[first]
        cells = [f"{loss:.3f}" for loss in losses]
        lines.append(f"| {run['method']} | {' | '.join(cells)} | {above.mean():.3f} ± {above.std():.3f} |")
    return [*lines, ""]
