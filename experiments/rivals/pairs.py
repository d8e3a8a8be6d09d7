"""A2CiD2 against AD-PSGD at once and twice the rate: ``python -m experiments.rivals.pairs [--scale smoke|cpu|paper]``.

Agents on rings: how far they are apart by noise alone, and digits, on alike and on skewed shards. Each method's step
size is searched for on a validation split first. Runs that are complete are not run again.
"""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.rivals.noise import METHODS, NOISES, distance
from experiments.rivals.study import HERE, SHARDS, TUNING_SEED, VALIDATION_SHARE
from experiments.running import Job, at_once, measured, run_study
from experiments.studies import machine
from ray_pcasgd.runs.settings.loading import load_config


def job(
    settings: Mapping[str, Any], agents: int, shards: str, method: str, step_size: float, seed: int, validates: bool
) -> Job:
    """Return one run; at twice the rate, steps are twice as many, of half the batch, step size and time."""
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


def tuning_jobs(settings: Mapping[str, Any]) -> Iterator[Job]:
    """Yield the runs by which each method's step size is chosen."""
    own = settings["pairs"]
    for case in itertools.product(own["agents"], SHARDS, METHODS, own["step_sizes"]):
        yield job(settings, *case, TUNING_SEED, True)


def measure(settings: Mapping[str, Any], storage: Path, output: Path, processes: int) -> None:
    """Run what is missing, and keep what was measured."""
    own, noise = settings["pairs"], settings["pairs"]["noise"]
    cases = list(itertools.product(noise["agents"], METHODS, NOISES, [noise["units"]], range(noise["seeds"])))
    with at_once(processes) as pool:
        found = list(pool.map(distance, *zip(*cases, strict=True)))
    labels = ["agents", "method", "noise", "units", "seed"]
    pd.DataFrame(cases, columns=labels).assign(distance=found).to_parquet(output / "noise.parquet", index=False)
    tuning = measured(tuning_jobs(settings), storage, processes)
    # The agents' mean, not the averaged model's: agents that are far apart may have a good mean.
    chosen = {
        key: float(group.loc[group["agents_mean_test_loss"].fillna(float("inf")).idxmin(), "step_size"])
        for key, group in tuning.groupby(["agents", "shards", "method"], sort=False)
    }
    jobs = [job(settings, *key, step_size, seed, False) for key, step_size in chosen.items() for seed in own["seeds"]]
    results = pd.concat([tuning, measured(jobs, storage, processes)], ignore_index=True)
    results.drop(columns=["path", "run"]).to_parquet(output / "pairs.parquet", index=False)


def write_page(settings: Mapping[str, Any], output: Path, scale: str) -> None:
    """Write PAIRS.md."""
    noise, runs = (pd.read_parquet(output / f"{name}.parquet") for name in ("noise", "pairs"))
    own = settings["pairs"]
    batch = own["config"]["batch_size"]
    text = f"""# A2CiD2 against AD-PSGD at twice the rate

Written by `python -m experiments.rivals.pairs --scale {scale}` on {machine()}.

Agents on rings that average in pairs, with gradients of exponential times, links without delay. The paper (Nabli,
Belilovsky, Oyallon, NeurIPS 2023) says that its continuous momentum has the effect of twice as many averagings.

## Noise alone

Mean squared distance from the agents' mean, a coordinate, in the steady state; step size 1, gradients of unit variance:
white noise, the velocity of white noise with momentum 0.9, and one fixed gradient for each agent.
{noise["units"].iloc[0]} units of time, {noise["seed"].nunique()} seeds.

{noise_table(noise)}

{verdicts(noise)}

## Digits

Batches of {batch}, {own["num_steps"]} gradients an agent. Twice the rate is twice as many steps of half the batch and
half the step size, in half the time, so that it sees the same samples. Step sizes by the agents' mean loss on a
validation split,
{searched(runs)};
seeds {own["seeds"]}: few, and one small task.

{digits_table(runs[~runs["validates"]])}
"""
    (output / "PAIRS.md").write_text(text, encoding="utf-8")


def noise_table(noise: pd.DataFrame) -> str:
    """Return the distances by agents and noise, a column for each method."""
    text = f"| agents | noise | {' | '.join(METHODS)} |\n|---|---|{'---|' * len(METHODS)}\n"
    means = noise.groupby(["agents", "noise", "method"])["distance"].mean()
    for agents, kind in itertools.product(noise["agents"].unique(), NOISES):
        text += f"| {agents} | {kind} | {' | '.join(f'{means[agents, kind, method]:.3g}' for method in METHODS)} |\n"
    return text.rstrip()


def verdicts(noise: pd.DataFrame) -> str:
    """Return for each kind of noise whether A2CiD2 is as good as twice the rate."""
    means = noise.groupby(["agents", "noise", "method"])["distance"].mean()
    plain, twice, own = METHODS
    lines = []
    for kind in NOISES:
        found = {agents: means[agents, kind] for agents in noise["agents"].unique()}
        held = [str(agents) for agents, of in found.items() if of[own] <= of[twice]]
        told = f"as good as twice the rate with {' and '.join(held)} agents" if held else "**not so good**"
        ratios = ", ".join(f"{of[own] / of[twice]:.2f} and {of[own] / of[plain]:.2f}" for of in found.values())
        lines.append(f"- {kind}: {told}; its distance over that of twice the rate, and of once: {ratios}.")
    return "\n".join(lines)


def searched(runs: pd.DataFrame) -> str:
    """Return which step sizes were tried, and how many of the choices are the largest or the smallest of them."""
    tried = runs[runs["validates"]].groupby("agents", sort=False)["step_size"].unique().map(sorted)
    final = runs[~runs["validates"]].drop_duplicates(["agents", "shards", "method"])
    chosen = zip(final["agents"], final["step_size"], strict=True)
    edges = sum(size in (tried[agents][0], tried[agents][-1]) for agents, size in chosen)
    sizes = {agents: ", ".join(f"{size:g}" for size in found) for agents, found in tried.items()}
    names = "; ".join(f"of {found} with {agents} agents" for agents, found in sizes.items())
    return f"{names} ({edges} of {len(final)} choices are at an end of these)"


def digits_table(final: pd.DataFrame) -> str:
    """Return accuracies and distances by agents, shards and method."""
    text = "| agents | shards | method | step size | averaged model | agents' mean | consensus distance |\n"
    text += "|---|---|---|---|---|---|---|\n"
    for (agents, shards, method), rows in final.groupby(["agents", "shards", "method"], sort=False):
        averaged, mean = 100 * rows["test_accuracy"], 100 * rows["agents_mean_test_accuracy"]
        text += (
            f"| {agents} | {shards} | {method} | {rows['step_size'].iloc[0]:g} | "
            f"{averaged.mean():.1f} % ({averaged.min():.1f} to {averaged.max():.1f}) | "
            f"{mean.mean():.1f} % ({mean.min():.1f} to {mean.max():.1f}) | {rows['consensus_distance'].mean():.3g} |\n"
        )
    return text.rstrip()


if __name__ == "__main__":
    run_study(HERE, __doc__, measure, write_page)
