"""The study's page and its picture, written from what was measured."""

import itertools
import os

import numpy as np
import pandas as pd
import ray

from experiments.slow_worker.study import (
    DDP,
    EQUAL,
    METHODS,
    OTHERS,
    SLOW,
    SLOWDOWN,
    SLOWED,
    STEP_SIZES,
    SYNC,
    TARGETS,
    TEST_IMAGES,
    VALIDATION_SHARE,
    best_of,
)
from experiments.slow_worker.track import seconds_to
from experiments.studies import machine, num_seeds, search_table, when
from ray_pcasgd.config import Config
from ray_pcasgd.report.drawing import as_svg, legend, line, name_axes, new_figure, scale_values, style

FIRST_SEARCH = "5088440"
"""The commit of the first search, before ``engine.max_lag``."""


def page(runs: pd.DataFrame, search: pd.DataFrame, config: Config) -> str:
    """Return the page as Markdown."""
    seconds, interval = runs["seconds"].max(), runs["seconds"].drop_duplicates().sort_values().iloc[1]
    extra, seeds = runs["extra_seconds"].max(), runs["seed"].nunique()
    undisturbed = extra / (SLOWDOWN - 1)
    slowed, equal = (runs[runs["case"] == case] for case in (SLOWED, EQUAL))
    return f"""# One worker of four really slowed, live

{config.num_agents} workers on a machine with {os.cpu_count()} cores, CIFAR-10, small CNN (67 thousand parameters),
batch {config.batch_size}, plain SGD, IID shards, {num_seeds(seeds)}, {seconds:g} s of training for each method.
A worker's step took {undisturbed:.3f} s in the median while all of them trained undisturbed, at the start; worker
{SLOW} sleeps {extra:.3f} s, three times as long, at each of its steps, so that it would take 4 times as long. All
start from the same weights, and a worker's mini-batches are the same under all methods. DDP is Ray Train's
`TorchTrainer` over gloo, Ray {ray.__version__}; the others run with `engine.mode = live`. PC-ASGD: complete graph,
theta 0.3; the slow worker's weights are not read while it is behind the reader by more than 5 % of its steps
(`engine.max_lag`); what is tested is the mean of the four models.

Nothing is tested while anything trains: weights are noted with their times (at every second step of a peer, every
{2 * config.num_agents} mini-batches of a server, every second step of DDP), and the newest ones at each multiple of
{interval:g} s are tested after the run on the first {TEST_IMAGES} test images (standard deviation of one accuracy: up
to 0.8 points). Seconds count from the first step; what it takes to get there stands apart. Written by
`python -m experiments.slow_worker` ({machine()}).

![Accuracy against seconds](accuracy.svg)

## {SLOWED}

{_table(slowed)}

{_ratios(slowed)}

## {EQUAL}

{_table(equal)}

{_ratios(equal)}

Seconds are those of the first test at which an accuracy is reached; – means not within {seconds:g} s, and alone that
neither {DDP} nor {SYNC} reaches it. A peer's step is
an update. "Fast" and "slow" are the median seconds of a step of the others and of worker {SLOW}, without what it waits
for others; DDP's hold that too, since it talks while it computes. "Mini-batches" are those computed to their end,
"given up" those that a server cancelled; – in a step's place: all of that worker's were. Rennala's server leaves out
what was computed at an older version than its present one, after it was computed.

## Does DDP the same as sync SGD?

{_agreement(runs)}

{_blurs(runs, config.num_agents)}

## The search for step sizes

Validation error ({VALIDATION_SHARE:.0%} of the training samples, held out; another seed) with the slow worker, after
the seconds in the table. The lowest is taken; DDP takes that of sync SGD. {_edges(search)}
{_searched(search)}

{search_table(search, ["method", "seconds"], "error", ".1%")}
"""


def _blurs(runs: pd.DataFrame, num_workers: int) -> str:
    """Return what makes the figures less sharp than they look."""
    slowed, equal = (runs[runs["case"] == case] for case in (SLOWED, EQUAL))
    undisturbed, testing = runs["extra_seconds"].max() / (SLOWDOWN - 1), runs["test_seconds"].mean()
    loads = runs.drop_duplicates(["method", "case", "seed"])["load_before"]
    return f"""## What blurs this

- {num_workers} workers share {os.cpu_count()} cores. One that sleeps or waits leaves its core to the others,
  whose steps then may take less than the {undisturbed:.3f} s of the undisturbed ones, while the seconds slept stay: the
  real durations stand in the table. With a core for each worker, ASGD would compute 3.25 times as many mini-batches a
  second as sync SGD (3 + 1/4 against 4/4); here it is {_batches(slowed, "ASGD"):.1f} times as many with the slow
  worker, and {_batches(equal, "ASGD"):.2f} times without it.
- The driver's process, which fetches the noted weights, took {100 * _share(runs, OTHERS):.1f} % of one core with the
  live engine and {100 * _share(runs, [DDP]):.1f} % with Ray Train. Testing one model took {testing:.1f} s,
  {testing / undisturbed:.0f} steps of a worker: done on the way, every test would have been felt.
- One minute's load of the machine before each run (with what was left of the test before it): median
  {loads.median():.1f}, {loads.min():.1f} to {loads.max():.1f}.
- The images are re-encoded (JPEG) and the runs are short: compare the lines with each other, not with published
  figures."""


