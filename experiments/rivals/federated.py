"""FedGLOMO and FedLOMO against FedAvg: ``python -m experiments.rivals.federated [--scale smoke|cpu|paper]``.

Least squares on the digits, whose optimum is known; each client has samples of two digits alone. All methods take the
same number of mini-batch gradients a client; step size and beta are searched for on one seed, by the distance to the
optimum. Runs that are complete are not run again.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from experiments.convergence.problem import CLASSES, Digits, optimum
from experiments.rivals.study import HERE, TUNING_SEED
from experiments.running import Job, measured, run_study
from experiments.studies import machine, search_table
from ray_pcasgd.config import Config
from ray_pcasgd.rules.fedglomo import FedGLOMO
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.tasks.partition import Partition
from ray_pcasgd.tasks.samples import Samples

FEDAVG, FEDLOMO, FEDGLOMO = "FedAvg", "FedLOMO", "FedGLOMO"
WHOLE = "FedLOMO, whole shard first"
METHODS = (FEDAVG, FEDLOMO, FEDGLOMO, WHOLE)
AVERAGING = {"name": "diloco", "outer": {"name": "sgd", "step_size": 1.0, "momentum": 0.0}}


def rounds_of(own: Mapping[str, Any], method: str) -> int:
    """Return how many rounds a method takes of the gradients that each client may compute."""
    config = own["config"]
    steps, of_shard = config["local_steps"], -(-len(Digits()) // config["num_agents"] // config["batch_size"])
    if method == FEDAVG:
        return max(1, int(own["gradients"]) // int(steps))
    rule = FedGLOMO(beta=0.2 if method == FEDGLOMO else 1.0, first="shard" if method == WHOLE else "batch")
    return max(1, int(own["gradients"]) // rule.num_gradients(steps, of_shard))


def job(settings: Mapping[str, Any], method: str, step_size: float, beta: float, seed: int, tunes: bool) -> Job:
    """Return one run; ``beta`` is FedGLOMO's, and 1 of the others."""
    own = settings["federated"]
    rounds = rounds_of(own, method)
    num_steps = rounds * own["config"]["local_steps"]
    first = "shard" if method == WHOLE else "batch"
    changes = {
        "algorithm": AVERAGING if method == FEDAVG else {"name": "fedglomo", "beta": beta, "first": first},
        "step_size": step_size,
        "num_steps": num_steps,
        "evaluate_every": num_steps,
        "seed": seed,
    }
    labels = {"method": method, "step_size": step_size, "beta": beta, "rounds": rounds, "seed": seed, "tunes": tunes}
    return Job(labels, load_config(own["config"], changes=changes))


def tuning_jobs(settings: Mapping[str, Any]) -> Iterator[Job]:
    """Yield the runs by which each method's step size and beta are chosen."""
    own = settings["federated"]
    for method in METHODS:
        for step_size in own["step_sizes"]:
            for beta in own["betas"] if method == FEDGLOMO else [1.0]:
                yield job(settings, method, step_size, beta, TUNING_SEED, True)


class Objective(NamedTuple):
    """The mean of the clients' own objectives, each the mean over its shard."""

    shards: tuple[np.ndarray, ...]
    best: torch.Tensor
    """Where it is least, shape (D,), float64."""


@cache  # for all runs of a seed
def objective(partition: Partition, num_agents: int, seed: int, decay: float) -> Objective:
    """Return the objective of a run's clients."""
    shards = partition.split(Samples(*Digits().tensors), num_agents, seed)
    return Objective(shards, optimum("least squares", shards, decay).weights)


def excess(config: Config, path: Path) -> float:
    """Return by how much a run's model is above the least objective, the mean of the clients' own; nan: it diverged."""
    if not (path / "model.safetensors").exists():
        return float("nan")
    decay = config.optimizer.weight_decay  # type: ignore[union-attr]
    shards, best = objective(config.partition, config.num_agents, config.seed, decay)
    tensors = load_file(path / "model.safetensors")
    flat = torch.cat([tensors["weight"].reshape(-1), tensors["bias"]]).double()
    apart = flat - best
    weight, bias = apart[:-CLASSES].view(CLASSES, -1), apart[-CLASSES:]
    squares = (Digits().tensors[0].double() @ weight.T + bias).square().sum(1).numpy()
    found = np.mean([squares[shard].mean() for shard in shards]) + decay * float(apart.square().sum())
    return float(found / 2)


def with_excess(jobs: list[Job], storage: Path, processes: int) -> pd.DataFrame:
    """Return what the runs come to, with how far above the least objective they end."""
    found = measured(jobs, storage, processes)
    return found.assign(excess=[excess(one.config, Path(path)) for one, path in zip(jobs, found["path"], strict=True)])


