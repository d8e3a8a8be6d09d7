"""FedGLOMO and FedLOMO against FedAvg: ``python -m experiments.rivals.federated [--scale smoke|cpu|paper]``.

Least squares on the digits, whose optimum is known; each client has samples of two digits alone. Methods meet at equal
numbers of mini-batch gradients, and at equal numbers of rounds; step size and beta are searched for on one seed, by the
distance to the optimum. Runs that are complete are not run again.
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
from experiments.rivals.paired import at_edges, compared, spread
from experiments.rivals.study import HERE, TUNING_SEED
from experiments.running import Job, measured, run_study
from experiments.studies import machine, search_table
from ray_pcasgd.config import Config
from ray_pcasgd.rules.fedglomo import FedGLOMO
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.tasks.partition import Partition
from ray_pcasgd.tasks.samples import Samples

FEDAVG, FEDLOMO, FEDGLOMO = "FedAvg", "FedLOMO", "FedGLOMO"
FEDLOMO_BATCH, FEDGLOMO_BATCH = f"{FEDLOMO}, one mini-batch first", f"{FEDGLOMO}, one mini-batch first"
NARROW = f"{FEDGLOMO}, 4-bit messages"
AVERAGING = {"name": "diloco", "outer": {"name": "sgd", "step_size": 1.0, "momentum": 0.0}}
METHODS: dict[str, dict[str, Any]] = {
    FEDAVG: {"algorithm": AVERAGING},
    FEDLOMO: {"algorithm": {"name": "fedglomo", "beta": 1.0}},
    FEDGLOMO: {"algorithm": {"name": "fedglomo"}},
    NARROW: {"algorithm": {"name": "fedglomo"}, "wire": {"directions": "int4"}},
    FEDLOMO_BATCH: {"algorithm": {"name": "fedglomo", "beta": 1.0, "first": "batch"}},
    FEDGLOMO_BATCH: {"algorithm": {"name": "fedglomo", "first": "batch"}},
}
GRADIENTS, ROUNDS = "gradients", "rounds"
BUDGETS = {GRADIENTS: tuple(METHODS), ROUNDS: (FEDAVG, FEDLOMO, FEDGLOMO, NARROW)}
"""What methods have alike, and which of them are compared so; rounds are those that FedGLOMO's gradients pay for."""


