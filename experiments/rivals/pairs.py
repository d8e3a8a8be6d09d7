"""A2CiD2 against AD-PSGD at once and twice the rate: ``python -m experiments.rivals.pairs [--scale smoke|cpu|paper]``.

Agents on rings: how far they are apart by noise alone, and digits, on alike and on skewed shards. Each method's step
size is searched for on a validation split first, beyond the grid where the best is at its edge. Runs that are complete
are not run again.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.differences import difference, quantile
from experiments.rivals.claims import GUESS
from experiments.rivals.noise import METHODS, NOISES, distance
from experiments.rivals.search import Case, Choice, grid, jobs_of, search
from experiments.rivals.study import HERE, SHARDS, VALIDATION_SHARE
from experiments.running import Job, at_once, measured, run_study
from experiments.studies import machine, percent
from ray_pcasgd.runs.settings.loading import load_config

CHOICE = Choice(("agents", "shards", "method"), "agents_mean_test_loss")
"""By the agents' mean, not the averaged model's: agents that are far apart may have a good mean."""
_TOLD_NEAR = ("not told apart", "further apart", "nearer")
_TOLD_AHEAD = ("not told apart", "ahead", "behind")


def job(
    settings: Mapping[str, Any], agents: int, shards: str, method: str, step_size: float, seed: int, validates: bool
) -> Job:
    """Return one run; at twice the rate, steps are twice as many, of half the batch, step size and time.

    That is a proxy: as many averagings, the same samples, but gradients in smaller pieces, each at newer weights.
    """
    own, (rate, accelerated) = settings["pairs"], METHODS[method]
    num_steps = own["num_steps"] * rate
    changes = {
        "algorithm": {"name": "ad-psgd", "acceleration": "acid" if accelerated else None},
        "num_agents": agents,
        "num_steps": num_steps,
        "evaluate_every": num_steps,
        "batch_size": own["config"]["batch_size"] // rate,
        "step_size": step_size / rate,
        "compute": {"law": {"name": "exponential", "mean": 1 / rate}},
        "partition": SHARDS[shards],
        "seed": seed,
        "task": {"validation_share": VALIDATION_SHARE if validates else 0.0},
    }
    labels = {"agents": agents, "shards": shards, "method": method, "step_size": step_size, "seed": seed}
    return Job(labels | {"validates": validates}, load_config(own["config"], changes=changes))


def cases(settings: Mapping[str, Any]) -> list[Case]:
    """Return what has a step size of its own."""
    return list(itertools.product(settings["pairs"]["agents"], SHARDS, METHODS))


def tuning_jobs(settings: Mapping[str, Any]) -> Iterator[Job]:
    """Yield the runs by which each method's step size is chosen, without those beyond the grid."""
    own = settings["pairs"]
    return jobs_of(partial(job, settings), grid(cases(settings), own), own)


def measure(settings: Mapping[str, Any], storage: Path, output: Path, processes: int) -> None:
    """Run what is missing, and keep what was measured."""
    own, noise = settings["pairs"], settings["pairs"]["noise"]
    drawn = list(itertools.product(noise["agents"], METHODS, NOISES, [noise["units"]], range(noise["seeds"])))
    with at_once(processes) as pool:
        found = list(pool.map(distance, *zip(*drawn, strict=True)))
    labels = ["agents", "method", "noise", "units", "seed"]
    pd.DataFrame(drawn, columns=labels).assign(distance=found).to_parquet(output / "noise.parquet", index=False)
    tuning = search(partial(job, settings), cases(settings), CHOICE, own, storage, processes)
    best = CHOICE.chosen(tuning)
    jobs = [job(settings, *case, step_size, seed, False) for case, step_size in best.items() for seed in own["seeds"]]
    results = pd.concat([tuning, measured(jobs, storage, processes)], ignore_index=True)
    results.drop(columns=["path", "run"]).to_parquet(output / "pairs.parquet", index=False)


