"""Tune's results of a sweep whose points ran in packs: one result for each point and seed, as without packs."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from ray.tune import Result, ResultGrid

from ray_pcasgd.base.errors import RunError
from ray_pcasgd.sweep.folder import RUNS_FOLDER
from ray_pcasgd.sweep.packing import Job, Pack

_OF_PACK = ("points", "errors", "config", "trial_id", "experiment_tag", "step", "timesteps_total", "training_iteration")
"""Metrics of a pack that are not those of each of its runs."""
_SCOPES = ("all", "last", "avg", "last-5-avg", "last-10-avg")


class RunGrid(ResultGrid):
    """A ``ResultGrid`` with one result for each run of a sweep, its point and seed as its ``config``.

    Its methods are those of Tune's, and mean the same.
    """

    def __init__(self, grid: ResultGrid, packs: Sequence[Pack], metric: str, mode: str) -> None:
        self._grid = grid
        self._metric = metric
        self._mode = mode
        results = [grid[place] for place in range(len(grid))]
        of_each = packs_of_results(results, packs)
        self._results = [
            one
            for result, pack in zip(results, of_each, strict=True)
            for one in _results_of(result, pack, grid.experiment_path)
        ]

    @property
    def experiment_path(self) -> str:
        """The sweep's folder on its storage."""
        return str(self._grid.experiment_path)

    @property
    def filesystem(self) -> Any:
        """The file system that the sweep's folder is on."""
        return self._grid.filesystem

    @property
    def num_errors(self) -> int:
        """The number of runs that failed."""
        return len(self.errors)

    @property
    def num_terminated(self) -> int:
        """The number of runs that did not fail."""
        return len(self) - self.num_errors

    def get_best_result(
        self, metric: str | None = None, mode: str | None = None, scope: str = "last", filter_nan_and_inf: bool = True
    ) -> Result:
        """Return the result with the best metric; not given: that of the sweep.

        Raises:
            ValueError: there is no such mode or scope.
            RuntimeError: no run has reported the metric.

        """
        metric, mode = metric or self._metric, mode or self._mode
        if mode not in ("max", "min"):
            raise ValueError(f"mode = {mode!r}: allowed are max and min")
        if scope not in _SCOPES:
            raise ValueError(f"scope = {scope!r}: allowed are {', '.join(_SCOPES)}")
        values = [_value(result, metric, mode, scope) for result in self._results]
        known = [place for place, value in enumerate(values) if value is not None]
        if filter_nan_and_inf:
            known = [place for place in known if math.isfinite(values[place] or 0.0)]
        if not known:
            raise RuntimeError(f"metric = {metric!r}: no run has reported it, or no finite value of it")
        best = max if mode == "max" else min
        return self._results[best(known, key=lambda place: values[place] or 0.0)]

    def get_dataframe(self, filter_metric: str | None = None, filter_mode: str | None = None) -> pd.DataFrame:
        """Return a row for each run: what it reported last, or where a metric was best, and its settings.

        Raises:
            ValueError: there is no such mode, or it is given without a metric.

        """
        if filter_mode not in (None, "max", "min") or (filter_mode is not None and filter_metric is None):
            raise ValueError(f"filter_mode = {filter_mode!r}: allowed are max and min, together with a filter_metric")
        rows = []
        for result in self._results:
            frame = result.metrics_dataframe
            if frame is None or frame.empty:
                continue
            place = -1
            if filter_mode is not None and filter_metric in frame:
                column = frame[filter_metric].to_numpy(dtype=float)
                if np.isnan(column).all():
                    continue
                place = int(np.nanargmax(column) if filter_mode == "max" else np.nanargmin(column))
            rows.append(frame.iloc[place].to_dict() | {"logdir": frame["trial_id"].iloc[0]})
        return pd.DataFrame(rows)


def _value(result: Result, metric: str, mode: str, scope: str) -> float | None:
    frame = result.metrics_dataframe
    values = [] if frame is None or metric not in frame else frame[metric].dropna().astype(float).tolist()
    if not values:
        return None
    if scope == "all":
        return max(values) if mode == "max" else min(values)
    number = {"last": 1, "avg": len(values), "last-5-avg": 5, "last-10-avg": 10}[scope]
    return float(np.mean(values[-number:]))


def packs_of_results(results: Sequence[Result], packs: Sequence[Pack]) -> list[Pack]:
    """Return each result's pack; of a trial that was lost before it reported anything, Tune does not say which it is.

    These are the packs that no other result is of, in their order.
    """
    numbers = [(result.config or {}).get("pack") for result in results]
    others = (number for number in range(len(packs)) if number not in numbers)
    return [packs[next(others) if number is None else number] for number in numbers]


def _results_of(result: Result, pack: Pack, folder: str) -> Iterator[Result]:
    """Yield the results of a pack's runs, of which the pack's own holds what each reported."""
    metrics: dict[str, Any] = result.metrics or {}
    for job in pack:
        settings = {**job.point, "seed": job.seed}
        common = {name: value for name, value in metrics.items() if name not in _OF_PACK}
        history = _history(result.metrics_dataframe, job)
        said = metrics.get("errors", {}).get(job.name)
        yield Result(
            metrics={
                **common,
                **metrics.get("points", {}).get(job.name, {}),
                "training_iteration": len(history),
                "trial_id": job.name,
                "config": settings,
            },
            checkpoint=None,
            error=result.error if said is None else RunError(said),
            path=f"{folder}/{RUNS_FOLDER}/{job.name}",
            metrics_dataframe=history,
            best_checkpoints=[],
            _storage_filesystem=result.filesystem,
        )


def _history(frame: pd.DataFrame | None, job: Job) -> pd.DataFrame:
    """Return what one run reported, a row for each of its evaluations; a pack repeats what has not changed."""
    prefix = f"points/{job.name}/"
    own = [] if frame is None else [name for name in frame if str(name).startswith(prefix)]
    if frame is None or not own:
        return pd.DataFrame()
    of_pack = tuple(f"{name}/" for name in _OF_PACK)
    common = [name for name in frame if name not in _OF_PACK and not str(name).startswith(of_pack)]
    history = frame[[*common, *own]].rename(columns={name: str(name).removeprefix(prefix) for name in own})
    history = history.dropna(subset=["step"]).drop_duplicates("step").reset_index(drop=True)
    history["training_iteration"] = range(1, len(history) + 1)
    settings = {f"config/{key}": [value] * len(history) for key, value in (*job.point.items(), ("seed", job.seed))}
    return history.assign(trial_id=job.name, **settings)
