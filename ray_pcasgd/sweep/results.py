"""Results of a sweep: a table of trials, the best point, and settings to train from."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from ray import tune
from ray.tune.search.repeater import TRIAL_INDEX

from ray_pcasgd.base.yaml_text import write_yaml
from ray_pcasgd.config import Config
from ray_pcasgd.report.labels import value_text
from ray_pcasgd.report.sweep_page import write_sweep_report
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.sweep.packing import Job, Pack, kept_metrics
from ray_pcasgd.sweep.settings import Point, PopulationBased, Range, SweepConfig, nested

TRIALS_FILE = "trials.parquet"
RUNS_FOLDER = "runs"
BEST_FILE = "best.yaml"


@dataclass(frozen=True)
class SweepResult:
    """The results of a sweep."""

    grid: tune.ResultGrid
    """Tune's own results."""
    path: Path
    """The sweep's folder."""
    metric: str
    mode: str
    trials: pd.DataFrame
    """One row per trial: the point, its seed, the last metrics, whether it ``finished``, ``error`` where it failed, its
    run folder."""
    points: pd.DataFrame
    """One row per point, the best first: mean and sample deviation of the metric over the seeds, how many of these
    finished, were stopped early, or failed, and the step at which the metric was measured."""

    values: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)
    """Of settings whose values the tables write as text: these values."""

    @property
    def best(self) -> Point | None:
        """The best point; ``None`` where no trial reported any figures."""
        if self.points.empty or self.points["mean"].isna().all():
            return None
        keys = [name for name in self.points.columns if name not in _STATISTICS]
        point = {key: _plain(self.points[key].iloc[0]) for key in keys}
        return {key: self.values[key][value] if key in self.values else value for key, value in point.items()}


_STATISTICS = ("mean", "std", "finished", "stopped", "failed", "step")


def conclude(
    config: SweepConfig, base: Config, path: Path, grid: tune.ResultGrid, packs: Sequence[Pack] | None
) -> SweepResult:
    """Write the table of trials and the best settings into the sweep's folder, and return both."""
    metric, mode = config.judged_by(base)
    keys = list(config.space)
    results = [grid[place] for place in range(len(grid))]
    rows = [row for result in results for row in _rows(result, packs, keys, base, path)]
    # What is left are the states of trials that were stopped: nothing goes on from them.
    runs = path / RUNS_FOLDER
    for state in runs.glob("*.pt"):
        if re.fullmatch("pack-[0-9]+", state.stem) or (runs / state.stem).is_dir():
            state.unlink()
    trials, values = tabled(rows, keys)
    trials = trials.sort_values([*keys, "seed"], key=_sortable).reset_index(drop=True)
    trials.to_parquet(path / TRIALS_FILE, index=False)
    if isinstance(config.scheduler, PopulationBased):
        # Trials that took over each other's numbers are no seeds of one point.
        points = summarized(trials.assign(_trial=range(len(trials))), [*keys, "_trial"], metric, mode)
        points = points.drop(columns="_trial")
    else:
        points = summarized(trials, keys, metric, mode)
    result = SweepResult(grid, path, metric, mode, trials, points, values)
    if result.best is not None:
        if isinstance(config.scheduler, PopulationBased):
            # Its numbers changed during the trial, as its own settings say.
            own = Path(trials.loc[_best_of(trials, metric, mode), "path"])
            best = load_config(own / "config.yaml", changes={"name": None, "storage_path": base.storage_path})
        else:
            best = load_config(base, changes=nested(result.best) | {"name": None})
        text = write_yaml(best.model_dump(mode="json"))
        (path / BEST_FILE).write_text(text, encoding="utf-8")
        logarithmic = [key for key, values in config.space.items() if isinstance(values, Range) and values.log]
        linear = [key for key, values in config.space.items() if isinstance(values, Range) and not values.log]
        scales = dict.fromkeys(logarithmic, True) | dict.fromkeys(linear, False)
        changes = isinstance(config.scheduler, PopulationBased)
        write_sweep_report(path, result.points, trials, list(config.space), metric, text, scales, changes)
    return result