def write_page(settings: Mapping[str, Any], output: Path, scale: str) -> None:
    """Write PAIRS.md."""
    noise, runs = (pd.read_parquet(output / f"{name}.parquet") for name in ("noise", "pairs"))
    own, final = settings["pairs"], runs[~runs["validates"]]
    found = [*of_noise(noise), *of_digits(final)]
    text = f"""# A2CiD2 against AD-PSGD at twice the rate

Written by `python -m experiments.rivals.pairs --scale {scale}` on {machine()}.

Agents on rings that average in pairs, with gradients of exponential times, links without delay. The paper (Nabli,
Belilovsky, Oyallon, NeurIPS 2023) says that its continuous momentum has the effect of twice as many averagings.

## What does not reproduce: A2CiD2 as good as twice the rate

{listed(found, -1)}

## What reproduces

{listed(found, 1)}

## What cannot be told

{listed(found, 0)}

Of noise alone the figures are ratios of squared distances, geometric means over {noise["seed"].nunique()} seeds, below
1 where A2CiD2's agents are nearer each other. Of digits they are points of the agents' mean accuracy, seed by seed,
with the standard error of their mean over {len(own["seeds"])} seeds. Told apart is what Student's 95 % interval leaves
on one side: {quantile(len(own["seeds"])):.1f} standard errors with {len(own["seeds"])} seeds.

## Noise alone

Mean squared distance from the agents' mean, a coordinate, in the steady state; step size 1, gradients of unit variance:
white noise, the velocity of white noise with momentum 0.9, and one fixed gradient for each agent. Twice the rate is as
the paper has it: every other averaging is followed by a gradient.
{noise["units"].iloc[0]} units of time, {noise["seed"].nunique()} seeds.

{noise_table(noise)}

## Digits

Batches of {own["config"]["batch_size"]}, {own["num_steps"]} gradients an agent, one small task. **Twice the rate is a
proxy here**: a gradient follows each averaging, so that there are twice as many of both in the same time, of half the
batch and half the step size. These are the same samples and as many averagings as the paper's, but gradients in
smaller pieces, each at newer weights, which may help by itself; noise alone has no such difference. Step sizes are of
AD-PSGD at once: those at twice the rate are half of them. Accuracies are means over the seeds, with the sample
deviation.

{digits_table(final)}

## The search

The agents' mean loss on a validation split at the end, by step size (inf: diverged).

{CHOICE.table(runs[runs["validates"]])}
"""
    (output / "PAIRS.md").write_text(text, encoding="utf-8")


def listed(found: Iterable[tuple[int, str]], sign: int) -> str:
    """Return the lines of what holds (1), of what does not (-1), or of what cannot be told (0)."""
    return "\n".join(f"- {said}" for told, said in found if told == sign) or "Nothing."


def noise_table(noise: pd.DataFrame) -> str:
    """Return the distances by agents and noise, a column for each method."""
    text = f"| agents | noise | {' | '.join(METHODS)} |\n|---|---|{'---|' * len(METHODS)}\n"
    means = noise.groupby(["agents", "noise", "method"])["distance"].mean()
    for agents, kind in itertools.product(noise["agents"].unique(), NOISES):
        text += f"| {agents} | {kind} | {' | '.join(f'{means[agents, kind, method]:.3g}' for method in METHODS)} |\n"
    return text.rstrip()


def of_noise(noise: pd.DataFrame) -> Iterator[tuple[int, str]]:
    """Yield by kind of noise and number of agents whether A2CiD2's agents are nearer each other than at twice the rate.

    1 where they are, -1 where they are farther, 0 where that cannot be told; and what it comes to.
    """
    plain, twice, own = METHODS
    for kind, agents in itertools.product(NOISES, noise["agents"].unique()):
        rows = noise[(noise["noise"] == kind) & (noise["agents"] == agents)]
        table = np.log(rows.pivot(index="seed", columns="method", values="distance"))
        found = [difference(table[own] - table[other]) for other in (twice, plain)]
        ratios = [f"{math.exp(one.mean):.2f} ({_TOLD_NEAR[one.sign]})" for one in found]
        said = f"Noise alone, {kind}, {agents} agents: {ratios[0]} of the squared distance at twice the rate"
        yield -found[0].sign, f"{said}, {ratios[1]} of that at once."


def of_digits(final: pd.DataFrame) -> Iterator[tuple[int, str]]:
    """Yield by number of agents and kind of shards whether A2CiD2 is ahead of twice the rate.

    1 where it is, -1 where it is behind, 0 where that cannot be told; and what it comes to.
    """
    plain, twice, own = METHODS
    for (agents, shards), rows in final.groupby(["agents", "shards"], sort=False):
        table = 100 * rows.pivot(index="seed", columns="method", values="agents_mean_test_accuracy").fillna(GUESS)
        found = {other: difference(table[own] - table[other]) for other in (twice, plain)}
        told = [
            f"{one.mean:+.1f} ({one.error:.1f}) against {table[other].mean():.1f} % {words}, {_TOLD_AHEAD[one.sign]}"
            for (other, one), words in zip(found.items(), ("at twice the rate", "at once"), strict=True)
        ]
        said = f"Digits, {agents} agents, shards {shards}: {table[own].mean():.1f} % with A2CiD2"
        yield found[twice].sign, f"{said}; {'; '.join(told)}."


def digits_table(final: pd.DataFrame) -> str:
    """Return accuracies and distances by agents, shards and method."""
    text = "| agents | shards | method | step size | averaged model | agents' mean | consensus distance |\n"
    text += "|---|---|---|---|---|---|---|\n"
    for (agents, shards, method), rows in final.groupby(["agents", "shards", "method"], sort=False):
        text += (
            f"| {agents} | {shards} | {method} | {rows['step_size'].iloc[0]:g} | {percent(rows['test_accuracy'])} | "
            f"{percent(rows['agents_mean_test_accuracy'])} | {rows['consensus_distance'].mean():.3g} |\n"
        )
    return text.rstrip()


if __name__ == "__main__":
    run_study(HERE, __doc__, measure, write_page)