def measure(settings: Mapping[str, Any], storage: Path, output: Path, processes: int) -> None:
    """Run what is missing, and keep what was measured."""
    tuning = with_excess(list(tuning_jobs(settings)), storage, processes)
    jobs = []
    for method, group in tuning.groupby("method", sort=False):
        best = group.loc[group["excess"].fillna(float("inf")).idxmin()]
        for seed in settings["federated"]["seeds"]:
            jobs.append(job(settings, str(method), float(best["step_size"]), float(best["beta"]), seed, False))
    results = pd.concat([tuning, with_excess(jobs, storage, processes)], ignore_index=True)
    kept = ["method", "step_size", "beta", "rounds", "seed", "tunes", "excess", "run_seconds"]
    results[kept].to_parquet(output / "federated.parquet", index=False)


def write_page(settings: Mapping[str, Any], output: Path, scale: str) -> None:
    """Write FEDERATED.md."""
    runs, own = pd.read_parquet(output / "federated.parquet"), settings["federated"]
    config, final, tuning = own["config"], runs[~runs["tunes"]], runs[runs["tunes"]]
    # Only FedGLOMO has a beta to choose.
    tuning = tuning.assign(beta=tuning["beta"].map("{:g}".format).where(tuning["method"] == FEDGLOMO, "–"))
    text = f"""# FedGLOMO and FedLOMO against FedAvg

Written by `python -m experiments.rivals.federated --scale {scale}` on {machine()}.

Least squares on the digits, a quadratic whose optimum is known, with weight decay.
{config["num_agents"]} clients, each of which has samples of two digits alone; rounds of {config["local_steps"]} steps,
mini-batches of {config["batch_size"]}.
Each method takes {own["gradients"]} mini-batch gradients a client in all.
A round of FedLOMO costs almost two rounds of FedAvg, one of FedGLOMO almost four, and one of FedLOMO that begins
with the gradient of the whole shard as much as that takes more. Step sizes of {own["step_sizes"]} and FedGLOMO's
beta of {own["betas"]} are chosen on one seed by where they end; the table has seeds {own["seeds"]}. One convex problem.

## {claim(final)}

{verdict(final)}

That momentum over variance makes up for client drift is also not so by itself: without noise in the gradients FedGLOMO
takes the very steps of FedAvg, to rounding (`tests/unit/rules/test_fedglomo.py`), and so has all of its drift. And
FedLOMO's local steps keep the noise of their first mini-batch throughout the round, where those of FedAvg average over
theirs; so it needs a first gradient of many samples, and pays for that.

{table(final)}

## The search

Objective above the least at the end (inf: diverged).

{search_table(tuning, ["method", "beta"], "excess", ".3g")}
"""
    (output / "FEDERATED.md").write_text(text, encoding="utf-8")


def _means(final: pd.DataFrame) -> "pd.Series[float]":
    return final.assign(excess=final["excess"].fillna(float("inf"))).groupby("method", sort=False)["excess"].mean()


def claim(final: pd.DataFrame) -> str:
    """Return the heading: whether FedGLOMO is nearer the optimum than FedAvg at equal numbers of gradients."""
    means = _means(final)
    if means[FEDGLOMO] < means[FEDAVG]:
        return "The claim reproduces: FedGLOMO ends nearer the optimum than FedAvg"
    return "What does not reproduce: FedGLOMO nearer the optimum than FedAvg at equal numbers of gradients"


def verdict(final: pd.DataFrame) -> str:
    """Return a line for each method but FedAvg: how its distance compares with that, seed by seed."""
    base, lines = final[final["method"] == FEDAVG].set_index("seed")["excess"], []
    for method in METHODS[1:]:
        ratios = final[final["method"] == method].set_index("seed")["excess"] / base
        lines.append(
            f"- {method}: {ratios.median():.3g} times FedAvg's distance in the median over seeds "
            f"({ratios.min():.3g} to {ratios.max():.3g})."
        )
    return "\n".join(lines)


def table(final: pd.DataFrame) -> str:
    """Return the chosen settings and the distances by method."""
    text = "| method | step size | beta | rounds | objective above the least |\n|---|---|---|---|---|\n"
    for method, rows in final.groupby("method", sort=False):
        first, found = rows.iloc[0], rows["excess"].fillna(float("inf"))
        beta = f"{first['beta']:g}" if method == FEDGLOMO else "–"
        text += (
            f"| {method} | {first['step_size']:g} | {beta} | {first['rounds']} | {found.mean():.3g} "
            f"({found.min():.3g} to {found.max():.3g}) |\n"
        )
    return text.rstrip()


if __name__ == "__main__":
    run_study(HERE, __doc__, measure, write_page)