def tabled(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> tuple[pd.DataFrame, dict[str, dict[Any, Any]]]:
    """Return rows as a table that Parquet takes, and the values of those settings that it writes as text.

    These are the columns that have neither a number in each row nor a text in each row: lists, mappings, ``None``.
    """
    values: dict[str, dict[Any, Any]] = {}
    table = [dict(row) for row in rows]
    for key in keys:
        kinds = {_kind(row[key]) for row in table}
        if kinds not in ({"number"}, {"truth"}, {"text"}):
            values[key] = {}
            for row in table:
                text = row[key] if isinstance(row[key], str) else value_text(row[key])
                values[key][text] = row[key]
                row[key] = text
    return pd.DataFrame(table), values


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "truth"
    return "number" if isinstance(value, int | float) else "text" if isinstance(value, str) else "other"


def summarized(trials: pd.DataFrame, keys: Sequence[str], metric: str, mode: str) -> pd.DataFrame:
    """Return one row per point, the best mean first; points of which not every trial finished come after the others.

    Where some trials finished, those count; where all were stopped early, what they had then, and ``step`` is that of
    the one that came least far. Of such points those come first that came farther: their figures are of other steps.
    """
    failed = trials["error"].notna()
    absent = pd.Series(float("nan"), index=trials.index)
    values, steps = (trials.get(name, absent) for name in (metric, "step"))
    any_finished = trials.groupby(list(keys), dropna=False)["finished"].transform("any")
    counts = ~failed & (trials["finished"] | ~any_finished)
    stopped = ~failed & ~trials["finished"]
    frame = trials[[*keys, "finished"]].assign(
        value=values.where(counts), last=steps.where(counts), stopped=stopped, failed=failed
    )
    groups = frame.groupby(list(keys), sort=False, dropna=False)
    table = pd.DataFrame(
        {
            "mean": groups["value"].mean(),
            "std": groups["value"].std(),
            **{name: groups[name].sum() for name in ("finished", "stopped", "failed")},
            "step": groups["last"].min(),
        }
    ).reset_index()
    complete = (table["stopped"] + table["failed"]) == 0
    unfinished = table["finished"] == 0
    order = table.assign(rank=(~complete).astype(int) + unfinished, reached=table["step"].where(unfinished, 0.0))
    order = order.sort_values(
        ["rank", "reached", "mean"], ascending=[True, False, mode == "min"], na_position="last", kind="stable"
    )
    return order.drop(columns=["rank", "reached"]).reset_index(drop=True)


def _best_of(trials: pd.DataFrame, metric: str, mode: str) -> Any:
    values = trials[metric].where(trials["error"].isna() & trials["finished"])
    return values.idxmax() if mode == "max" else values.idxmin()


def _rows(
    result: Any, packs: Sequence[Pack] | None, keys: Sequence[str], base: Config, folder: Path
) -> Iterator[dict[str, Any]]:
    """Yield the table's row of each run of a trial."""
    config, metrics = result.config or {}, result.metrics or {}
    lost = None if result.error is None else error_line(result.error)
    if packs is None:
        seed = config.get("seed", base.seed + int(config.get(TRIAL_INDEX, 0)))
        jobs: Pack = (Job(str(metrics.get("trial_id")), config, seed),)
        points, errors = {jobs[0].name: metrics}, {}
    else:
        jobs, points, errors = packs[config["pack"]], metrics.get("points", {}), metrics.get("errors", {})
    for job in jobs:
        measured, error = points.get(job.name, {}), errors.get(job.name, lost)
        run = folder / RUNS_FOLDER / job.name
        yield {
            **{key: job.point.get(key) for key in keys},
            "seed": job.seed,
            **kept_metrics(measured),
            "finished": error is None and _is_at_its_end(measured),
            "error": error,
            "path": str(run if packs is not None or run.is_dir() else result.path),
        }


def _is_at_its_end(metrics: Mapping[str, Any]) -> bool:
    return "step" in metrics and metrics["step"] == metrics.get("num_steps")


def error_line(trace: object) -> str:
    r"""Return a trial's error in one line; of the package's own errors, what they say is enough.

    >>> error_line("Traceback ...\n  File ...\nray_pcasgd.engines.failures.StepError: agent 0 at step 6: boom\n")
    'agent 0 at step 6: boom'
    """
    *_, last = str(trace).strip().splitlines() or [""]
    return re.sub(r"^ray_pcasgd\.[\w.]+: ", "", last)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _sortable(column: pd.Series) -> pd.Series:
    return column if pd.api.types.is_numeric_dtype(column) else column.astype(str)
