"""YellowFin against tuned momentum under delay: ``python -m experiments.rivals.momentum [--scale smoke|cpu]``.

Digits, a server and workers of exponential times, under ``asgd``, ``sync`` and ``k-sync``. Step size and momentum of
SGD are searched for on a validation split; of YellowFin nothing is. Runs that are complete are not run again.
"""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.differences import Difference
from experiments.rivals.paired import at_edges, in_words, points
from experiments.rivals.study import HERE, TUNING_SEED, VALIDATION_SHARE
from experiments.running import Job, measured, run_study
from experiments.studies import machine, search_table
from ray_pcasgd.runs.settings.loading import load_config

GATHERINGS: dict[str, Any] = {"asgd": "asgd", "sync": "sync", "K-sync, K = 4": {"name": "k-sync", "k": 4}}
TUNED, PLAIN = "SGD, tuned", "SGD without momentum, tuned"
YELLOWFINS: dict[str, Any] = {
    "YellowFin, closed loop": {"name": "yellowfin"},
    "YellowFin, open loop": {"name": "yellowfin", "closed_loop": False},
}


def job(
    settings: Mapping[str, Any],
    gathering: str,
    method: str,
    choice: tuple[float, float],
    seed: int,
    validates: bool,
) -> Job:
    """Return one run; ``choice`` is SGD's step size and momentum, of YellowFin 1 and 0."""
    own, (step_size, momentum) = settings["momentum"], choice
    changes = {
        "algorithm": {"name": "server", "gathering": GATHERINGS[gathering]},
        "optimizer": YELLOWFINS.get(method, {"name": "sgd", "momentum": momentum}),
        "step_size": step_size,
        "num_steps": own["num_steps"],
        "evaluate_every": max(1, own["num_steps"] // 10),
        "seed": seed,
        "task": {"validation_share": VALIDATION_SHARE if validates else 0.0},
    }
    labels = {"gathering": gathering, "method": method, "step_size": step_size, "momentum": momentum, "seed": seed}
    return Job(labels | {"validates": validates}, load_config(own["config"], changes=changes))


def tuning_jobs(settings: Mapping[str, Any]) -> Iterator[Job]:
    """Yield the runs by which SGD's step size and momentum are chosen."""
    own = settings["momentum"]
    for gathering, *choice in itertools.product(GATHERINGS, own["step_sizes"], own["momenta"]):
        yield job(settings, gathering, TUNED, (choice[0], choice[1]), TUNING_SEED, True)


def measure(settings: Mapping[str, Any], storage: Path, output: Path, processes: int) -> None:
    """Run what is missing, and keep what was measured."""
    own = settings["momentum"]
    tuning = measured(tuning_jobs(settings), storage, processes)
    jobs = []
    for gathering, group in tuning.groupby("gathering", sort=False):
        best = group.loc[group["test_loss"].fillna(float("inf")).idxmin()]
        without = group[group["momentum"] == 0]
        plain = without.loc[without["test_loss"].fillna(float("inf")).idxmin()]
        for seed in own["seeds"]:
            chosen = (float(best["step_size"]), float(best["momentum"]))
            jobs.append(job(settings, str(gathering), TUNED, chosen, seed, False))
            jobs.append(job(settings, str(gathering), PLAIN, (float(plain["step_size"]), 0.0), seed, False))
            jobs += [job(settings, str(gathering), name, (1.0, 0.0), seed, False) for name in YELLOWFINS]
    final = measured(jobs, storage, processes)
    final = final.assign(**pd.DataFrame([momenta(Path(path)) for path in final["path"]]))
    results = pd.concat([tuning, final], ignore_index=True)
    results.drop(columns=["path", "run"]).to_parquet(output / "momentum.parquet", index=False)


def momenta(folder: Path) -> dict[str, float]:
    """Return the mean momenta that a run's server had over its last tenth, where its optimizer measures them."""
    frame = pd.read_parquet(folder / "metrics.parquet")
    if "momentum" not in frame:
        return {"own_momentum": float("nan"), "total_momentum": float("nan")}
    last = frame.dropna(subset=["momentum"]).iloc[-1]
    total = last["total_momentum"] if "total_momentum" in frame else float("nan")
    return {"own_momentum": float(last["momentum"]), "total_momentum": float(total)}


def write_page(settings: Mapping[str, Any], output: Path, scale: str) -> None:
    """Write MOMENTUM.md."""
    runs, own = pd.read_parquet(output / "momentum.parquet"), settings["momentum"]
    workers, steps, momenta = own["config"]["num_agents"], own["step_sizes"], own["momenta"]
    final, tuning = runs[~runs["validates"]], runs[runs["validates"]]
    edges = at_edges(final[final["method"].isin([TUNED, PLAIN])], ["gathering", "method"], steps)
    text = f"""# YellowFin against tuned momentum, with and without delay

Written by `python -m experiments.rivals.momentum --scale {scale}` on {machine()}.

Digits, one server, {workers} workers whose gradients take exponential times, so that under `asgd` they are
{workers - 1} updates late in the mean; {own["num_steps"]} mini-batches a worker, of which K-sync takes four an update,
and cancels what others compute. SGD has the step size of {steps} and
the momentum of {momenta} that are best on a validation split ({len(steps) * len(momenta)} runs
of each gathering; step sizes at an edge
of the grid: {edges}).
YellowFin is as it comes. Seeds {own["seeds"]}, paired, and told apart by Student's 95 % interval; few seeds,
and one small task.

## {claim(final)}

{verdict(final)}

Asynchrony adds momentum, 1 - 1/P in the mean, and the closed loop is to measure and remove it:
[ASYNCHRONY.md](ASYNCHRONY.md) has the law on runs of this package, and what YellowFin measures of it.

{table(final)}

## The search

Validation loss at the end (infinite: diverged).

{search_table(tuning, ["gathering", "momentum"], "test_loss", ".3f")}
"""
    (output / "MOMENTUM.md").write_text(text, encoding="utf-8")


def table(final: pd.DataFrame) -> str:
    """Return accuracy, loss and momenta by gathering and method."""
    text = "| gathering | method | step size, momentum | accuracy | loss | own momentum | total, as measured |\n"
    text += "|---|---|---|---|---|---|---|\n"
    for (gathering, method), rows in final.groupby(["gathering", "method"], sort=False):
        accuracy, first = 100 * rows["test_accuracy"].fillna(0.0), rows.iloc[0]
        chosen = "–" if method in YELLOWFINS else f"{first['step_size']:g}, {first['momentum']:g}"
        tuned = [
            f"{rows[name].mean():.2f}" if rows[name].notna().any() else "–"
            for name in ("own_momentum", "total_momentum")
        ]
        text += (
            f"| {gathering} | {method} | {chosen} | {accuracy.mean():.1f} % ({accuracy.min():.1f} to "
            f"{accuracy.max():.1f}) | {rows['test_loss'].mean():.3f} | {tuned[0]} | {tuned[1]} |\n"
        )
    return text.rstrip()


def _against(final: pd.DataFrame, one: tuple[str, str], other: tuple[str, str]) -> Difference:
    """Return how one gathering's method compares with another's, seed by seed."""
    accuracies = final.set_index(["gathering", "method", "seed"])["test_accuracy"].sort_index()
    return points(accuracies[one], accuracies[other])


def claim(final: pd.DataFrame) -> str:
    """Return the heading: whether YellowFin is as good as tuned momentum under delay."""
    closed, opened = YELLOWFINS
    against = _against(final, ("asgd", closed), ("asgd", TUNED))
    if against.sign < 0:
        return "What does not reproduce: YellowFin as good as tuned momentum under delay, by its closed loop"
    if against.sign > 0 or _against(final, ("asgd", closed), ("asgd", opened)).sign > 0:
        return "The claim reproduces"
    return "What cannot be told: whether YellowFin is as good as tuned momentum under delay, by its closed loop"


def verdict(final: pd.DataFrame) -> str:
    """Return how YellowFin compares with tuned SGD, its loop closed with open, and K-sync with the other gatherings."""
    closed, opened = YELLOWFINS
    lines = []
    for name in GATHERINGS:
        lines += [
            f"- {name}: {closed} against {other} {in_words(_against(final, (name, closed), (name, other)))}."
            for other in (TUNED, opened)
        ]
    lines += [
        f"- {TUNED}: K-sync against {name} {in_words(_against(final, ('K-sync, K = 4', TUNED), (name, TUNED)))}."
        for name in ("asgd", "sync")
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_study(HERE, __doc__, measure, write_page)
