"""Sweeps with Ray Tune: many runs of one configuration, some settings of which vary."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import ray
import yaml
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Repeater
from ray.tune.search.optuna import OptunaSearch as TuneOptuna
from ray.tune.search.repeater import TRIAL_INDEX

from ray_pcasgd.config import Config
from ray_pcasgd.engines.ray.placement import bundle_of, connect
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.loading import SettingsError, load_config
from ray_pcasgd.plan import make_plan, resolve
from ray_pcasgd.run import Watcher
from ray_pcasgd.run_folder import free_name, is_remote
from ray_pcasgd.sweep_budget import SampleBudget
from ray_pcasgd.sweep_packs import Pack, packs_of, read_packs, run_pack, write_packs
from ray_pcasgd.sweep_progress import SweepProgress
from ray_pcasgd.sweep_results import RUNS_FOLDER, SweepResult, conclude
from ray_pcasgd.sweep_settings import ASHA, GridSearch, OptunaSearch, Point, Range, SweepConfig, load_sweep, nested
from ray_pcasgd.trainer import Trainer

SWEEP_FILE = "sweep.yaml"
BASE_FILE = "base.yaml"


class _Reporting(Watcher):
    """Reports each evaluation of the averaged model to Tune."""

    def evaluated(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            if row["agent"] is pd.NA:
                tune.report({name: float(value) for name, value in row.items() if name != "agent"})


def run_trial(point: Point, base: Config, folder: str) -> None:
    """Run one trial, in Tune's process for it; a trial that fails raises what ended its run.

    Its run folder lies in ``folder`` under the trial's number. One that is there was interrupted.
    """
    point = dict(point)
    # Tune's repeater numbers the trials of one point; a grid has its seeds in the point.
    repeat = point.pop(TRIAL_INDEX, None)
    if repeat is not None:
        point["seed"] = base.seed + int(repeat)
    name = tune.get_context().get_trial_id()
    shutil.rmtree(Path(folder) / name, ignore_errors=True)
    config = load_config(base, changes=nested(point) | {"storage_path": folder, "name": name})
    result = Trainer(config, watcher=_Reporting()).fit()
    if result.error is not None:
        raise result.error


def sweep(source: str | Path | Mapping[str, Any] | SweepConfig, schedule: str | None = None) -> SweepResult:
    """Run a sweep, and return what came of it; the folder has all of it too.

    Raises:
        SettingsError: some settings cannot be run; nothing was started.

    """
    config = load_sweep(source)
    base = config.base(schedule)
    if is_remote(config.storage_path):
        raise SettingsError(f"storage_path = {config.storage_path!r}: allowed for a sweep is a folder of this machine")
    storage = Path(config.storage_path).expanduser().resolve()
    name = config.name or free_name("sweep", lambda name: (storage / name).exists())
    path = storage / name
    if path.exists():
        raise SettingsError(f"name = {name!r}: the folder {path} exists; allowed is a name that is not in use")
    config.judged_by(base)
    _check_points(config, base)
    path.mkdir(parents=True)
    (path / SWEEP_FILE).write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    (path / BASE_FILE).write_text(yaml.safe_dump(base.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    return _execute(config, base, path, resume=False)


def resume(path: Path) -> SweepResult:
    """Go on with a sweep that was interrupted: what is complete stays, what was running starts again.

    Raises:
        SettingsError: the folder is none of a sweep.

    """
    path = path.expanduser().resolve()
    if not (path / SWEEP_FILE).is_file() or not tune.Tuner.can_restore(path):
        raise SettingsError(f"{path}: is no folder of a sweep that was started")
    config = load_sweep(path / SWEEP_FILE)
    return _execute(config, load_config(path / BASE_FILE), path, resume=True)


def _check_points(config: SweepConfig, base: Config) -> None:
    """Raise ``SettingsError`` where a combination of listed values cannot be run; the limits stand for ranges."""
    for number, point in enumerate(config.points()):
        try:
            settings = load_config(base, changes=nested(point))
            make_plan(settings) if number == 0 else resolve(settings)
        except SettingsError as error:
            told = ", ".join(f"{key} = {value}" for key, value in point.items())
            raise SettingsError(f"at the point {told}: {error}") from None


def _execute(config: SweepConfig, base: Config, path: Path, resume: bool) -> SweepResult:
    logging.getLogger("ray.tune").setLevel(logging.WARNING)
    started_cluster = connect(base.engine if isinstance(base.engine, RaySettings) else RaySettings())
    try:
        if resume:
            packs = read_packs(path)
        else:
            packs = packs_of(config, base, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
            write_packs(path, packs)
        if packs is None:
            function = tune.with_parameters(run_trial, base=base, folder=str(path / RUNS_FOLDER))
        else:
            function = tune.with_parameters(run_pack, packs=packs, base=base, folder=str(path / RUNS_FOLDER))
        trainable = tune.with_resources(function, _resources(base))
        if resume:
            tuner = tune.Tuner.restore(str(path), trainable=trainable, resume_unfinished=True)
        else:
            tuner = _tuner(config, base, trainable, path, packs)
        return conclude(config, base, path, tuner.fit(), packs)
    finally:
        if started_cluster:
            ray.shutdown()


def _tuner(config: SweepConfig, base: Config, trainable: Any, path: Path, packs: Sequence[Pack] | None) -> tune.Tuner:
    metric, mode = config.judged_by(base)
    space = {key: _domain(values, config) for key, values in config.space.items()}
    searcher: Any = None
    number = 1
    if packs is not None:
        space = {"pack": tune.grid_search(list(range(len(packs))))}
    elif isinstance(config.search, GridSearch):
        space["seed"] = tune.grid_search([base.seed + k for k in range(config.seeds)])
    else:
        number = config.search.num_points * config.seeds
        samplers = optuna.samplers
        is_guided = isinstance(config.search, OptunaSearch)
        sampler = samplers.TPESampler(seed=base.seed) if is_guided else samplers.RandomSampler(seed=base.seed)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        searcher = Repeater(TuneOptuna(metric=metric, mode=mode, sampler=sampler), repeat=config.seeds)
    scheduler: Any = None  # Tune's own: first in, first out
    if isinstance(config.scheduler, ASHA):
        grace = config.scheduler.grace_steps or min(base.evaluate_every, base.num_steps)
        scheduler = ASHAScheduler(
            time_attr="step",
            max_t=base.num_steps,
            grace_period=grace,
            reduction_factor=config.scheduler.reduction,
        )
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            # The points of a pack are judged one by one, when all is done.
            metric=metric if packs is None else None,
            mode=mode if packs is None else None,
            num_samples=number,
            search_alg=searcher,
            scheduler=scheduler,
            max_concurrent_trials=config.max_concurrent,
            time_budget_s=config.seconds,
            reuse_actors=not isinstance(base.engine, RaySettings),
        ),
        run_config=tune.RunConfig(
            name=path.name,
            storage_path=str(path.parent),
            verbose=int(config.tables),
            callbacks=[] if config.tables else [SweepProgress(metric, mode, packs)],
            stop=None if config.samples is None else SampleBudget(config.samples, base),
        ),
    )


def _domain(values: tuple[Any, ...] | Range, config: SweepConfig) -> Any:
    if isinstance(values, tuple):
        listed = list(values)
        return tune.grid_search(listed) if isinstance(config.search, GridSearch) else tune.choice(listed)
    if values.integer:
        low, high = int(values.low), int(values.high) + 1
        return tune.lograndint(low, high) if values.log else tune.randint(low, high)
    return tune.loguniform(values.low, values.high) if values.log else tune.uniform(values.low, values.high)


def _resources(base: Config) -> Any:
    """Return what a trial asks for at once: a core, or a bundle for each of its agents behind its own."""
    engine = base.engine
    if not isinstance(engine, RaySettings):
        return {"cpu": 1, "gpu": 1 if engine.device != "cpu" else 0}
    number = base.num_agents + getattr(base.algorithm, "shards", 0)
    bundle = bundle_of(engine, number, ray.cluster_resources())  # type: ignore[no-untyped-call]
    return tune.PlacementGroupFactory([{"CPU": 0.0}, *[bundle] * number], strategy=engine.placement_strategy)