def picture(runs: pd.DataFrame) -> bytes:
    """Return accuracy against seconds, as SVG: the mean over seeds."""
    figure, panels = new_figure(2, height=4.0, shared_y=True)
    for axes, case in zip(panels, (SLOWED, EQUAL), strict=True):
        scale_values(axes, "test_accuracy", [])
        for place, method in enumerate(METHODS):
            rows = runs[(runs["case"] == case) & (runs["method"] == method)]
            means = rows.groupby("seconds")["accuracy"].mean()
            line(axes, np.asarray(means.index, dtype=float), means.to_numpy(), *style(place))
        name_axes(axes, "seconds", "test accuracy" if case == SLOWED else "", case)
    legend(figure, [(method, *style(place)) for place, method in enumerate(METHODS)])
    return as_svg(figure)


def _table(runs: pd.DataFrame) -> str:
    targets = " | ".join(f"{target:.0%}" for target in TARGETS)
    lines = [
        f"| method | step size | seconds to {targets} | accuracy at the end | updates/s | mini-batches/s "
        "| given up/s | fast step, slow step (s) | start-up (s) |",
        "|---" * (8 + len(TARGETS)) + "|",
    ]
    for method in METHODS:
        rows = runs[runs["method"] == method]
        end = rows[rows["seconds"] == rows["seconds"].max()]
        first = rows.iloc[0]
        cells = [method, f"{first['step_size']:g}", *(_dash(seconds_to(rows, target)) for target in TARGETS)]
        cells += [f"{100 * end['accuracy'].mean():.1f} %"]
        cells += [f"{(end[name] / end['seconds']).mean():.1f}" for name in ("updates", "batches", "cancelled")]
        cells += [f"{_dash(end['fast_step'].mean(), 3)}, {_dash(end['slow_step'].mean(), 3)}"]
        cells += [f"{end['startup_seconds'].mean():.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _dash(seconds: float, digits: int = 0) -> str:
    return "–" if seconds != seconds else f"{seconds:.{digits}f}"


def _ratios(runs: pd.DataFrame) -> str:
    """Return how much sooner than DDP and than sync SGD each method is at each accuracy."""
    heads = [f"{target:.0%}" for target in TARGETS]
    lines = [f"| times as fast as {DDP}, {SYNC} | {' | '.join(heads)} |", "|---" * (1 + len(TARGETS)) + "|"]
    for method in (name for name in OTHERS if name != SYNC):
        cells = []
        for target in TARGETS:
            own, *others = (seconds_to(runs[runs["method"] == name], target) for name in (method, DDP, SYNC))
            ratios = [_dash(other / own, 1) for other in others]
            cells.append("–" if own != own else ", ".join(ratios) if ratios != ["–", "–"] else "alone")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _agreement(runs: pd.DataFrame) -> str:
    lines = []
    for case, seed in itertools.product((SLOWED, EQUAL), sorted(runs["seed"].unique())):
        rows = runs[(runs["case"] == case) & (runs["seed"] == seed)].drop_duplicates("method").set_index("method")
        one, other = (np.asarray(rows.loc[name, "first_losses"]) for name in (DDP, SYNC))
        number = min(len(one), len(other))
        apart = np.abs(one[:number] - other[:number]) / other[:number]
        lines.append(
            f"- {case}, seed {seed}: the mean training loss of the workers' mini-batches at each of the first {number} "
            f"updates differs by {apart[:20].max():.1e} of itself at most in the first 20, {apart.max():.1e} in all."
        )
    return "\n".join(lines)


def _batches(runs: pd.DataFrame, method: str) -> float:
    """Return the mini-batches of a method over those of sync SGD."""
    end = runs[runs["seconds"] == runs["seconds"].max()].groupby("method")["batches"].mean()
    return float(end[method] / end[SYNC])


def _share(runs: pd.DataFrame, methods: list[str]) -> float:
    return float(runs[runs["method"].isin(methods)]["driver_share"].mean())


def _searched(search: pd.DataFrame) -> str:
    """Return at which commits the search was made, and what was otherwise at the first of them."""
    if not (said := when(search)):
        return ""
    return f"{said} At {FIRST_SEARCH}, PC-ASGD read the slow worker however far behind it was."


def _edges(search: pd.DataFrame) -> str:
    best = best_of(search)
    edges = best[best["step_size"].isin((STEP_SIZES[0], STEP_SIZES[-1]))]["method"]
    return f"At the edge of the grid: {', '.join(edges)}." if len(edges) else "No choice lies at the edge of the grid."
