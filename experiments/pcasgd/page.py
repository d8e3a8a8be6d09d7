"""The study's page, written from what was measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.pcasgd.pictures import ACCURACY, pictures_of, points_of
from experiments.pcasgd.study import median_ratio
from experiments.studies import machine, num_seeds, percent, total_time
from ray_pcasgd.base.text import SPREAD

OURS = ("pc-asgd", "pc-asgd-pv")
BESIDE = ("d-psgd without delay",)
"""No rival: what the same agents reach without delay."""


def write_page(settings: Mapping[str, Any], output: Path, scale: str) -> None:
    """Write RESULTS.md and its pictures from the Parquet files."""
    runs, curves, grid, epochs = (
        pd.read_parquet(output / f"{name}.parquet") for name in ("runs", "curves", "grid", "epochs")
    )
    # A run that diverged guesses.
    runs[ACCURACY] = runs[ACCURACY].fillna(0.1)
    for task, own in settings.items():
        parts = [frame[frame["task"] == task] for frame in (runs, curves, grid)]
        for name, content in pictures_of(task, own, *parts).items():
            (output / f"{name}.svg").write_bytes(content)
    (output / "RESULTS.md").write_text(page(settings, runs, grid, epochs, scale), encoding="utf-8")


def page(settings: Mapping[str, Any], runs: pd.DataFrame, grid: pd.DataFrame, epochs: pd.DataFrame, scale: str) -> str:
    """Return the page as Markdown."""
    tasks = "\n\n".join(
        _of_task(task, own, *(frame[frame["task"] == task] for frame in (runs, grid, epochs)))
        for task, own in settings.items()
    )
    return f"""# PC-ASGD and its rivals, figure by figure

{_differences(runs)}

**What is claimed** (Wang, Jiang, Liu, Sarkar, Jiang, Lee, TMLR 2024, arXiv 2208.13154): PC-ASGD is ahead of its two
halves, P-ASGD and C-ASGD, and of D-ASGD, D-ASGD with importance sampling, adaptive braking and DC-S3GD, and loses less
as delays and numbers of agents grow. The paper's figures are of PreResNet-110 and DenseNet on CIFAR-10 and CIFAR-100
(`--scale paper`, for GPUs, was not run here); **what is measured here** are small networks for few epochs, one step
size for all methods of a task, so orders may differ where a method wants another step size: the grid at the end of
each task shows how much that matters for PC-ASGD. Skewed shards (non-iid) are dealt by Dirichlet(0.3). Links between
the two clusters are late, those within are not; planned schedules, so that all methods of a seed read the very same
versions. Accuracy is that of the averaged model. Braking has momentum 0.9 and a tenth of the step size, at which it
hardly moves here: its line says nothing of what it reaches with a step size of its own. DC-S3GD runs without its
paper's momentum of 0.9, and with neighbors' weights up to {_latest(settings)} versions late where the paper's are one
late: its line says nothing of what it reaches as it was meant. In tables and grids,
{SPREAD}. Written by
`python -m experiments.pcasgd --scale {scale}` ({machine()};
{total_time(runs)}).

