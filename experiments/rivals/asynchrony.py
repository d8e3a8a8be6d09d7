"""What asynchrony does by itself, in planned runs: ``python -m experiments.rivals.asynchrony [--scale smoke|cpu]``.

The momentum that it adds, on a quadratic and on the digits, compared with the law 1 - 1/P and with YellowFin's
estimate; and what an adversary's late gradients cost, compared with gradients that are late at random.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.rivals import adversary
from experiments.rivals.momentum import momenta
from experiments.rivals.momentum_law import CURVATURES, DIGITS, PROBLEMS, as_measured, fitted, run_of
from experiments.rivals.study import HERE
from experiments.running import Job, at_once, measured, run_study
from experiments.studies import machine, num_seeds
from ray_pcasgd.runs.settings.loading import load_config


def jobs_of(settings: Mapping[str, Any]) -> Iterator[Job]:
    """Yield YellowFin's runs on the digits, which are as many updates long for each number of workers."""
    own = settings["asynchrony"]["yellowfin"]
    for workers in settings["asynchrony"]["workers"]:
        num_steps = max(4, own["updates"] // workers)
        for seed in own["seeds"]:
            changes = PROBLEMS[DIGITS][0] | {
                "num_agents": workers,
                "num_steps": num_steps,
                "evaluate_every": num_steps // 4,
                "step_size": 1.0,
                "optimizer": "yellowfin",
                "algorithm": {"name": "server", "gathering": "asgd"},
                "compute": {"law": {"name": "exponential", "mean": 1.0}},
                "links": [],
                "clusters": 1,
                "engine": "local",
                "seed": seed,
            }
            yield Job({"workers": workers, "seed": seed}, load_config(changes))


def law_of(problem: str, workers: int, seeds: int, step_size: float) -> dict[str, Any]:
    """Return what the mean over the seeds moves with, and what YellowFin's closed loop measures of the same runs."""
    runs = [run_of(problem, workers, seed, step_size) for seed in range(seeds)]
    labels = {"problem": problem, "workers": workers, "seeds": seeds, "step_size": step_size}
    return labels | fitted(runs, step_size)._asdict() | {"measured": as_measured(runs, step_size)}


def measure(settings: Mapping[str, Any], storage: Path, output: Path, processes: int) -> None:
    """Run what is missing, and keep what was measured."""
    own = settings["asynchrony"]
    cases = [
        (problem, workers, own["seeds"], own["step_sizes"][problem])
        for problem in PROBLEMS
        for workers in own["workers"]
    ]
    with at_once(processes) as pool:
        found = list(pool.map(law_of, *zip(*cases, strict=True)))
    pd.DataFrame(found).to_parquet(output / "law.parquet", index=False)
    runs = measured(jobs_of(settings), storage, processes)
    runs = runs.assign(**pd.DataFrame([momenta(Path(path)) for path in runs["path"]]))
    runs[["workers", "seed", "own_momentum", "total_momentum"]].to_parquet(output / "yellowfin.parquet", index=False)
    adversary.delays_of(own["adversary"]).to_parquet(output / "delays.parquet", index=False)
    adversary.repair(own["adversary"]).to_parquet(output / "repair.parquet", index=False)


def write_page(settings: Mapping[str, Any], output: Path, scale: str) -> None:
    """Write ASYNCHRONY.md."""
    law, runs, delays, repair = (
        pd.read_parquet(output / f"{name}.parquet") for name in ("law", "yellowfin", "delays", "repair")
    )
    own, late = settings["asynchrony"], settings["asynchrony"]["adversary"]
    held = adversary.differs_most(delays, lambda rows: rows[rows["kind"] == adversary.HELD])
    halved = adversary.differs_most(repair, lambda rows: rows[rows["steps"] == "halved"])
    text = f"""# What asynchrony does by itself

Written by `python -m experiments.rivals.asynchrony --scale {scale}` on {machine()}.

## {heading(law)}

P workers with exponential times, which wait for nobody (`asgd`), and plain SGD: in the mean over runs the weights move
as with momentum 1 - 1/P at a P-th of the step size (Mitliagkas et al. 2016). Fitted to the mean of {own["seeds"]}
planned runs of 4 P + 24 updates each, with standard errors: a quadratic without noise ({len(CURVATURES)} curvatures of
{CURVATURES[0]:g} to {CURVATURES[-1]:g}, step size {own["step_sizes"]["quadratic"]:g}), and the digits (softmax
regression, mini-batches of {PROBLEMS[DIGITS][0]["batch_size"]}, step size {own["step_sizes"]["digits"]:g}). Beside
them, what the estimate of YellowFin's closed loop makes of the very same runs, whose own momentum is 0: the median over
parameters of `(x_(s+1) - x_s + alpha g(x_s)) / (x_s - x_(s-1))`, with the whole gradient.

{law_table(law)}

{what_yellowfin_sees(law)}
Its numerator is alpha times the difference of two gradients, that at x_s and the late one which is applied there. Where
steps are small, so is this difference, compared with the move, whatever P. The law holds for the mean over
runs, not for single moves.
YellowFin itself, on the digits with {own["yellowfin"]["updates"]} updates, whatever P, over the last quarter of them
({num_seeds(len(own["yellowfin"]["seeds"]))}): its total is {most_apart(runs):.3f} from its own momentum at most.

{yellowfin_table(runs)}

## The adversary of the lower bound

One gradient is held back over `delay` updates of the others, each of which is fresh (Alistarh, De Sa, Konstantinov,
PODC 2018). The slowdown is the number of updates that it takes on `x^2 / 2`, with a step size of
{late["step_size"]:g}, divided by the number of steps without delay. It is compared with random delays of the same
maximum ({num_seeds(len(late["seeds"]))}, by the mean logarithm of what is left): those of one slow worker of two, whose
times are exponential with the delay as their mean, later gradients being ignored; and delays drawn evenly for each
gradient, so that all are late, by half of the maximum in the mean. Runs under the adversary differ from the closed form
by {held:.1g} of it at most.

{adversary.delays_table(delays)}

Halving the step size each epoch repairs it, by the paper. Epochs of 2 periods under the adversary with a delay of
{late["repair_delay"]}; runs differ from the closed form by {halved:.1g} of it at most. The slowdown, compared with
steps of the same size without delay, goes to 1. Whether halving also ends nearer than the first step size throughout is
another question, which the last columns answer.

{adversary.repair_table(repair)}
"""
    (output / "ASYNCHRONY.md").write_text(text, encoding="utf-8")


def heading(law: pd.DataFrame) -> str:
    """Return in how many cells the law is within two standard errors, and the largest difference."""
    off = (law["momentum"] - (1 - 1 / law["workers"])).abs()
    within = int((off <= 2 * law["momentum_error"] + 1e-4).sum())
    return (
        f"Asynchrony adds momentum, 1 - 1/P: within two standard errors in {within} of {len(law)} cells, "
        f"at most {off.max():.3f} off"
    )


def law_table(law: pd.DataFrame) -> str:
    """Return the fitted momentum and share of the step size, what the law says of both, and YellowFin's estimate."""
    text = (
        "| problem | P | 1 - 1/P | momentum, fitted | 1/P | share of the step size, fitted | YellowFin's estimate |\n"
    )
    text += "|---|---|---|---|---|---|---|\n"
    for row in law.to_dict("records"):
        workers = row["workers"]
        text += (
            f"| {row['problem']} | {workers} | {1 - 1 / workers:.4g} | {row['momentum']:.3f} ± "
            f"{row['momentum_error']:.3f} | {1 / workers:.4g} | {row['share']:.3f} ± {row['share_error']:.3f} | "
            f"{row['measured']:.3f} |\n"
        )
    return text.rstrip()


def what_yellowfin_sees(law: pd.DataFrame) -> str:
    """Return how YellowFin's estimate compares with the law's momentum, with most workers."""
    most = law[law["workers"] == law["workers"].max()]
    cells = [f"{row['measured']:.2f} on the {row['problem']}" for row in most.to_dict("records")]
    workers = int(law["workers"].max())
    return f"With {workers} workers, where the law has {1 - 1 / workers:.2f}, the estimate says {' and '.join(cells)}."


def most_apart(runs: pd.DataFrame) -> float:
    """Return by how much the total that YellowFin measures differs from its own momentum at most, in the mean."""
    means = runs.groupby("workers")[["own_momentum", "total_momentum"]].mean()
    return float((means["total_momentum"] - means["own_momentum"]).abs().max())


def yellowfin_table(runs: pd.DataFrame) -> str:
    """Return YellowFin's own momentum and the total that it measures, by the number of workers."""
    text = "| P | own momentum | total, as measured |\n|---|---|---|\n"
    for workers, rows in runs.groupby("workers"):
        text += f"| {workers} | {rows['own_momentum'].mean():.3f} | {rows['total_momentum'].mean():.3f} |\n"
    return text.rstrip()


if __name__ == "__main__":
    run_study(HERE, __doc__, measure, write_page)
