"""The study's page, made from what was measured."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.rivals.study import METHODS, SHARDS
from experiments.studies import machine, search_table


def write_page(settings: Mapping[str, Any], output: Path, scale: str) -> None:
    """Write RESULTS.md."""
    results = pd.read_parquet(output / "results.parquet")
    final = results[~results["validates"]]
    skewed, alike = (final[final["shards"] == shards] for shards in reversed(SHARDS))
    speeds = ", ".join(f"{seconds:g}" for seconds in settings["config"]["compute"]["agents"].values())
    text = f"""# Rivals of ASGD: workers of different speeds

Written by `python -m experiments.rivals --scale {scale}` on {machine()}.

One server, 8 workers whose seconds a mini-batch are fixed ({speeds}), links without delay. Every method has the same
{settings["seconds"]} virtual seconds, and the step size of {settings["step_sizes"]} that is best on a validation split;
seeds {settings["seeds"]}. Few seeds, of which a standard error says little, and one small task.

## {claim(skewed)}

{verdict(skewed, "Ringleader", "ASGD", "skewed shards")}
{verdict(alike, "Ringleader", "ASGD", "alike shards")}
{verdict(skewed, "K-sync, K = 4", "ASGD", "skewed shards")}
{verdict(skewed, "Ringmaster, R = 8", "ASGD", "skewed shards")}

The claim is that ASGD is biased toward fast workers where shards differ, and Ringleader is not.
`tests/unit/rules/test_rivals.py` has it on quadratics with minima of their own: ASGD settles at the minimum of the
losses weighted by pace, Malenia, Ringleader and IA2SGD at that of their plain mean. It says nothing of a network that
fits all shards at once, as one fits the digits, where all losses have a minimum in common; and methods that wait take
fewer updates in the same seconds. That this is the reason here was not tested, nor were step sizes between those of
the search.

{tables(final)}
## The search

Validation loss at the end, by step size (infinite: diverged).

{search_table(results[results["validates"]], ["shards", "method"], "test_loss", ".3f")}
"""
    (output / "RESULTS.md").write_text(text, encoding="utf-8")


def claim(skewed: pd.DataFrame) -> str:
    """Return the heading: whether Ringleader is ahead where ASGD is said to be biased."""
    is_ahead = verdict(skewed, "Ringleader", "ASGD", "").endswith(": ahead.")
    return "The claim reproduces" if is_ahead else "What does not reproduce: Ringleader ahead of ASGD on skewed shards"


def verdict(rows: pd.DataFrame, one: str, other: str, where: str) -> str:
    """Return a line that says which of two methods is ahead, and whether by two standard errors."""
    pairs = rows.pivot(index="seed", columns="method", values="test_accuracy").fillna(0.0)
    differences = 100 * (pairs[one] - pairs[other])
    mean, count = float(differences.mean()), len(differences)
    error = float(differences.std()) / math.sqrt(count) if count > 1 else math.inf
    told = "ahead" if mean > 2 * error else "behind" if mean < -2 * error else "not told apart"
    return f"- {where}: {one} against {other} {mean:+.1f} points (standard error {error:.1f}): {told}."


def tables(final: pd.DataFrame) -> str:
    """Return one table for each kind of shards."""
    text = ""
    for shards in SHARDS:
        text += f"### Shards {shards}\n\n| method | step size | updates | mini-batches / 8 | accuracy | loss |\n"
        text += "|---|---|---|---|---|---|\n"
        for method in METHODS:
            rows = final[(final["shards"] == shards) & (final["method"] == method)]
            accuracy, loss = 100 * rows["test_accuracy"], rows["test_loss"]
            first = rows.iloc[0]
            text += (
                f"| {method} | {first['step_size']:g} | {first['updates']} | {first['taken']} | "
                f"{accuracy.mean():.1f} % ({accuracy.min():.1f} to {accuracy.max():.1f}) | {loss.mean():.3f} |\n"
            )
        text += "\n"
    return text
