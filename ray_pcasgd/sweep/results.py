"""Results of a sweep: a table of trials, the best point, and settings to train from."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from ray import tune
from ray.tune.search.repeater import TRIAL_INDEX

from ray_pcasgd.base.yaml_text import parse_yaml, write_yaml
from ray_pcasgd.config import Config
from ray_pcasgd.report.labels import value_text
from ray_pcasgd.report.sweep_page import write_sweep_report
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.runs.storage.remote import content_of, location_in
from ray_pcasgd.sweep.folder import BEST_FILE, LEFT_FILES, TRIALS_FILE, SweepFolder
from ray_pcasgd.sweep.grid import RunGrid, packs_of_results
from ray_pcasgd.sweep.packing import Job, Pack, kept_metrics
from ray_pcasgd.sweep.settings import Point, PopulationBased, Range, SweepConfig, nested


@dataclass(frozen=True)
class SweepResult:
    """The results of a sweep."""

    grid: tune.ResultGrid
    """Tune's results, one for each point and seed, its settings as ``config``: also where points ran in packs."""
    path: Path | str
    """The sweep's folder; of one on remote storage its location, as text."""
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
    def files(self) -> list[str]:
        """Where the best settings, the table of trials and the page are; without any figures, the table alone."""
        names = [name for name in LEFT_FILES if name == TRIALS_FILE or self.best is not None]
        return [location_in(self.path, name) if isinstance(self.path, str) else str(self.path / name) for name in names]

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
    config: SweepConfig, base: Config, folder: SweepFolder, grid: tune.ResultGrid, packs: Sequence[Pack] | None
) -> SweepResult:
    """Write the table of trials and the best settings into the sweep's folder, and return both.

    Raises:
        RunError: they cannot be written to the sweep's storage.

    """
    metric, mode = config.judged_by(base)
    keys = list(config.space)
    there = folder.run_names()
    results = [grid[place] for place in range(len(grid))]
    own = [None] * len(results) if packs is None else packs_of_results(results, packs)
    rows = [
        row for result, pack in zip(results, own, strict=True) for row in _rows(result, pack, keys, base, folder, there)
    ]
    # What is left are the states of trials that were stopped: nothing goes on from them.
    states = {name.removesuffix(".pt"): name for name in there if name.endswith(".pt")}
    folder.drop_from_runs({file for stem, file in states.items() if re.fullmatch("pack-[0-9]+", stem) or stem in there})
    trials, values = tabled(rows, keys)
    trials = trials.sort_values([*keys, "seed"], key=_sortable).reset_index(drop=True)
    trials.to_parquet(folder.path / TRIALS_FILE, index=False)
    changes = isinstance(config.scheduler, PopulationBased)
    if changes:
        # Trials that took over each other's numbers are no seeds of one point.
        points = summarized(trials.assign(_trial=range(len(trials))), [*keys, "_trial"], metric, mode)
        points = points.drop(columns="_trial")
    else:
        points = summarized(trials, keys, metric, mode)
    place = folder.path if folder.remote is None else folder.location
    grid = grid if packs is None else RunGrid(grid, packs, metric, mode)
    result = SweepResult(grid, place, metric, mode, trials, points, values)
    if result.best is not None:
        text = write_yaml(_best_settings(config, base, result).model_dump(mode="json"))
        (folder.path / BEST_FILE).write_text(text, encoding="utf-8")
        scales = {key: values.log for key, values in config.space.items() if isinstance(values, Range)}
        write_sweep_report(folder.path, points, trials, keys, metric, text, scales, changes)
    folder.publish()
    return result


def _best_settings(config: SweepConfig, base: Config, result: SweepResult) -> Config:
    """Return the settings of the best point; of a population those of its best trial."""
    assert result.best is not None
    if not isinstance(config.scheduler, PopulationBased):
        return load_config(base, changes=nested(result.best) | {"name": None})
    # Its numbers changed during the trial, as its own settings say.
    own = str(result.trials.loc[_best_of(result.trials, result.metric, result.mode), "path"])
    # Of which nothing else is taken: others may write there, and the rest of settings may name code.
    found = parse_yaml((content_of(own, "config.yaml") or b"").decode())
    changed = {key: _at(found, key) for key in config.space}
    return load_config(base, changes=nested(changed) | {"name": None})


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


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
    result: Any,
    pack: Pack | None,
    keys: Sequence[str],
    base: Config,
    folder: SweepFolder,
    there: Collection[str],
) -> Iterator[dict[str, Any]]:
    """Yield the table's row of each run of a trial."""
    config, metrics = result.config or {}, result.metrics or {}
    lost = None if result.error is None else error_line(result.error)
    if pack is None:
        seed = config.get("seed", base.seed + int(config.get(TRIAL_INDEX, 0)))
        jobs: Pack = (Job(str(metrics.get("trial_id")), config, seed),)
        points, errors = {jobs[0].name: metrics}, {}
    else:
        jobs, points, errors = pack, metrics.get("points", {}), metrics.get("errors", {})
    for job in jobs:
        measured, error = points.get(job.name, {}), errors.get(job.name, lost)
        yield {
            **{key: job.point.get(key) for key in keys},
            "seed": job.seed,
            **kept_metrics(measured),
            "finished": error is None and _is_at_its_end(measured),
            "error": error,
            "path": folder.run(job.name) if pack is not None or job.name in there else folder.trial(result.path),
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
