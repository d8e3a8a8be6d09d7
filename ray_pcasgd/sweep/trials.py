"""One trial of a sweep: a run, or the runs of a pack, in Tune's process for it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from traceback import format_exception_only
from typing import Any

import pandas as pd
from ray import tune
from ray.tune.search.repeater import TRIAL_INDEX

from ray_pcasgd.agents.local_steps import longest_round
from ray_pcasgd.base.curves import Constant, PiecewiseConstant, continued
from ray_pcasgd.base.state import State
from ray_pcasgd.config import Config
from ray_pcasgd.engines.base import Pause
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.plan.plan import Plan
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.runs.storage.names import make_room
from ray_pcasgd.runs.trainer import Trainer, fit_together
from ray_pcasgd.sweep.nodes import Mark
from ray_pcasgd.sweep.packing import Job, Pack, kept_metrics
from ray_pcasgd.sweep.results import error_line
from ray_pcasgd.sweep.settings import Point
from ray_pcasgd.sweep.states import StateFile, StateKeeper, with_axis, working_in


class _Evaluations:
    """The newest evaluations of a trial's runs, reported to Tune where all of the runs have come so far.

    The metrics of a run by itself are reported as they are, since Tune's schedulers judge by them; those of a pack by
    the names of its runs.
    """

    def __init__(self, keeper: StateKeeper, is_pack: bool) -> None:
        self._keeper = keeper
        self._is_pack = is_pack
        self._points: dict[str, dict[str, Any]] = {}
        self._unreported: set[str] = set()
        self._step = 0

    def take(self, name: str, row: Mapping[str, Any], num_steps: int) -> None:
        """Take in the averaged model's row of metrics of one run."""
        if name in self._unreported:
            self.report()
        measured = {key: float(value) for key, value in row.items() if key != "agent"}
        self._step = int(row["step"])
        kept = {**kept_metrics(measured), "step": self._step} if self._is_pack else measured
        self._points[name] = {**kept, "num_steps": num_steps}
        self._unreported.add(name)

    def report_at(self, pause: Pause, state: Callable[[], State]) -> None:
        """Report what is new at a pause, with the state from which the trial goes on where one is due."""
        if self._unreported:
            self._unreported.clear()
            self._keeper.report(self._metrics({}), pause, state)

    def report(self) -> None:
        """Report what is new."""
        if self._unreported:
            self._unreported.clear()
            tune.report(with_axis(self._metrics({})))

    def conclude(self, errors: Mapping[str, str]) -> None:
        """Report how the runs of a pack ended."""
        tune.report(with_axis(self._metrics(errors)))

    def _metrics(self, errors: Mapping[str, str]) -> dict[str, Any]:
        if self._is_pack:
            return {"step": self._step, "points": dict(self._points), "errors": dict(errors)}
        (metrics,) = self._points.values()
        return metrics


class _Reporting(Callback):
    """Hands the evaluations of one run to those of its trial."""

    keeps_states = True

    def __init__(self, config: Config, evaluations: _Evaluations) -> None:
        self._config = config
        self._evaluations = evaluations
        self._pauses = False
        self._num_steps = 0

    def on_start(self, plan: Plan, path: Path) -> None:
        self._pauses = plan.pauses
        self._num_steps = plan.config.num_steps

    def on_evaluation(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            if row["agent"] is pd.NA:
                self._evaluations.take(str(self._config.name), row, self._num_steps)
        if not self._pauses:
            self._evaluations.report()

    def on_pause(self, pause: Pause, state: Callable[[], State]) -> None:
        settings = self._config.model_dump(mode="json", include={"step_size", "algorithm"})
        self._evaluations.report_at(pause, lambda: {**state(), "settings": settings})


def run_trial(
    settings: Mapping[str, Any],
    base: Config,
    folder: str,
    checkpoint_seconds: float,
    directory: str,
    checkpoint_steps: int | None = None,
    packs: Sequence[Pack] | None = None,
    mark: Mark | None = None,
) -> None:
    """Run one trial, or the rest of it.

    A run by itself that fails raises its error; of a pack, runs that fail are reported, and the others go on. Run
    folders that are there were interrupted.

    Args:
        settings: Tune's for this trial: a point, or the number of a pack.
        base: settings that all runs of the sweep share.
        folder: the location where the run folders lie, under the trial's number or the names in the pack.
        checkpoint_seconds: how often the trial's state is kept.
        directory: from where paths in the settings are looked up.
        checkpoint_steps: at which multiples of steps other trials may go on from this one's state, if at all.
        packs: those of the sweep; ``None`` where each trial is one run.
        mark: by which this process sees that the folder is the sweep's; ``None`` where it is not on a machine's disk.

    """
    if mark is not None:
        mark.require()
    if packs is None:
        name, jobs = (job := _job_of(settings, base)).name, (job,)
    else:
        name, jobs = f"pack-{settings['pack']}", packs[settings["pack"]]
    configs = [job.config(base, folder) for job in jobs]
    longest = longest_round(configs[0].local_steps)
    keeper = StateKeeper(StateFile(folder, name), checkpoint_seconds, checkpoint_steps, longest)
    evaluations = _Evaluations(keeper, is_pack=packs is not None)
    for config in configs:
        # Checked settings have names without a way out of the folder.
        make_room(folder, str(config.name))
    state = keeper.last()
    with working_in(directory):
        if len(configs) == 1:
            config = configs[0]
            if state is not None:
                config = with_past(config, load_config(config, changes=state["settings"]), state["next_step"])
            results = [Trainer(config, callbacks=[_Reporting(config, evaluations)]).fit(state)]
        else:
            callbacks = [[_Reporting(config, evaluations)] for config in configs]
            results = fit_together(configs, callbacks, evaluations.report_at, state)
    keeper.forget()
    errors = {job.name: result.error for job, result in zip(jobs, results, strict=True) if result.error is not None}
    if packs is not None:
        evaluations.conclude(
            {name: error_line("".join(format_exception_only(error))) for name, error in errors.items()}
        )
        return
    evaluations.report()
    if errors:
        raise errors[name]


def _job_of(settings: Mapping[str, Any], base: Config) -> Job:
    """Return the run of a trial that is a point by itself."""
    point: Point = dict(settings)
    # Tune's repeater numbers the trials of one point; a grid has its seeds in the point.
    seed = base.seed + int(point.pop(TRIAL_INDEX, 0))
    return Job(tune.get_context().get_trial_id(), point, point.pop("seed", seed))


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
