"""The page of the faults of live runs, from what was measured."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from experiments.live_faults import scenarios
from experiments.studies import machine

WITHIN_POINTS = 1.5


def page(results: pd.DataFrame, commands: pd.DataFrame, settings: Mapping[str, Any], scale: str) -> str:
    """Return the page as Markdown."""
    command = "python -m experiments.live_faults" + ("" if scale == "cpu" else f" --scale {scale}")
    lines = [
        "# Faults of live runs",
        "",
        f"Written by `{command}`; {machine()}. Handwritten digits on 4 live agents whose steps take 20 ms and more,",
        f"{settings['num_steps']} steps, no delays injected, `engine.message_seconds` at its default of 300; each",
        "fault at a step drawn between a fifth and four fifths of the run, to a random agent, unless its name says",
        "otherwise (`the same one five times`: with `max_failures: -1`). A test set of 359 digits makes steps of 0.28",
        "points, and a live run is another one each time: the line `none` shows by how much undisturbed runs differ.",
        f"Measured so far: {len(results)} of the {_wanted(settings)} runs that the study asks for.",
        "",
        *_missed(results),
        "## Accuracy against the undisturbed run of the seed: mean (worst), in points",
        "",
        *_table(results, _accuracy),
        "## Records: replayed to the same bits; or replayed, with an event that says what is missing",
        "",
        *_table(results, _records),
        "## Staleness as it was recorded: share of reads within one step or a tenth of the truth (mean truth, steps)",
        "",
        *_table(results[results["staleness_reads"].notna()], _staleness),
        *_live_command(commands),
    ]
    return "\n".join(lines)


def _wanted(settings: Mapping[str, Any]) -> int:
    """Return the number of runs of a scale."""
    algorithms = settings.get("algorithms", scenarios.ALGORITHMS)
    return len(algorithms) * len(settings.get("faults", scenarios.FAULTS)) * int(settings["seeds"])


def _missed(results: pd.DataFrame) -> list[str]:
    """Say first what is not as it should be."""
    differences = _differences(results)
    below = results[(differences < -WITHIN_POINTS) & (results["error"] == "")]
    failed = results[results["error"] != ""]
    silent = results[~results["same_bits"] & (results["unrecorded"] == 0)]
    unread = results[~results["replays"]]
    told = {number: f"{differences[number]:+.2f} points, and no word of it" for number in below.index}
    told |= dict(failed["error"])
    told |= dict.fromkeys(silent.index, "its record replays to other bits, and no event says why")
    told |= {number: f"its record does not replay: {error}" for number, error in unread["replay_error"].items()}
    lines = ["## What is not as it should be", ""]
    for number in sorted(told):
        row = results.loc[number]
        lines.append(f"- {row['algorithm']}, {row['fault']}, seed {row['seed']}: {told[number]}")
    return [*lines, ""] if len(lines) > 2 else [*lines, "Nothing.", ""]


def _differences(results: pd.DataFrame) -> pd.Series:
    undisturbed = results[results["fault"] == "none"].set_index(["algorithm", "seed"])["accuracy"]
    own = results.set_index(["algorithm", "seed"]).index
    return pd.Series(100 * (results["accuracy"].to_numpy() - undisturbed.reindex(own).to_numpy()), results.index)


def _table(results: pd.DataFrame, cell: Any) -> list[str]:
    algorithms = list(dict.fromkeys(results["algorithm"]))
    differences = _differences(results)
    lines = ["| fault | " + " | ".join(algorithms) + " |", "|---" * (len(algorithms) + 1) + "|"]
    for fault in dict.fromkeys(results["fault"]):
        groups = [results[(results["fault"] == fault) & (results["algorithm"] == name)] for name in algorithms]
        cells = [cell(group, differences[group.index]) if len(group) else "-" for group in groups]
        lines.append(f"| {fault} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _accuracy(group: pd.DataFrame, differences: pd.Series) -> str:
    if (group["fault"] == "none").all():
        own = 100 * group["accuracy"]
        return f"itself {own.mean():.1f} ({own.min():.1f} to {own.max():.1f}) %"
    return f"{differences.mean():+.2f} ({differences.min():+.2f}), {len(group)} runs"


def _records(group: pd.DataFrame, _: pd.Series) -> str:
    told = int((~group["same_bits"] & group["replays"] & (group["unrecorded"] > 0)).sum())
    return f"{int(group['same_bits'].sum())}" + (f" + {told}" if told else "") + f" of {len(group)}"


def _staleness(group: pd.DataFrame, _: pd.Series) -> str:
    return f"{100 * group['staleness_right'].mean():.1f} % ({group['staleness_true'].mean():.2f})"


def _live_command(commands: pd.DataFrame) -> list[str]:
    planned = 100 * float(commands[commands["number"] < 0]["accuracy"].iloc[0])
    lines = [
        "## The live command of docs/commands.md",
        "",
        "`ray-pcasgd train --name live --set engine.mode=live --set num_agents=3 --set num_steps=60`: three agents",
        f"whose steps take 2 ms; the planned run of that length comes to {planned:.1f} %.",
        "",
        "| machine | runs | accuracy: mean (smallest to largest) | not more than 3 points below the planned run | "
        "staleness: true, recorded (mean steps) | right | largest recorded above the truth by |",
        "|---|---|---|---|---|---|---|",
    ]
    live = commands[commands["number"] >= 0]
    for is_busy, group in live.groupby("busy"):
        own = 100 * group["accuracy"]
        near = int((own >= planned - 3 - 1e-9).sum())
        lines.append(
            f"| {'8 busy loops' if is_busy else 'quiet'} | {len(group)} | "
            f"{own.mean():.1f} ({own.min():.1f} to {own.max():.1f}) % | {near} | {group['staleness_true'].mean():.2f}, "
            f"{group['staleness_recorded'].mean():.2f} | {100 * group['staleness_right'].mean():.1f} % | "
            f"{int(group['staleness_largest_error'].max())} |"
        )
    return [*lines, ""]
