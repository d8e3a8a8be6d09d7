"""Ray's own logger callbacks, as ``RunConfig(callbacks=[...])`` hands them over: a run is one trial to them."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from ray.tune import Checkpoint as RayCheckpoint
from ray.tune.logger import LoggerCallback

from ray_pcasgd.base.errors import SettingsError
from ray_pcasgd.base.imports import import_path
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.plan.plan import Plan
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.storage.checkpoints import Checkpoint
from ray_pcasgd.runs.trackers.base import folder_within, settings_of

FOLDER = "ray_loggers"
_CALLED = (
    *("on_trial_start", "on_trial_result", "on_trial_save", "on_trial_complete", "on_trial_error"),
    *("on_trial_restore", "on_experiment_end"),
)
"""Tune's hooks that a run has an occasion for; there is none to restore a trial, which would be a run of its own."""


def ray_loggers(callbacks: Sequence[Any]) -> tuple[Callback, ...]:
    """Return callbacks of a run that call those of Ray's ``RunConfig``.

    Raises:
        SettingsError: one of them is no logger of Tune's, or has hooks that no run would ever call.

    """
    for place, callback in enumerate(callbacks):
        what = f"run_config.callbacks.{place} = {import_path(callback)}"
        if not isinstance(callback, LoggerCallback):
            raise SettingsError(
                f"{what}: no hook of it would be called; allowed are objects of classes that are derived from "
                "ray.tune.logger.LoggerCallback, and Trainer(callbacks=[...]) takes those of ray_pcasgd.Callback"
            )
        for name in dir(callback):
            own, usual = (getattr(kind, name, None) for kind in (type(callback), LoggerCallback))
            if name.startswith("on_") and name not in _CALLED and own is not usual:
                raise SettingsError(f"{what}: {name} would not be called; allowed are {', '.join(_CALLED)}")
        wandb = getattr(sys.modules.get("ray.air.integrations.wandb"), "WandbLoggerCallback", None)
        if wandb is not None and isinstance(callback, wandb):
            raise SettingsError(
                f"{what}: it logs through Ray actors, which end together with those of the run; allowed in its place "
                "is Trainer(callbacks=[ray_pcasgd.WandB()])"
            )
    return tuple(map(RayLogger, callbacks))


class RayLogger(Callback):
    """Calls a logger of Ray Tune's for a run, as Tune would for a trial.

    A result is an evaluation of the averaged model: its row of metrics, those of the agents under ``agents``, and
    Tune's own words ``training_iteration`` (number of the evaluation), ``timesteps_total`` (step) and
    ``time_total_s``. What a logger writes lies in ``ray_loggers`` in the run's folder.
    """

    def __init__(self, logger: LoggerCallback) -> None:
        self._logger = logger
        self._trial: Any = None  # by its type it would be Tune's own
        self._evaluations = 0

    def on_start(self, plan: Plan, path: Path) -> None:
        """Start the trial."""
        self._trial = _Trial(path.name, settings_of(plan.acting), str(folder_within(plan, path, FOLDER)))
        self._evaluations = 0
        self._logger.setup(stop=None, num_samples=1, total_num_samples=1)
        self._logger.on_trial_start(0, [self._trial], self._trial)

    def on_evaluation(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Report the evaluation of the averaged model, where there is one, as a result."""
        averaged = next((row for row in rows if pd.isna(row["agent"])), None)
        if averaged is None or self._trial is None:
            return
        self._evaluations += 1
        agents = {str(row["agent"]): _figures(row) for row in rows if row is not averaged}
        result = {
            **_figures(averaged),
            "agents": agents,
            "step": int(averaged["step"]),
            "training_iteration": self._evaluations,
            "timesteps_total": int(averaged["step"]),
            "time_total_s": float(averaged["wall_seconds"]),
            "timestamp": int(time.time()),
            "trial_id": self._trial.trial_id,
            "config": self._trial.config,
        }
        self._trial.last_result = result
        self._logger.on_trial_result(self._evaluations, [self._trial], self._trial, dict(result))

    def on_checkpoint(self, checkpoint: Checkpoint, metrics: Mapping[str, Any]) -> None:
        """Report a model that was kept."""
        if self._trial is not None:
            self._trial.checkpoint = RayCheckpoint.from_directory(checkpoint.path)
            self._logger.on_trial_save(self._evaluations, [self._trial], self._trial)

    def on_end(self, result: Result) -> None:
        """End the trial, as failed where the run has an error."""
        if self._trial is None:
            return
        end = self._logger.on_trial_complete if result.error is None else self._logger.on_trial_error
        end(self._evaluations, [self._trial], self._trial)
        self._logger.on_experiment_end([self._trial])
        self._trial = None


class _Trial:
    """What Tune's loggers ask of a trial."""

    checkpoint: Any = None
    last_result: Mapping[str, Any] | None = None

    def __init__(self, name: str, config: dict[str, Any], local_path: str) -> None:
        self.trial_id = self.experiment_dir_name = self.trainable_name = name
        self.config = self.evaluated_params = config
        self.local_path = local_path

    def __str__(self) -> str:
        return self.trial_id

    def init_local_path(self) -> None:
        Path(self.local_path).mkdir(parents=True, exist_ok=True)


def _figures(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if name not in ("agent", "step")}
