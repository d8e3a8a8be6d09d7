"""The study's page, made from what was measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.byzantine import bridge, lateness, screens, slowdown, with_servers
from experiments.byzantine.figures import STANDS, case
from experiments.byzantine.study import jobs_of
from experiments.studies import machine

WITHOUT = """- BRIDGE: the digits, 71 an agent, are in the place of MNIST's 2000, one or two seeds in that of ten
  trials, and steps are a hundred times as long. What the authors learn that is not convex is left out. Bulyan is set
  for one attacker: for two it asks for ten neighbors, which not every agent of such a graph has.
- Kardam: the digits are in the place of EMNIST and CIFAR-100, which cannot be downloaded here, and a small network in
  that of the authors'."""
"""What of the papers' own experiments was not made."""


def write_page(settings: Mapping[str, Any], output: Path, scale: str) -> None:
    """Write RESULTS.md."""
    results = pd.read_parquet(output / "results.parquet")
    distances = pd.read_parquet(output / "distances.parquet")
    (output / "RESULTS.md").write_text(page(settings, results, distances, scale), encoding="utf-8")


def page(settings: Mapping[str, Any], results: pd.DataFrame, distances: pd.DataFrame, scale: str) -> str:
    """Return the page as Markdown."""
    peers, servers = (case(results, kind=kind) for kind in ("peers", "servers"))
    return f"""{_introduction(settings, results, scale)}
{_claims(settings, results)}
{_by_attack(case(peers, late="keep"))}
{_bridge(settings, case(results, kind="bridge"))}
## How many late honest neighbors are taken for attackers

{lateness.table(peers)}
### Why

{lateness.why(distances)}## Servers

{settings["config"]["num_agents"]} workers, exponential compute times, two attackers; b = 2 (Bulyan's 1: for 2 it asks
for 11), Kardam's f = 2. Mini-batches of {settings["config"]["batch_size"]}, large ones of
{settings["distances"]["batch_sizes"][-1]}. *Left out*: shares of the attackers' and of the others' gradients.

{with_servers.table(servers)}"""


def _introduction(settings: Mapping[str, Any], results: pd.DataFrame, scale: str) -> str:
    return f"""# Attackers, and honest neighbors that are late

Written by `python -m experiments.byzantine --scale {scale}` on {machine()}.

Digits, {settings["config"]["num_agents"]} agents that read each other, {settings["config"]["num_steps"]} steps each;
seeds {settings["seeds"]}. Attackers are agents 1 and 4, in this order. *Late*: messages between
agents 0 to 5 and agents 6 and 7 are {settings["delay"]} steps late. Accuracy is the mean over honest agents,
`bridge`'s b is the number of attackers (1 where there is none), `mean` is `d-asgd`, *NNM + krum* is `krum` with
nearest-neighbor mixing first.
{spread(results)}
{made(settings, results)}
"""


def _claims(settings: Mapping[str, Any], results: pd.DataFrame) -> str:
    peers, servers, bridged, slowed = (case(results, kind=kind) for kind in ("peers", "servers", "bridge", "slowdown"))
    return f"""## What does not reproduce, and what does

{lateness.claim(peers)}
{with_servers.kardam(servers)}
{slowdown.text(slowed, settings["config"]["num_agents"])}
{bridge.claim(bridged)}
{screens.claims(case(peers, late="keep"))}

Of the papers' own experiments were not made:

{WITHOUT}
"""


def _by_attack(kept: pd.DataFrame) -> str:
    return f"""## Accuracy by attack and number of attackers

In each cell the accuracy with one attacker, and with two; a dash for Bulyan: the graph has too few neighbors for so
many. An attack is stood (no mark) where accuracy is at most {100 * STANDS:g} points below that of the plain mean
without attackers under the same delays and shards; **bold**: it is not.

{screens.tables(kept)}### Attacks that are not stood

Of all attacks above, each with one attacker and with two:

{screens.not_stood(kept)}
## Nearest-neighbor mixing

Points that mixing first adds to a screen's accuracy, on average over the attacks with 0, 1 and 2 attackers; in
parentheses: in how many of these it adds more than a point. Seeds: {screens.seeds_of_mixing(kept)}.

{screens.mixing(kept)}"""


def _bridge(settings: Mapping[str, Any], bridged: pd.DataFrame) -> str:
    own = settings["bridge"]
    return f"""## BRIDGE's own experiment

{own["config"]["num_agents"]} agents on a random graph, each pair joined with probability
{own["config"]["topology"]["probability"]:g}; a linear classifier of the digits, shards alike, whole shards as
mini-batches; {own["config"]["num_steps"]} steps of size {own["step_size"]}/(t + 1); attackers send numbers drawn evenly
from (-1, 0). Seeds {sorted(bridged["seed"].unique().tolist())}. b stays what it is, whatever the number of attackers;
**bold** as above.

{bridge.table(bridged)}"""


def made(settings: Mapping[str, Any], results: pd.DataFrame) -> str:
    """Return how many of the scale's runs were made, and when, where not all were made at once."""
    number = sum(1 for _ in jobs_of(settings))
    text = f"All {number} runs of this scale were made."
    if len(results) != number:
        text = (
            f"**{len(results)} of the {number} runs of this scale were made**; a dash stands for those that were not, "
            "a star where not all seeds were."
        )
    if "commit" not in results:
        return text
    counts = results["commit"].value_counts(sort=False)
    parts = ", ".join(f"{rows} at commit {commit}" for commit, rows in counts.items())
    return (
        f"{text} Not all at once: {parts}. {results['again'].sum()} of the latter were made before, too, at the former "
        "commit: their figures are the same to the last digit."
    )


def spread(results: pd.DataFrame) -> str:
    """Return how far the seeds of one case are apart."""
    labels = ["kind", "method", "attack", "attackers", "shards", "is_late", "late"]
    deviations = results.groupby(labels)["accuracy"].std().dropna()
    if deviations.empty:
        return "One seed and one small task: differences of a few points say nothing."
    middle, most = (100 * deviations.quantile(share) for share in (0.5, 0.9))
    return (
        f"Figures are means over seeds, whose sample standard deviation is {middle:.1f} points in the middle of all "
        f"cases and {most:.1f} at most in nine of ten; the task is one small one."
    )
