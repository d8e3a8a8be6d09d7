"""The terminal's view of a run: live progress, events, and the final tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from ray_pcasgd.agents.optimizer import SGD
from ray_pcasgd.base.text import NOTHING, SPREAD, format_value, main_metric, printable, spoken
from ray_pcasgd.cli.output import print_table
from ray_pcasgd.cli.progress import Progress
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.records import Event, StepReport
from ray_pcasgd.report.data import load_run
from ray_pcasgd.report.delays import WITHOUT_EFFECT, has_delays
from ray_pcasgd.report.labels import value_text
from ray_pcasgd.rules.server import ServerRule, described
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.comparison import Comparison
from ray_pcasgd.runs.metrics import TUNED
from ray_pcasgd.runs.pace import NAN
from ray_pcasgd.runs.plan.plan import Plan
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.storage.names import REPORT
from ray_pcasgd.runs.storage.remote import is_remote, location_in
from ray_pcasgd.tasks.partition import label_histogram

_HISTOGRAM_CLASSES = 10
"""Label counts of shards are shown up to this number of classes."""


_BEST_POINTS = 10


class Terminal(Callback):
    """Shows a run while it is running: ``Trainer(..., callbacks=[Terminal()])``.

    On a terminal one line for each agent, which are drawn anew; elsewhere, as in notebooks and logs, a line of text
    every few seconds and at each evaluation.

    Args:
        console: where to write; not given: the process's output, or the notebook's.
        title: stands before each line.
        details: whether the first lines describe the run.

    """

    def __init__(self, console: Console | None = None, title: str = "", details: bool = True) -> None:
        self._console = console or Console()
        self._title = title
        self._details = details
        self._progress: Progress | None = None
        self._plan: Plan | None = None

    def on_start(self, plan: Plan, path: Path) -> None:
        """Describe the run."""
        config = plan.config
        self._plan = plan
        at_once = isinstance(config.engine, RaySettings)
        self._progress = Progress(
            self._console, len(plan.specs), config.num_steps, at_once, self._title, num_servers=len(plan.servers)
        )
        if not self._details:
            return
        mode = f"ray, {config.engine.mode}" if isinstance(config.engine, RaySettings) else "local"
        agents = f"{config.num_agents} agents"
        if isinstance(config.algorithm, ServerRule):
            agents = f"{config.num_agents} workers and {len(plan.servers)} server(s)"
        self._say(f"{described(config.algorithm)} on {agents}, {config.num_steps} steps each; engine {mode}")
        if config.step_size is None and not isinstance(config.optimizer, SGD):
            usual = value_text(plan.acting.model_dump(include={"step_size"})["step_size"])
            self._say(f"optimizer {config.optimizer.name}, step size {usual}, its usual one")
        clusters = f"clusters {', '.join(map(str, _groups(plan.clusters)))}"
        if plan.network:
            clusters = f"topology {config.topology.name}, spectral gap {plan.network.spectral_gap:.3g}; {clusters}"
        self._say(clusters)
        self._say(f"shards of {_shards(plan)}")
        self._say(f"run folder {path}")

    def on_step(self, report: StepReport) -> None:
        """Show one step."""
        assert self._progress is not None
        reads = report.row.reads
        staleness = sum(read.staleness for read in reads) / len(reads) if reads else 0.0
        predicting = report.measures["predicting"] if report.measures.get("choosing") else None
        assert self._plan is not None
        counts = self._plan.steps_in(report.row)
        self._progress.step(report.row.agent, report.progress, report.loss, staleness, predicting, counts)

    def on_evaluation(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show test metrics."""
        assert self._progress is not None
        for row in rows:
            tested = {name: value for name, value in row.items() if name.startswith("test_")}
            self._progress.evaluation(None if pd.isna(row["agent"]) else row["agent"], tested, int(row["step"]))

    def on_event(self, event: Event) -> None:
        """Show an event, which may also come before the run has started."""
        if event.kind in ("agent_lost", "agent_isolated", "agent_left") and self._progress is not None:
            self._progress.leave(event.agent)
        if event.kind not in ("agent_started", "scheduler_started", "cluster_joined"):
            self._say(printable(f"{event.kind.replace('_', ' ')}: {event.detail}"))

    def on_end(self, result: Result) -> None:
        """End the display."""
        if self._progress is not None:
            self._progress.finish()

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_final_table(result: Result, console: Console, at_hand: Path | None = None) -> None:
    """Print the last evaluation: every agent, and the averaged model; ``at_hand`` is a copy of the run's folder."""
    frame, folder = result.metrics_dataframe, at_hand or Path(result.path)
    run = load_run(folder) if (folder / "config.yaml").exists() else None
    if not frame.empty:
        metric = main_metric(frame.columns) or "test_loss"
        agents = frame[frame["agent"].notna()].groupby("agent").last()
        # A server's workers are not tested.
        tested = agents[agents[metric].notna()] if metric in agents else agents
        with_server = len(tested) < len(agents) if run is None else run.num_workers is not None
        # As the page has them: what a row has itself is since the evaluation before.
        over_run = (lambda agent=None: {}) if run is None else run.over_run
        rows = []
        if not with_server:
            rows = [_final_row(f"agent {k}", row, metric, over_run(int(str(k)))) for k, row in tested.iterrows()]
        averaged = frame[frame["agent"].isna()].drop(columns="agent")
        if len(averaged):
            name = "server's model" if with_server else "averaged model"
            rows.append(_final_row(name, averaged.iloc[-1], metric, over_run()))
        print_table(rows, console)
    lines = [f"schedule {result.schedule_hash}", f"run folder {result.path}"]
    lines = [*([] if run is None else [*run.gradients, *run.screening]), *lines]
    if run is not None and run.staleness.size and not run.staleness.any() and has_delays(run.config):
        lines.insert(0, f"The {WITHOUT_EFFECT}")
    if (folder / REPORT).exists():
        place = location_in(result.path, REPORT) if is_remote(result.path) else f"{result.path}/{REPORT}"
        lines.append(f"report {place}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print one line per method: mean and sample deviation over seeds."""
    metric = main_metric(comparison.runs.columns)
    if metric is None:
        return
    rows = []
    for label, line in comparison.table(metric.removeprefix("test_")).iterrows():
        rows.append(
            {
                "method": str(label),
                f"averaged model, {spoken(metric)}": format_value(metric, line["averaged_mean"], line["averaged_std"]),
                "agents' mean": format_value(metric, line["agents_mean"], line["agents_std"]),
                "consensus distance": format_value("", line["consensus_distance_mean"], line["consensus_distance_std"]),
            }
        )
    print_table(rows, console)
    _print_spread(comparison.runs["seed"].nunique(), console)
    hashes = comparison.runs.groupby("seed")["schedule_hash"].agg(lambda column: ", ".join(dict.fromkeys(column)))
    for seed, text in hashes.items():
        console.print(f"schedules of seed {seed}: {text}", markup=False, highlight=False, soft_wrap=True)


def _print_spread(seeds: int, console: Console) -> None:
    if seeds > 1:
        console.print(f"{SPREAD}, {seeds} of them", markup=False, highlight=False, soft_wrap=True)


def print_theory(table: pd.DataFrame, console: Console) -> None:
    """Print one line per policy: seconds per update and staleness, by the theory and in the plan."""
    signs = {"exact": "", "at most": "≤ ", "about": "~ "}
    rows = [
        {
            "policy": f"{row['policy']}, K = {row['K']}",
            "seconds per update": f"{signs[row['kind']]}{row['theory']:.4g}",
            "planned": f"{row['planned']:.4g}",
            "its standard error": f"{row['standard_error']:.2g}",
            "ratio": f"{row['ratio']:.3f}",
            "staleness": f"{row['staleness_theory']:.3g}",
            "staleness planned": f"{row['staleness_planned']:.3g}",
            "at most": str(row["staleness_max"]),
            "cancelled per update": f"{row['cancelled_per_update']:.3g}",
        }
        for row in table.to_dict("records")
    ]
    print_table(rows, console)


def print_sweep(points: pd.DataFrame, metric: str, files: Sequence[str], console: Console) -> None:
    """Print the best points of a sweep, and where everything lies."""
    keys = list(points.columns[: list(points.columns).index("mean")])
    shown = points.head(_BEST_POINTS)
    with_step = bool((shown["finished"] == 0).any())
    rows = []
    for row in shown.to_dict("records"):
        point = {key: f"{row[key]:.4g}" if isinstance(row[key], float) else str(row[key]) for key in keys}
        point |= {spoken(metric): format_value(metric, row["mean"], row["std"])}
        if with_step:
            point |= {"at step": NOTHING if row["step"] != row["step"] else f"{row['step']:.0f}"}
        point |= {"seeds": str(row["finished"])}
        for name, heading in (("stopped", "stopped early"), ("failed", "failed")):
            point |= {heading: str(row[name])} if points[name].any() else {}
        rows.append(point)
    print_table(rows, console)
    _print_spread(int(points[["finished", "stopped", "failed"]].sum(axis=1).max()), console)
    if len(points) > _BEST_POINTS:
        console.print(f"and {len(points) - _BEST_POINTS} points more", highlight=False)
    for file in files:
        console.print(file, markup=False, highlight=False, soft_wrap=True)


def _final_row(name: str, row: pd.Series, metric: str, over_run: Mapping[str, float | None]) -> dict[str, str]:
    columns = [metric, *(["test_loss"] if metric != "test_loss" else []), "train_loss", "mean_staleness"]
    columns += ["theta", "predicting_share", "gradients_per_update", "cancelled_steps", "consensus_distance"]
    columns += [name for name in TUNED if name in row]
    values = {"mean_staleness": NAN, **row, **{key: NAN if value is None else value for key, value in over_run.items()}}
    shown = {
        spoken(column): format_value(column, float(values[column]))
        for column in columns
        if values[column] == values[column]
    }
    if not row["cancelled_steps"]:
        del shown["cancelled steps"]
    return {"": name, "step": str(int(row["step"])), **shown}


def _groups(clusters: Sequence[int]) -> list[list[int]]:
    return [[agent for agent, own in enumerate(clusters) if own == cluster] for cluster in sorted(set(clusters))]


def _shards(plan: Plan) -> str:
    learners = plan.specs[: plan.config.num_agents]
    sizes = [len(spec.shard) for spec in learners]
    text = f"{min(sizes)} to {max(sizes)} samples" if min(sizes) != max(sizes) else f"{sizes[0]} samples"
    classes = plan.data.num_classes
    if plan.config.partition.name == "iid" or classes is None or classes > _HISTOGRAM_CLASSES:
        return text
    if plan.data.train.labels() is None:
        return text
    counts = label_histogram(plan.data.train, tuple(spec.shard for spec in learners), classes)
    return text + "".join(f"\n  agent {agent}: {' '.join(map(str, row))}" for agent, row in enumerate(counts))
