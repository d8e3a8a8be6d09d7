"""AsySVRG and momentum compensation against ASGD: ``python -m experiments.rivals.convex [--scale smoke|cpu|paper]``.

Least squares on the digits, whose optimum is known, by mini-batches and by whole shards, whose gradients differ because
shards do. All methods take the same number of mini-batch gradients a worker; step sizes are searched for on one seed,
by the distance to the optimum. Runs that are complete are not run again. A second part searches for the largest step
sizes at which momentum converges under delay.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.convergence.problem import Digits
from experiments.rivals.federated import with_excess
from experiments.rivals.paired import at_edges, claim_line, spread
from experiments.rivals.stable import stable_steps, stable_table
from experiments.rivals.study import HERE, TUNING_SEED
from experiments.running import Job, run_study
from experiments.studies import machine, search_table
from ray_pcasgd.runs.settings.loading import load_config

MOMENTUM = 0.9
ASGD, HEAVY, AHEAD, SVRG = "ASGD", "ASGD, momentum", "ASGD, momentum compensation", "AsySVRG"
KSYNC = "K-sync, K = 4"
METHODS: dict[str, dict[str, Any]] = {
    ASGD: {"algorithm": "server"},
    HEAVY: {"algorithm": "server", "optimizer": {"momentum": MOMENTUM}},
    AHEAD: {"algorithm": {"name": "server", "nesterov": {"name": "momentum-compensation", "momentum": MOMENTUM}}},
    SVRG: {"algorithm": "svrg"},
    KSYNC: {"algorithm": {"name": "server", "gathering": {"name": "k-sync", "k": 4}}},
}
"""The settings of each; the step size of momentum is the plain one's over ``1 - MOMENTUM`` in the long run."""
CLAIMS = ((SVRG, ASGD), (SVRG, KSYNC), (AHEAD, HEAVY), (AHEAD, ASGD), (AHEAD, KSYNC))
"""Who is to end nearer the optimum than whom."""