def rounds_of(own: Mapping[str, Any], method: str) -> int:
    """Return how many rounds a method takes of the gradients that each client may compute."""
    config = own["config"]
    steps, of_shard = config["local_steps"], -(-len(Digits()) // config["num_agents"] // config["batch_size"])
    algorithm = METHODS[method]["algorithm"]
    cost = steps if method == FEDAVG else FedGLOMO.model_validate(algorithm).num_gradients(steps, of_shard)
    return max(1, int(own["gradients"]) // int(cost))


class Case(NamedTuple):
    """A method, what it has as much of as the others, and what was chosen for it; beta is of FedGLOMO alone."""

    budget: str
    method: str
    step_size: float
    beta: float

    def job(self, settings: Mapping[str, Any], seed: int, tunes: bool) -> Job:
        """Return one run."""
        own = settings["federated"]
        rounds = rounds_of(own, FEDGLOMO if self.budget == ROUNDS else self.method)
        num_steps = rounds * own["config"]["local_steps"]
        changes = METHODS[self.method] | {
            "step_size": self.step_size,
            "num_steps": num_steps,
            "evaluate_every": num_steps,
            "seed": seed,
        }
        if has_beta(self.method):
            changes["algorithm"] = changes["algorithm"] | {"beta": self.beta}
        labels = self._asdict() | {"rounds": rounds, "seed": seed, "tunes": tunes}
        return Job(labels, load_config(own["config"], changes=changes))


def has_beta(method: str) -> bool:
    """Return whether a method has momentum at its server, whose beta is chosen."""
    return method.startswith(FEDGLOMO)


def tuning_jobs(settings: Mapping[str, Any]) -> Iterator[Job]:
    """Yield the runs by which each method's step size and beta are chosen; 4-bit messages have what FedGLOMO has."""
    own = settings["federated"]
    for budget, methods in BUDGETS.items():
        for method in methods:
            for step_size in own["step_sizes"] if method != NARROW else ():
                for beta in own["betas"] if has_beta(method) else [1.0]:
                    yield Case(budget, method, step_size, beta).job(settings, TUNING_SEED, True)


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
    filled = tuning.assign(excess=tuning["excess"].fillna(float("inf")))
    jobs = []
    for budget, methods in BUDGETS.items():
        for method in methods:
            searched = filled[(filled["budget"] == budget) & (filled["method"] == method.replace(NARROW, FEDGLOMO))]
            best = searched.loc[searched["excess"].idxmin()]
            case = Case(budget, method, float(best["step_size"]), float(best["beta"]))
            jobs += [case.job(settings, seed, False) for seed in settings["federated"]["seeds"]]
    results = pd.concat([tuning, with_excess(jobs, storage, processes)], ignore_index=True)
    kept = ["budget", "method", "step_size", "beta", "rounds", "seed", "tunes", "excess", "run", "run_seconds"]
    results[kept].to_parquet(output / "federated.parquet", index=False)


def write_page(settings: Mapping[str, Any], output: Path, scale: str) -> None:
    """Write FEDERATED.md."""
    runs, own = pd.read_parquet(output / "federated.parquet"), settings["federated"]
    config, final, tuning = own["config"], runs[~runs["tunes"]], runs[runs["tunes"]]
    tuning = tuning.assign(beta=tuning["beta"].map("{:g}".format).where(tuning["method"].map(has_beta), "–"))
    edges = at_edges(final, ["budget", "method"], own["step_sizes"])
    costs = {method: own["gradients"] / rounds_of(own, method) for method in (FEDAVG, FEDLOMO, FEDGLOMO)}
    text = f"""# FedGLOMO and FedLOMO against FedAvg

Written by `python -m experiments.rivals.federated --scale {scale}` on {machine()}.

Least squares on the digits, a quadratic whose optimum is known, with weight decay.
{config["num_agents"]} clients, each of which has samples of two digits alone; rounds of {config["local_steps"]} steps,
as in the paper's experiments, and mini-batches of {config["batch_size"]}. FedGLOMO and FedLOMO begin each round with
the gradient of the client's whole shard, so that a round of FedGLOMO costs {costs[FEDGLOMO] / costs[FEDAVG]:.1f}
times the gradients of FedAvg's, and one of FedLOMO {costs[FEDLOMO] / costs[FEDAVG]:.1f} times; FedGLOMO's messages hold
two vectors. Each client computes {own["gradients"]} mini-batch gradients, or takes as many rounds as FedGLOMO does of
them. Beside them are both with one mini-batch's gradient first, and FedGLOMO with the paper's 4-bit QSGD of messages
(`wire: {{directions: int4}}`, at the step size and beta that were chosen without it).
Step sizes of {own["step_sizes"]}, with FedGLOMO's beta of {own["betas"]}, are chosen on one seed by where they end;
the table has seeds {own["seeds"]}. Ratios are geometric means over the seeds, each against the other's run of the same
seed; in parentheses Student's 95 % interval. One convex problem; the paper's are networks.

## {heading(final)}

{verdicts(final)}
- Step sizes at an edge of the grid: {edges}.

That momentum over variance makes up for client drift is also not so by itself: without noise in the gradients FedGLOMO
takes the very steps of FedAvg, to rounding (`tests/unit/rules/test_fedglomo.py`), and so has all of its drift. With one
mini-batch first, local steps keep that one's noise throughout the round, where those of FedAvg average over theirs.

{table(final)}

## The search

Objective above the least at the end (inf: diverged).

{search_table(tuning, ["budget", "method", "beta"], "excess", ".3g")}
"""
    (output / "FEDERATED.md").write_text(text, encoding="utf-8")


def heading(final: pd.DataFrame) -> str:
    """Return whether FedGLOMO is nearer the optimum than FedAvg, at equal gradients and at equal rounds."""
    told = {budget: compared(final[final["budget"] == budget], FEDGLOMO, FEDAVG).told for budget in (GRADIENTS, ROUNDS)}
    claim = "FedGLOMO nearer the optimum than FedAvg"
    ways = {
        budget: {"nearer": "reproduces", "farther": "does not reproduce"}.get(of, "cannot be told")
        for budget, of in told.items()
    }
    if ways[GRADIENTS] == ways[ROUNDS]:
        return f"{claim}: {ways[GRADIENTS]}, at equal numbers of gradients and at equal numbers of rounds"
    return f"{claim}: {ways[GRADIENTS]} at equal numbers of gradients, {ways[ROUNDS]} at equal numbers of rounds"


def verdicts(final: pd.DataFrame) -> str:
    """Return how far from the optimum each method ends of FedAvg, and FedGLOMO of FedLOMO, at each budget."""
    lines = []
    for budget, methods in BUDGETS.items():
        rows = final[final["budget"] == budget]
        for one, other in (*((method, FEDAVG) for method in methods[1:]), (FEDGLOMO, FEDLOMO)):
            found = compared(rows, one, other)
            lines.append(f"- Equal {budget}: {one} ends {found} times as far above the least as {other}: {found.told}.")
    return "\n".join(lines)


def table(final: pd.DataFrame) -> str:
    """Return the chosen settings and the distances by method."""
    text = "| equal | method | step size | beta | rounds | objective above the least |\n|---|---|---|---|---|---|\n"
    for (budget, method), rows in final.groupby(["budget", "method"], sort=False):
        first = rows.iloc[0]
        beta = f"{first['beta']:g}" if has_beta(str(method)) else "–"
        chosen = f"{first['step_size']:g} | {beta} | {first['rounds']}"
        text += f"| {budget} | {method} | {chosen} | {spread(rows['excess'])} |\n"
    return text.rstrip()


if __name__ == "__main__":
    run_study(HERE, __doc__, measure, write_page)