{tasks}
"""


def _paired(runs: pd.DataFrame, method: str, other: str) -> tuple[float, float]:
    """Return the mean difference of accuracies over the seeds, and its standard error, infinite with one seed."""
    table = runs[runs["method"].isin([method, other])].pivot_table(index="seed", columns="method", values=ACCURACY)
    difference = table[method] - table[other]
    return float(difference.mean()), float(difference.sem()) if len(difference) > 1 else float("inf")


def _verdict(difference: float, error: float) -> str:
    return "ahead" if difference > 2 * error else "behind" if difference < -2 * error else "even"


def _differences(runs: pd.DataFrame) -> str:
    """Return where PC-ASGD is not ahead of its rivals, as it is in the paper."""
    curves = runs[runs["figure"] == "curves"]
    lines = []
    for (task, partition), part in curves.groupby(["task", "partition"], sort=False):
        rivals = [m for m in part["method"].drop_duplicates() if m not in (*OURS, *BESIDE)]
        for ours in OURS:
            found: dict[str, list[str]] = {"behind": [], "even": [], "ahead": []}
            for rival in rivals:
                difference, error = _paired(part, ours, rival)
                found[_verdict(difference, error)].append(f"{rival} ({100 * difference:+.1f})")
            told = [f"{verdict} of {', '.join(names)}" for verdict, names in found.items() if names]
            text = "; ".join(told).replace("even of", "not to be told from").replace("behind of", "**behind**")
            lines.append(f"- {task}, {partition}: {ours} is {text}.")
    return (
        "**Where the order differs from the paper's** (differences in points, paired over seeds; a difference counts\n"
        "from two standard errors on):\n\n" + "\n".join(lines)
    )


def _of_task(
    task: str, settings: Mapping[str, Any], runs: pd.DataFrame, grid: pd.DataFrame, epochs: pd.DataFrame
) -> str:
    config = settings["config"]
    seeds = runs[runs["figure"] == "curves"]["seed"].nunique()
    sections = [
        f"## {task}\n\n{config['num_agents']} agents, batch {config['batch_size']}, {config['num_steps']} steps an "
        f"agent, step size {_step_size(config)}, delay {settings['delay']}, {num_seeds(seeds)}.",
        f"### Accuracy over epochs (figure 1)\n\n![accuracy over epochs]({task}-curves.svg)\n\n{_final(runs)}",
        f"### Steps of delay (figure 2)\n\n{_seeds_of(runs, 'delays')}.\n\n![accuracy against delay]({task}-delays.svg)"
        f"\n\n{_against(runs[runs['figure'] == 'delays'], 'delay')}",
    ]
    if (runs["figure"] == "agents").any():
        sections.append(
            f"### Numbers of agents (figure 3)\n\nEvery agent takes {config['num_steps']} steps; "
            f"{_seeds_of(runs, 'agents')}.\n\n![accuracy against agents]({task}-agents.svg)\n\n"
            f"{_against(runs[runs['figure'] == 'agents'], 'agents')}"
        )
    if (choices := runs[runs["figure"] == "choices"]).size:
        sections.append(
            f"### Choices of the practical variant (figure 4)\n\n{_seeds_of(runs, 'choices')}.\n\n"
            f"![predicting share over steps]({task}-choices.svg)\n\n{_choices(choices)}"
        )
    sections.append(f"### Time of an epoch (figure 5)\n\n{_epochs(epochs)}")
    sections.append(f"### Theta and step size\n\n{_grid(task, grid)}")
    return "\n\n".join(sections)


def _seeds_of(runs: pd.DataFrame, figure: str) -> str:
    return num_seeds(runs[runs["figure"] == figure]["seed"].nunique())


def _latest(settings: Mapping[str, Any]) -> int:
    return max(int(own["delay"]) for own in settings.values())


def _step_size(config: Mapping[str, Any]) -> str:
    value = config["step_size"]
    return str(value) if isinstance(value, dict) else f"{value:g}"


def _final(runs: pd.DataFrame) -> str:
    curves = runs[runs["figure"] == "curves"]
    partitions = list(curves["partition"].drop_duplicates())
    lines = [f"| method | {' | '.join(f'{p} | consensus distance' for p in partitions)} |"]
    lines.append("|---" * (1 + 2 * len(partitions)) + "|")
    for method, group in curves.groupby("method", sort=False):
        cells = []
        for partition in partitions:
            own = group[group["partition"] == partition]
            cells += [percent(own[ACCURACY]), f"{own['consensus_distance'].mean():.3g}"]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _against(runs: pd.DataFrame, column: str) -> str:
    values = sorted(runs[column].unique())
    lines = [f"| shards | method | {' | '.join(f'{column} {value}' for value in values)} |"]
    lines.append("|---" * (2 + len(values)) + "|")
    for (partition, method), group in runs.groupby(["partition", "method"], sort=False):
        cells = [percent(group[group[column] == value][ACCURACY]) for value in values]
        lines.append(f"| {partition} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _choices(runs: pd.DataFrame) -> str:
    lines = ["| shards | condition | predicting share | accuracy |", "|---|---|---|---|"]
    for (partition, condition), group in runs.groupby(["partition", "method"], sort=False):
        share = group["predicting_share"].mean()
        lines.append(f"| {partition} | {condition} | {share:.2f} | {percent(group[ACCURACY])} |")
    return "\n".join(lines) + "\n\nThe share is that of the last evaluation; the picture has all of them."


def _epochs(epochs: pd.DataFrame) -> str:
    """Return a table of times over D-ASGD's, medians of ratios within a repetition."""
    reference = epochs[epochs["method"] == "d-asgd"]
    lines = ["| method | time over d-asgd's | s per 1,000 samples | kB sent per sample |", "|---|---|---|---|"]
    for method, group in epochs.groupby("method", sort=False):
        ratio = median_ratio(group["seconds"], reference["seconds"])
        seconds = 1000 * group["seconds"].median()
        lines.append(f"| {method} | {ratio:.2f} | {seconds:.2f} | {group['bytes'].iloc[0] / 1000:.3g} |")
    note = (
        "One process, one core, methods in turn, median of "
        f"{epochs['repetition'].nunique()} repetitions; what a late link makes a barrier wait for is not in it."
    )
    return "\n".join([*lines, "", note])


def _grid(task: str, grid: pd.DataFrame) -> str:
    texts = []
    for partition, trials in grid.groupby("partition", sort=False):
        points = points_of(trials)
        best = points.iloc[0]
        within = points[points["mean"] >= best["mean"] - 0.005]
        by_theta = points.groupby("theta")["mean"].max()
        tuned = ", ".join(f"{theta:g}: {100 * value:.1f} %" for theta, value in by_theta.items())
        seeds = trials["seed"].nunique()
        texts.append(
            f"{partition}: best at theta {best['theta']:g}, step size {best['step_size']:g} "
            f"({100 * best['mean']:.1f} %); {len(within)} of {len(points)} points lie within half a point of it. With "
            f"the best step size for each theta (0 is C-ASGD, 1 is P-ASGD): {tuned}. {len(trials)} runs "
            f"({num_seeds(seeds)}) by `ray-pcasgd sweep` in {trials['taken'].iloc[0]:.0f} s.\n\n"
            f"![theta and step size, {partition}]({task}-grid-{partition}.svg)"
        )
    return "\n\n".join(texts)
