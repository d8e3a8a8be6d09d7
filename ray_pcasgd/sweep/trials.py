"""One trial of a sweep: a run of its own, in Tune's process for it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from ray import tune
from ray.tune.search.repeater import TRIAL_INDEX

from ray_pcasgd.base.curves import Constant, PiecewiseConstant, continued
from ray_pcasgd.base.state import State
from ray_pcasgd.config import Config
from ray_pcasgd.engines.base import Pause
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.plan.plan import Plan
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.runs.storage.names import clear_run
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.sweep.settings import Point, nested
from ray_pcasgd.sweep.states import StateKeeper, with_axis, working_in


class _Reporting(Callback):
    """Reports each evaluation of the averaged model to Tune."""

    keeps_states = True

    def __init__(self, keeper: StateKeeper, config: Config) -> None:
        self._keeper = keeper
        self._config = config
        self._pending: dict[str, float] | None = None
        self._pauses = False
        self._num_steps = 0

    def started(self, plan: Plan, path: Path) -> None:
        self._pauses = plan.pauses
        self._num_steps = plan.config.num_steps

    def evaluated(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            if row["agent"] is pd.NA:
                self._flush()
                measured = {name: float(value) for name, value in row.items() if name != "agent"}
                self._pending = {**measured, "num_steps": self._num_steps}
        if not self._pauses:
            self._flush()

    def paused(self, pause: Pause, state: Callable[[], State]) -> None:
        if self._pending is not None:
            metrics, self._pending = self._pending, None
            settings = self._config.model_dump(mode="json", include={"step_size", "algorithm"})
            self._keeper.report(metrics, pause, lambda: {**state(), "settings": settings})

    def finished(self) -> None:
        self._flush()

    def _flush(self) -> None:
        if self._pending is not None:
            metrics, self._pending = self._pending, None
            tune.report(with_axis(metrics))


def run_trial(
    point: Point,
    base: Config,
    folder: str,
    checkpoint_seconds: float,
    directory: str,
    checkpoint_steps: int | None = None,
) -> None:
    """Run one trial, or the rest of it; a trial that fails raises the error that ended its run.

    Its run folder lies in ``folder`` under the trial's number. One that is there was interrupted. Paths in its settings
    are looked up from ``directory``.
    """
    point = dict(point)
    # Tune's repeater numbers the trials of one point; a grid has its seeds in the point.
    repeat = point.pop(TRIAL_INDEX, None)
    if repeat is not None:
        point["seed"] = base.seed + int(repeat)
    name = tune.get_context().get_trial_id()
    config = load_config(base, changes=nested(point) | {"storage_path": folder, "name": name})
    clear_run(Path(folder) / name)
    keeper = StateKeeper(Path(folder) / f"{name}.pt", checkpoint_seconds, checkpoint_steps)
    state = keeper.last()
    if state is not None:
        config = with_past(config, load_config(config, changes=state["settings"]), state["next_step"])
    with working_in(directory):
        result = Trainer(config, watcher=_Reporting(keeper, config)).fit(state)
    keeper.forget()
    if result.error is not None:
        raise result.error


def with_past(config: Config, past: Config, step: int) -> Config:
    """Return settings whose step size and theta are those of ``past`` before ``step``, as curves.

    So a trial of population-based training has settings of its own, with which ``train`` takes the same steps.
    """
    changes: dict[str, Any] = {}
    if (curve := _joined(past.step_size, config.step_size, step)) is not None:
        changes["step_size"] = curve
    thetas = (getattr(past.algorithm, "theta", None), getattr(config.algorithm, "theta", None))
    if (curve := _joined(*thetas, step)) is not None:
        changes["algorithm"] = {"theta": curve}
    return load_config(config, changes=changes)


def _joined(past: Any, present: Any, step: int) -> dict[str, Any] | None:
    """Return the curve that is ``past`` before ``step``; ``None`` where it does not change."""
    if past == present or not isinstance(past, Constant | PiecewiseConstant) or not isinstance(present, Constant):
        return None
    return continued(past, step, present.value).model_dump()
