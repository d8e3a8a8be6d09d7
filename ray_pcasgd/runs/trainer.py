"""Where a run starts: from settings to its result."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ray_pcasgd.agents.learner import NonFiniteLossError
from ray_pcasgd.agents.torch_optimizer import TorchOptimizer
from ray_pcasgd.base.curves import Constant
from ray_pcasgd.base.imports import unreadable
from ray_pcasgd.base.state import State, StateFormatError
from ray_pcasgd.config import Config
from ray_pcasgd.engines.base import Pause
from ray_pcasgd.engines.failures import StepError, described
from ray_pcasgd.engines.local.engine import LocalSettings
from ray_pcasgd.engines.local.variants import variant_reports
from ray_pcasgd.runs.callbacks import Callback, made, split
from ray_pcasgd.runs.evaluation import changes_of
from ray_pcasgd.runs.event_log import EventLog
from ray_pcasgd.runs.plan.plan import Plan, cluster_of, joined, make_plan
from ray_pcasgd.runs.plan.variants import make_variants
from ray_pcasgd.runs.record import CallbackError
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.run import Run
from ray_pcasgd.runs.settings.loading import SettingsError, load_config, merge, read_yaml
from ray_pcasgd.runs.settings.ray_train import from_ray_train
from ray_pcasgd.runs.settings.trust import load_run_settings
from ray_pcasgd.runs.storage.folder import RunFolder
from ray_pcasgd.runs.storage.state_files import require_readable

_ESSENTIAL = ("seed", "num_agents", "num_steps", "algorithm", "task", "engine")
"""Settings that every run's file must have."""


class Trainer:
    """Trains one model on many agents that get each other's weights late.

    >>> result = Trainer(engine="local", num_steps=20, storage_path="/tmp/ray_pcasgd_doctest").fit()
    >>> 0 <= result.metrics["test_accuracy"] <= 1
    True

    Args:
        config: settings: a YAML file, a mapping, or ``Config``.
        scaling_config: Ray's ``ScalingConfig``: ``num_workers`` agents, with their resources.
        run_config: Ray's ``RunConfig``: name, storage path, its ``CheckpointConfig`` and ``FailureConfig``, and that
            of ``ray.tune`` also loggers (``ray.tune.logger.LoggerCallback``) as ``callbacks``.
        callbacks: objects whose hooks the run calls while it is running, one after another; or import paths, as in
            the setting ``callbacks``.
        settings: parts of the settings by name, in place of those of ``config``, for example
            ``algorithm={"name": "pc-asgd", "theta": 0.3}``.

    Raises:
        SettingsError: the settings cannot be run; nothing was started.

    """

    def __init__(
        self,
        config: str | Path | Mapping[str, Any] | Config | None = None,
        *,
        scaling_config: Any = None,
        run_config: Any = None,
        callbacks: Sequence[Callback | str] = (),
        **settings: Any,
    ) -> None:
        config = load_config(config, changes=from_ray_train(scaling_config, run_config))
        paths, self._callbacks = split(callbacks)
        if paths:
            settings["callbacks"] = [*config.callbacks, *paths]
        self.config = load_config(config, changes=settings)
        if given := getattr(run_config, "callbacks", None):
            from ray_pcasgd.runs.trackers.ray_loggers import ray_loggers

            self._callbacks += ray_loggers(given)

    def fit(self, state: State | None = None) -> Result:
        """Run to the end, and return the result; a run that fails returns its error, with its files intact.

        Whatever the user's own code raises during the run, in the model, the loss, a metric or the data, is such an
        error, which names agent, step, file and line; only what a callback raises is raised again. Where a
        ``state`` is given (``Callback.on_pause``), the run goes on from there.

        Raises:
            SettingsError: the settings cannot be run; nothing was started.
            RunError: Ray does not start, or does not answer; the run has no folder yet.
            RunInterrupted: a ``KeyboardInterrupt``: Ctrl-C was pressed. All files are written, ``resume`` goes on with
                the run, and the exception's ``result`` is what this would have returned.

        """
        callbacks = (*self._callbacks, *made(self.config))
        cluster_of(self.config.engine).prepare()
        plan = make_plan(self.config)
        RunFolder.require_free(plan.config)
        with joined(plan.cluster):
            return _made(plan, _new_folder(plan), _exporting(plan, callbacks)).execute(state)


def resume(
    run: str | Path, callbacks: Sequence[Callback] = (), *, task: Mapping[str, Any] | None = None, trust: bool = False
) -> Result:
    """Go on with a run that was interrupted, from the newest of its states that is intact, in its own folder.

    A run that has no intact state begins anew, and says so.

    Args:
        run: the run's folder, or its location on remote storage.
        callbacks: hooks that the run calls while it is running, one after another.
        task: parts of the task's settings in place of those of the run: what was given as objects of a script, which
            no file can hold, such as your own data, model or loss.
        trust: whether the run's settings may name code, or a cluster, though you have not run them before.

    Raises:
        SettingsError: there is no such run, it is complete, another driver has it, its settings cannot be run any
            more, or another version wrote its states; nothing was changed.
        RunInterrupted: as ``Trainer.fit``.

    """
    _, callbacks = split(callbacks)
    folder = RunFolder.reopen(str(run))
    try:
        require_readable(folder.states)
        config = _settings_of(folder, str(run), task, trust)
        cluster_of(config.engine).prepare()
        plan = make_plan(config)
        with joined(plan.cluster):
            execution = _made(plan, folder, _exporting(plan, (*callbacks, *made(plan.config))))
            return execution.execute(resumes=True)
    except StateFormatError as error:
        raise SettingsError(f"{run}: {error}") from None
    finally:
        folder.close()