def num_steps(own: Mapping[str, Any], method: str, batch_size: int) -> int:
    """Return how many messages of each worker its gradients suffice for.

    An epoch of AsySVRG has two passes over the data, of two gradients a mini-batch, and a full gradient before.
    """
    passes = -(-(len(Digits()) // own["config"]["num_agents"]) // batch_size)
    share = (2 * passes + 1) / (4 * passes + passes) if method == SVRG else 1.0
    return max(1, round(own["passes"][batch_size] * passes * share))


def job(settings: Mapping[str, Any], batch_size: int, method: str, step_size: float, seed: int, tunes: bool) -> Job:
    """Return one run."""
    own = settings["convex"]
    steps = num_steps(own, method, batch_size)
    changes = METHODS[method] | {
        "batch_size": batch_size,
        "step_size": step_size,
        "num_steps": steps,
        "evaluate_every": steps,
        "seed": seed,
    }
    labels = {"batch_size": batch_size, "method": method, "step_size": step_size, "seed": seed, "tunes": tunes}
    return Job(labels, load_config(own["config"], changes=changes))


def tuning_jobs(settings: Mapping[str, Any]) -> Iterator[Job]:
    """Yield the runs by which each method's step size is chosen."""
    own = settings["convex"]
    for batch_size in own["passes"]:
        for method in METHODS:
            for step_size in own["step_sizes"]:
                yield job(settings, batch_size, method, step_size, TUNING_SEED, True)


def measure(settings: Mapping[str, Any], storage: Path, output: Path, processes: int) -> None:
    """Run what is missing, and keep what was measured."""
    tuning = with_excess(list(tuning_jobs(settings)), storage, processes)
    jobs = []
    for (batch_size, method), group in tuning.groupby(["batch_size", "method"], sort=False):
        best = group.loc[group["excess"].fillna(float("inf")).idxmin()]
        for seed in settings["convex"]["seeds"]:
            jobs.append(job(settings, int(batch_size), str(method), float(best["step_size"]), seed, False))
    results = pd.concat([tuning, with_excess(jobs, storage, processes)], ignore_index=True)
    results["seconds"] = [_last_second(Path(path)) for path in results["path"]]
    kept = ["batch_size", "method", "step_size", "seed", "tunes", "excess", "seconds", "staleness_mean", "run_seconds"]
    results[kept].to_parquet(output / "convex.parquet", index=False)
    own = settings["convex"]["stable"]
    stable_steps(own["delays"], MOMENTUM, own["updates"]).to_parquet(output / "stable.parquet", index=False)


def _last_second(folder: Path) -> float:
    frame = pd.read_parquet(folder / "metrics.parquet")
    return float(frame["seconds"].max()) if len(frame) else float("nan")


def write_page(settings: Mapping[str, Any], output: Path, scale: str) -> None:
    """Write CONVEX.md."""
    runs, own = pd.read_parquet(output / "convex.parquet"), settings["convex"]
    config, final = own["config"], runs[~runs["tunes"]]
    passes = ",\n".join(
        f"{number} passes over the data in mini-batches of {size}" for size, number in own["passes"].items()
    )
    text = f"""# AsySVRG and momentum compensation against ASGD and K-sync

Written by `python -m experiments.rivals.convex --scale {scale}` on {machine()}.

Least squares on the digits, a quadratic whose optimum is known, with weight decay of
{config["optimizer"]["weight_decay"]}. {config["num_agents"]} workers with alike shards, exponential times; mean
staleness of ASGD {final[final["method"] == ASGD]["staleness_mean"].mean():.1f}. Each method takes as many gradients:
{passes}.
AsySVRG takes two of them for each message, and a pass for each full gradient; what it computes and does not take, since
an epoch has begun meanwhile, comes on top, as does what K-sync cancels, and shows in the virtual seconds. Momentum is
{MOMENTUM}. Step sizes of {own["step_sizes"]}
are chosen on one seed by where they end; the table has seeds {own["seeds"]}. Ratios are geometric means over the seeds,
each against the same seed; in parentheses Student's 95 % interval, which
has to leave 1 out for a claim to reproduce or not. One convex
problem.

## What reproduces, what does not, and what cannot be told

{claims(final)}
- Step sizes at an edge of the grid: {at_edges(final, ["batch_size", "method"], own["step_sizes"])}.

{table(final)}

## The largest step sizes that momentum stands

Nesterov's momentum of {MOMENTUM} on a quadratic of curvature 1, whose gradients are all as many updates late: the
largest step size at which runs of {own["stable"]["updates"]} updates converge, to 2 %, and by the recursion's roots.

{stable_table(pd.read_parquet(output / "stable.parquet"))}

## The search

Objective above the least at the end (inf: diverged).

{search_table(runs[runs["tunes"]], ["batch_size", "method"], "excess", ".3g")}
"""
    (output / "CONVEX.md").write_text(text, encoding="utf-8")


def claims(final: pd.DataFrame) -> str:
    """Return, for each mini-batch size, whether each method ends nearer the optimum than what it is to improve on."""
    return "\n".join(
        f"- Mini-batches of {batch_size}: {claim_line(rows, one, other)}."
        for batch_size, rows in final.groupby("batch_size", sort=False)
        for one, other in CLAIMS
    )


def table(final: pd.DataFrame) -> str:
    """Return the chosen step sizes and the distances."""
    text = "| mini-batch | method | step size | objective above the least | virtual seconds |\n|---|---|---|---|---|\n"
    for (batch_size, method), rows in final.groupby(["batch_size", "method"], sort=False):
        found, seconds = spread(rows["excess"]), rows["seconds"].mean()
        text += f"| {batch_size} | {method} | {rows['step_size'].iloc[0]:g} | {found} | {seconds:.0f} |\n"
    return text.rstrip()


if __name__ == "__main__":
    run_study(HERE, __doc__, measure, write_page)
