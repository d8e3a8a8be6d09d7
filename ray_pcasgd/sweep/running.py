"""Sweeps with Ray Tune: many runs of one configuration, some settings of which vary."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune

from ray_pcasgd.base.errors import RunError
from ray_pcasgd.base.foreign_files import read_text
from ray_pcasgd.base.text import one_line
from ray_pcasgd.base.yaml_text import write_yaml
from ray_pcasgd.config import Config
from ray_pcasgd.engines.failures import described
from ray_pcasgd.engines.ray.cluster import RayCluster
from ray_pcasgd.engines.ray.placement import bundles_of
from ray_pcasgd.engines.ray.serialization import compact
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.runs.plan.defaults import with_defaults
from ray_pcasgd.runs.plan.plan import joined, make_plan
from ray_pcasgd.runs.plan.replaying import as_replay
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.runs.settings.trust import is_own, note_files
from ray_pcasgd.runs.storage.names import require_free, unreachable
from ray_pcasgd.sweep.devices import check_device, device_of, require_gpus
from ray_pcasgd.sweep.folder import BASE_FILE, DIRECTORY_FILE, OWN_FILES, SWEEP_FILE, SweepFolder
from ray_pcasgd.sweep.guarded import TunesStorage, UnknownFileError, guarded, pickles_in
from ray_pcasgd.sweep.nodes import Mark, check_nodes
from ray_pcasgd.sweep.packing import check_batched, packs_of, read_packs, write_packs
from ray_pcasgd.sweep.progress import is_news
from ray_pcasgd.sweep.results import SweepResult, conclude
from ray_pcasgd.sweep.settings import SweepConfig, load_sweep, nested
from ray_pcasgd.sweep.trials import run_trial
from ray_pcasgd.sweep.tuner import TunesOwn, make_tuner
from ray_pcasgd.sweep.written import Written

_TUNES_LOGGERS = tuple(
    f"ray.tune.{name}" for name in ("execution.tune_controller", "tune", "search.optuna.optuna_search")
)


def sweep(
    source: str | Path | Mapping[str, Any] | SweepConfig,
    schedule: str | None = None,
    *,
    callbacks: Sequence[tune.Callback] | tune.Callback = (),
    search_alg: Any = None,
    scheduler: Any = None,
) -> SweepResult:
    """Run a sweep, and return its results; the folder has all of them too.

    Args:
        source: the sweep's settings, or the path of a YAML file of them.
        schedule: the path of a recorded schedule, under which all trials train.
        callbacks: callbacks of Ray Tune's, such as its loggers for W&B or MLflow.
        search_alg: a searcher of Ray Tune's in place of ``search``, of which ``num_points`` counts; without a space of
            its own, which is the sweep's.
        scheduler: a trial scheduler of Ray Tune's in place of ``scheduler``, without a metric of its own, which is the
            sweep's; its ``time_attr`` is ``step``.

    Raises:
        SettingsError: some settings cannot be run; nothing was started.

    """
    own = TunesOwn((callbacks,) if isinstance(callbacks, tune.Callback) else tuple(callbacks), search_alg, scheduler)
    config = load_sweep(source)
    own.check_with(config)
    base = as_replay(config.base(schedule))
    config = config.in_whole_numbers(base)
    storage_path = config.stored(base)
    config.judged_by(base)
    config.check_with(base)
    if own.judges:
        if config.batched == "always":
            raise SettingsError("batched = 'always': allowed with search_alg or scheduler are auto and never")
        config = config.model_copy(update={"batched": "never"})
    check_batched(config, base)
    cluster = _cluster(config, base)
    _check_points(config, base, runs_here=cluster.is_started_here)
    require_free(storage_path, config.name, "sweep's folder")
    with joined(cluster):
        require_gpus(base, ray.cluster_resources())  # type: ignore[no-untyped-call]
        folder = SweepFolder.create(storage_path, config.name, _settings_files(config, base))
        note_files(folder.path, OWN_FILES, folder.location)
        try:
            return _execute(config, base, folder, own)
        except SettingsError:
            # Refused by Tune before any trial: the name stays free.
            folder.discard()
            raise
        finally:
            folder.close()


def _settings_files(config: SweepConfig, base: Config) -> dict[str, str]:
    return {
        SWEEP_FILE: write_yaml(config.model_dump(mode="json")),
        DIRECTORY_FILE: str(Path.cwd()),
        BASE_FILE: write_yaml(base.model_dump(mode="json")),
    }


def _cluster(config: SweepConfig, base: Config) -> RayCluster:
    return RayCluster(base.engine if isinstance(base.engine, RaySettings) else RaySettings(dashboard=config.dashboard))


def resume(path: str | Path, trust: bool = False) -> SweepResult:
    """Go on with a sweep that was interrupted: complete trials stay, running ones go on from their last states.

    What Tune keeps of a sweep runs code as it is read: so it is read where this user's sweep has written it, in this
    very place, or with ``trust``.

    Args:
        path: the sweep's folder, or its location on remote storage.
        trust: whether it may run code, though this user is not known to have started it there.

    Raises:
        SettingsError: the folder is not that of a sweep, or is not known as this user's.

    """
    folder = SweepFolder.reopen(str(path))
    try:
        if not tune.Tuner.can_restore(folder.location):
            raise SettingsError(f"{folder.location}: is not the folder of a sweep that was started")
        _require_own(folder, trust)
        config = load_sweep(folder.path / SWEEP_FILE)
        if not read_text(folder.path / BASE_FILE).strip():
            raise SettingsError(f"{folder.location}: its {BASE_FILE} is empty; without it, other settings would train")
        base = load_config(folder.path / BASE_FILE)
        with joined(_cluster(config, base)):
            require_gpus(base, ray.cluster_resources())  # type: ignore[no-untyped-call]
            return _execute(config, base, folder)
    finally:
        folder.close()


def _require_own(folder: SweepFolder, trust: bool) -> None:
    """Raise ``SettingsError`` where a sweep's files are not this user's; with ``trust``, they are from now on."""
    if not trust and not is_own(folder.path, OWN_FILES, folder.location):
        raise SettingsError(
            f"{folder.location}: a sweep's files may run code, and this sweep is not known as started by this user "
            "here; allowed with --trust (trust=True)"
        )
    written = Written(folder.location)
    try:
        for file, content in pickles_in(TunesStorage(*folder.place), folder.name):
            if trust:
                written.note(file, content)
            elif not written.knows(file, content):
                raise SettingsError(
                    f"{folder.location}: {file} is not as this user's sweep has left it, and may run code; allowed "
                    "with --trust (trust=True)"
                )
    except OSError as error:
        raise unreachable(folder.storage_path, error) from None
    if trust:
        note_files(folder.path, OWN_FILES, folder.location)


def _check_points(config: SweepConfig, base: Config, runs_here: bool) -> None:
    """Raise ``SettingsError`` where a combination of listed values cannot be run; the limits stand for ranges.

    Where trials may run on other machines, it is not this one that needs their GPUs.
    """
    for number, point in enumerate(config.points()):
        try:
            settings = load_config(base, changes=nested(point))
            check_device(settings, base)
            make_plan(settings, runs_here) if number == 0 else with_defaults(settings, runs_here)
        except SettingsError as error:
            told = ", ".join(f"{key} = {value}" for key, value in point.items())
            raise SettingsError(f"at the point {told}: {error}") from None


def _execute(config: SweepConfig, base: Config, folder: SweepFolder, own: TunesOwn | None = None) -> SweepResult:
    """Run the trials, those that are left of an interrupted sweep where ``own`` is not given."""
    mark = None if folder.local_path is None else Mark.put(folder.local_path)
    try:
        if mark is not None:
            check_nodes(mark, config.stored(base))
        return _fit(config, base, folder, own, mark)
    finally:
        if mark is not None:
            mark.remove()


def _fit(
    config: SweepConfig, base: Config, folder: SweepFolder, own: TunesOwn | None, mark: Mark | None
) -> SweepResult:
    logging.getLogger("ray.tune").setLevel(logging.WARNING)
    for name in _TUNES_LOGGERS:
        logging.getLogger(name).addFilter(is_news)
    if own is None:
        packs = read_packs(folder.path)
    else:
        packs = packs_of(config, base, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
        write_packs(folder.path, packs)
        folder.publish()
    shared = {
        "base": compact(base),
        "folder": folder.runs,
        "checkpoint_seconds": config.checkpoint_seconds,
        "directory": read_text(folder.path / DIRECTORY_FILE),
        "checkpoint_steps": config.exchange_steps(base),
        "packs": packs,
        "mark": mark,
    }
    function = tune.with_parameters(run_trial, **shared)
    trainable = tune.with_resources(function, resources_of(base))
    storage = guarded(TunesStorage(*folder.place), folder.name, Written(folder.location))
    if own is None:
        tuner = _restored(folder, storage, trainable)
    else:
        tuner = make_tuner(config, base, trainable, storage, folder.name, packs, own)
    with warnings.catch_warnings():
        # Of Tune's repeater, where all seeds of a point failed.
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        try:
            grid = tuner.fit()
        except UnknownFileError as error:  # changed since this sweep began
            raise RunError(f"{folder.location}: {error}") from None
        except ValueError as error:
            if own is None or not own.judges:
                raise
            raise SettingsError(f"search_alg or scheduler: {one_line(error, 400)}") from error
    return conclude(config, base, folder, grid, packs)


def _restored(folder: SweepFolder, storage: TunesStorage, trainable: Any) -> tune.Tuner:
    path = f"{storage.path.rstrip('/')}/{folder.name}"
    try:
        return tune.Tuner.restore(path, trainable, resume_unfinished=True, storage_filesystem=storage.files)
    except Exception as error:  # whatever a damaged pickle raises
        raise SettingsError(
            f"{folder.location}: what Ray Tune has kept of this sweep cannot be read ({described(error)})"
        ) from error


def resources_of(base: Config) -> Any:
    """Return what a trial asks for at once: a core, or a bundle for each of its agents behind its own."""
    engine = base.engine
    if not isinstance(engine, RaySettings):
        return {"cpu": 1, "gpu": 1 if device_of(base) != "cpu" else 0}
    servers = getattr(base.algorithm, "shards", 0)
    bundles = bundles_of(engine, base.num_agents, servers, ray.cluster_resources())  # type: ignore[no-untyped-call]
    labels = engine.label_selector
    selectors = {"bundle_label_selector": [{}, *[labels] * len(bundles)]} if labels else {}
    return tune.PlacementGroupFactory([{"CPU": 0.0}, *bundles], strategy=engine.placement_strategy, **selectors)
