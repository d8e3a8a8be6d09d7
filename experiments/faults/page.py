"""The page of the fault benchmark, from what was measured."""

import itertools
from collections.abc import Mapping
from typing import Any

import pandas as pd

from experiments.studies import machine

_WITHIN = 0.01
"""Accuracy by which a disturbed live run may differ from the undisturbed one."""


def page(results: pd.DataFrame, settings: Mapping[str, Any], scale: str) -> str:
    """Return the page as Markdown."""
    lines = [
        "# Faults at random steps",
        "",
        "Written by `python -m experiments.faults"
        + ("" if scale == "cpu" else f" --scale {scale}")
        + f"`; {machine()}. Handwritten digits on 4 agents (PC-ASGD, theta 0.3, links between clusters 5 steps late;",
        f"or K-async with K = 2 and a server), {settings['num_steps']} steps, on a Ray cluster of three nodes on one",
        "machine; each fault once with each seed, at a step drawn between a fifth and four fifths of the run, to a",
        "random agent.",
        "A test set of 359 digits makes steps of 0.28 points. A live run is another one each time: disturbed and",
        "undisturbed runs of a seed share data, shards and initial weights, and differ in what was read when.",
        "That states cannot be written changes nothing in training: that line shows how far live runs differ anyway.",
        "",
    ]
    for algorithm, mode in itertools.product(results["algorithm"].unique(), ("planned", "live")):
        rows = results[(results["mode"] == mode) & (results["algorithm"] == algorithm)]
        lines += [f"## {mode.capitalize()} runs, {algorithm}", "", *_table(rows, mode)]
    failed = results[results["error"] != ""]
    if len(failed):
        lines += ["## Runs that did not finish", ""]
        lines += [
            f"- {row['algorithm']}, {row['fault']}, {row['mode']}, seed {row['seed']}, step {row['at_step']}: "
            f"{row['error']}"
            for row in failed.to_dict("records")
        ]
        lines.append("")
    return "\n".join(lines)


def _table(rows: pd.DataFrame, mode: str) -> list[str]:
    undisturbed = rows[rows["fault"] == "none"].set_index("seed")
    last = "same bits as undisturbed"
    if mode == "live":
        last = "accuracy against undisturbed, mean (worst) | of these not more than 1 point below"
        if rows["same_bits"].notna().all():
            last += " | the record replays to the same bits"
    lines = [
        f"| fault | runs | finished | {last} | restarts | agents that came back | seconds lost (median) |",
        "|---" * (7 + last.count("|")) + "|",
    ]
    for fault, group in rows.groupby("fault", sort=False):
        finished = group[group["error"] == ""]
        if mode == "planned":
            outcome = f"{int(group['same_bits'].sum())} of {len(group)}"
        else:
            difference = 100 * (group.set_index("seed")["accuracy"] - undisturbed["accuracy"]).dropna()
            near = int((difference >= -100 * _WITHIN - 1e-9).sum())
            outcome = f"{difference.mean():+.2f} ({difference.min():+.2f}) points | {near} of {len(group)}"
            if fault == "none":
                spread = 100 * group["accuracy"]
                outcome = f"itself {spread.mean():.1f} ({spread.min():.1f} to {spread.max():.1f}) % | -"
            if "replays" in last:
                outcome += f" | {int(group['same_bits'].sum())} of {len(group)}"
        spent = (group.set_index("seed")["seconds"] - undisturbed["seconds"]).dropna().median()
        lines.append(
            f"| {fault} | {len(group)} | {len(finished)} | {outcome} | {int(group['restarts'].sum())} | "
            f"{int(group['returned'].sum())} | {'-' if fault == 'none' else f'{spent:.1f}'} |"
        )
    return [*lines, ""]
