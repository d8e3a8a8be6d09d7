"""From a sweep's settings to Tune's own objects: search space, searcher, scheduler, limits."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import optuna
from ray import tune
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining
from ray.tune.search import BasicVariantGenerator, Repeater, Searcher
from ray.tune.search.optuna import OptunaSearch as TuneOptuna

from ray_pcasgd.config import Config
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.runs.settings.loading import SettingsError
from ray_pcasgd.sweep.budget import SampleBudget
from ray_pcasgd.sweep.guarded import TunesStorage
from ray_pcasgd.sweep.packing import Pack
from ray_pcasgd.sweep.progress import SweepProgress
from ray_pcasgd.sweep.settings import (
    ASHA,
    GridSearch,
    OptunaSearch,
    PopulationBased,
    RandomSearch,
    Range,
    RunAll,
    SweepConfig,
)

_KEPT_OF_POPULATION = 4
"""States of a trial that are kept, since others may be about to go on from them."""


class TunesOwn(NamedTuple):
    """Objects of Tune's that a caller brings in place of a sweep's own."""

    callbacks: Sequence[tune.Callback] = ()
    search_alg: Any = None
    scheduler: Any = None

    def check_with(self, config: SweepConfig) -> None:
        """Raise ``SettingsError`` where these are no such objects, or a sweep's settings say the same otherwise."""
        for one in self.callbacks:
            if not isinstance(one, tune.Callback):
                raise SettingsError(f"callbacks: {one!r:.80} is none; allowed are objects of ray.tune.Callback")
        if self.search_alg is not None and not isinstance(config.search, RandomSearch):
            raise SettingsError(
                f"search.name = {config.search.name!r}: allowed with search_alg is 'random', whose num_points says how "
                "many points are asked for"
            )
        if self.scheduler is not None and not isinstance(config.scheduler, RunAll):
            raise SettingsError(f"scheduler.name = {config.scheduler.name!r}: allowed with scheduler is 'fifo'")

    @property
    def judges(self) -> bool:
        """Whether trials are judged while they run."""
        return self.search_alg is not None or self.scheduler is not None


def make_tuner(
    config: SweepConfig,
    base: Config,
    trainable: Callable[..., Any],
    storage: TunesStorage,
    name: str,
    packs: Sequence[Pack] | None,
    own: TunesOwn,
) -> tune.Tuner:
    """Return what runs the trials of the sweep ``name`` in its folder on that storage."""
    metric, mode = config.judged_by(base)
    space, number, searcher = _search(config, base, packs)
    if own.search_alg is not None:
        is_repeated = config.seeds > 1 and isinstance(own.search_alg, Searcher)
        searcher = Repeater(own.search_alg, repeat=config.seeds) if is_repeated else own.search_alg
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            # The points of a pack are judged one by one, when all is done.
            metric=metric if packs is None else None,
            mode=mode if packs is None else None,
            num_samples=number,
            search_alg=searcher,
            scheduler=own.scheduler or _scheduler(config, base),
            max_concurrent_trials=config.max_concurrent,
            time_budget_s=config.seconds,
            reuse_actors=not isinstance(base.engine, RaySettings),
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=storage.path,
            storage_filesystem=storage.files,
            verbose=int(config.tables),
            callbacks=[*own.callbacks, *([] if config.tables else [_progress(config, base, packs)])],
            stop=None if config.samples is None else SampleBudget(config.samples, base),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=_KEPT_OF_POPULATION),
        ),
    )


def _progress(config: SweepConfig, base: Config, packs: Sequence[Pack] | None) -> SweepProgress:
    metric, mode = config.judged_by(base)
    total = config.num_trials
    return SweepProgress(metric, mode, total, packs, first_seed=base.seed)


def _search(config: SweepConfig, base: Config, packs: Sequence[Pack] | None) -> tuple[dict[str, Any], int, Any]:
    """Return the space, how many samples are drawn of it, and by what."""
    if packs is not None:
        return {"pack": tune.grid_search(list(range(len(packs))))}, 1, None
    space = {key: _domain(values, config) for key, values in config.space.items()}
    if isinstance(config.search, GridSearch):
        return space | {"seed": tune.grid_search([base.seed + k for k in range(config.seeds)])}, 1, None
    if isinstance(config.scheduler, PopulationBased):
        return space, config.search.num_points, BasicVariantGenerator(random_state=base.seed)
    metric, mode = config.judged_by(base)
    samplers = optuna.samplers
    is_guided = isinstance(config.search, OptunaSearch)
    sampler = samplers.TPESampler(seed=base.seed) if is_guided else samplers.RandomSampler(seed=base.seed)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    searcher = Repeater(TuneOptuna(metric=metric, mode=mode, sampler=sampler), repeat=config.seeds)
    return space, config.search.num_points * config.seeds, searcher


def _domain(values: tuple[Any, ...] | Range, config: SweepConfig) -> Any:
    if isinstance(values, tuple):
        listed = list(values)
        return tune.grid_search(listed) if isinstance(config.search, GridSearch) else tune.choice(listed)
    if values.integer:
        low, high = int(values.low), int(values.high) + 1
        return tune.lograndint(low, high) if values.log else tune.randint(low, high)
    return tune.loguniform(values.low, values.high) if values.log else tune.uniform(values.low, values.high)


def _scheduler(config: SweepConfig, base: Config) -> Any:
    settings = config.scheduler
    if isinstance(settings, ASHA):
        return ASHAScheduler(
            time_attr="step",
            max_t=base.num_steps,
            grace_period=settings.grace_steps or min(base.evaluate_every, base.num_steps),
            reduction_factor=settings.reduction,
        )
    if isinstance(settings, PopulationBased):
        # Tune wants lists, or objects that draw from a range; it does not change grids.
        mutations = {
            key: list(values) if isinstance(values, tuple) else _domain(values, config)
            for key, values in config.space.items()
        }
        return PopulationBasedTraining(
            time_attr="step",
            perturbation_interval=settings.interval_steps or base.evaluate_every,
            hyperparam_mutations=mutations,
            quantile_fraction=settings.quantile,
            resample_probability=settings.resample,
            custom_explore_fn=partial(within_ranges, config.space),
            # All trials wait for each exchange, so that it does not depend on who is fast.
            synch=True,
        )
    return None  # Tune's own: first in, first out


def within_ranges(space: Mapping[str, tuple[Any, ...] | Range], point: dict[str, Any]) -> dict[str, Any]:
    """Return a point whose numbers were changed, brought back into the ranges that they are from."""
    limits = {key: values for key, values in space.items() if isinstance(values, Range)}
    return point | {key: min(max(point[key], limit.low), limit.high) for key, limit in limits.items()}