def _settings_of(folder: RunFolder, run: str, task: Mapping[str, Any] | None, trust: bool) -> Config:
    """Return a run's settings, with a part of its task from elsewhere."""
    tree = read_yaml(folder.path / "config.yaml")
    # A run writes all of its settings; what is missing would be a default, and another run.
    if missing := [name for name in _ESSENTIAL if name not in tree]:
        raise SettingsError(f"{run}: config.yaml is not whole; it has no {', no '.join(missing)}")
    changes = changes_of(task)
    if objects := unreadable(merge(tree, changes)):
        is_task = all(place.startswith("task") for place in objects)
        with_task = "go on from Python, with resume(run, task={...}) and the same objects"
        of_module = "allowed are classes of rules, laws and others that a module has, from where it can be imported"
        raise SettingsError(
            f"{run}: {' and '.join(objects)} {'was' if len(objects) == 1 else 'were'} given as objects of a script, "
            f"which no file can hold; {with_task if is_task else of_module}"
        )
    return load_run_settings(folder.path, changes=changes, trust=trust)


def _new_folder(plan: Plan) -> RunFolder:
    """Return the folder of a new run, with its settings."""
    eta = plan.acting.step_size
    told = f"{eta.value:g}, as usual with {_named(plan.config)}" if isinstance(eta, Constant) else ""
    return RunFolder.create(plan.config, told)


def _named(config: Config) -> str:
    """Return what the optimizer is called by those who know its step sizes."""
    if not isinstance(config.optimizer, TorchOptimizer):
        return config.optimizer.name
    made_by: Any = config.optimizer.optimizer
    return str(getattr(made_by, "__name__", made_by)).rpartition(":")[2]


def _made(plan: Plan, folder: RunFolder, callbacks: Sequence[Callback]) -> Run:
    """Return a run that is ready to start; where it cannot be made, a new folder is removed again."""
    try:
        return Run(plan, folder, callbacks)
    except Exception as error:
        if not folder.is_reopened:
            folder.discard()
        raise SettingsError(f"the averaged model cannot be built: {described(error)}") from error


def _exporting(plan: Plan, callbacks: Sequence[Callback]) -> tuple[Callback, ...]:
    """Return callbacks with those that export the metrics of a run on a cluster, and log its events if asked to."""
    engine = plan.config.engine
    if isinstance(engine, LocalSettings):
        return tuple(callbacks)
    from ray_pcasgd.runs.prometheus import Exporter

    logs = [EventLog()] if engine.log_format == "json" else []
    return (*callbacks, Exporter(), *logs)


def fit_together(
    configs: Sequence[Config],
    callbacks: Sequence[Sequence[Callback]] | None = None,
    pausing: Callable[[Pause, Callable[[], State]], None] = lambda pause, state: None,
    state: State | None = None,
) -> list[Result]:
    """Run variants of one configuration that differ only in numbers (``shared_settings``), all at once.

    Each has its own run folder and callbacks; one whose loss is not finite ends there, and the others go on.
    ``pausing`` is called where all of them can be left, with what returns the state from which they go on.

    Raises:
        SettingsError: settings cannot be run, or not together; nothing was started.

    """
    plans = make_variants(configs)
    settings = plans[0].config.engine
    assert isinstance(settings, LocalSettings)
    callbacks = callbacks or [() for _ in plans]
    runs: list[Run] = []
    errors: dict[int, Exception] = {}
    outside: BaseException | None = None
    try:
        for plan, own in zip(plans, callbacks, strict=True):
            runs.append(_made(plan, _new_folder(plan), (*own, *made(plan.config))))
        runs[0].start()
        for run in runs[1:]:
            run.start(runs[0].initial)
        if state is not None:
            for run, own_state in zip(runs, state["runs"], strict=True):
                run.restore(own_state)
            errors = {variant: NonFiniteLossError(*parts) for variant, parts in state["errors"].items()}
        specs = [plan.specs for plan in plans]
        engine_state = None if state is None else state["engine"]
        for said in variant_reports(settings, plans[0].schedule, specs, plans[0].data, engine_state):
            if isinstance(said, Pause):
                pausing(said, partial(_state_of_all, said, runs, errors))
                continue
            variant, report = said
            if isinstance(report, Exception):
                errors[variant] = report
            else:
                runs[variant].take(report)
    except SettingsError:
        for run in runs:
            run.folder.discard()
        raise
    except StepError as error:
        # It ends all of them, since their steps are one.
        errors = dict.fromkeys(range(len(runs)), error) | errors
    except CallbackError as raised:
        outside = raised.__cause__
    except BaseException as left:
        outside = left
    return _all_concluded(runs, errors, outside)


def _all_concluded(runs: Sequence[Run], errors: Mapping[int, Exception], outside: BaseException | None) -> list[Result]:
    """End runs that ran together, and return their results; or raise what others have raised on the way."""
    results = []
    for variant, run in enumerate(runs):
        run.finish()
        results.append(run.conclude(errors.get(variant), outside))
        run.folder.close()
    raised_at_end = (run.raised_at_end for run in runs if run.raised_at_end is not None)
    if (raised_by_others := outside or next(raised_at_end, None)) is not None:
        raise raised_by_others
    return results


def _state_of_all(pause: Pause, runs: Sequence[Run], errors: Mapping[int, Exception]) -> State:
    return {
        "engine": pause.state(),
        "runs": [run.state() for run in runs],
        "errors": {variant: list(error.args) for variant, error in errors.items()},
    }
