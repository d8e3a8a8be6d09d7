"""Sweeps with Ray Tune: many runs of one configuration, some settings of which vary."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import yaml
from ray import tune

from ray_pcasgd.config import Config
from ray_pcasgd.engines.ray.placement import bundle_of, connect
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.loading import SettingsError, load_config
from ray_pcasgd.plan import make_plan, resolve
from ray_pcasgd.remote_storage import is_remote
from ray_pcasgd.run_files import claimed_folder
from ray_pcasgd.sweep_packs import check_batched, packs_of, read_packs, run_pack, write_packs
from ray_pcasgd.sweep_results import RUNS_FOLDER, SweepResult, conclude
from ray_pcasgd.sweep_settings import SweepConfig, load_sweep, nested
from ray_pcasgd.sweep_trials import run_trial
from ray_pcasgd.sweep_tuner import make_tuner

SWEEP_FILE = "sweep.yaml"
BASE_FILE = "base.yaml"
DIRECTORY_FILE = "started_in"
"""Notes from where paths in the settings are looked up, also when the sweep goes on."""


def sweep(source: str | Path | Mapping[str, Any] | SweepConfig, schedule: str | None = None) -> SweepResult:
    """Run a sweep, and return what came of it; the folder has all of it too.

    Raises:
        SettingsError: some settings cannot be run; nothing was started.

    """
    config = load_sweep(source)
    base = config.base(schedule)
    if is_remote(config.storage_path):
        raise SettingsError(f"storage_path = {config.storage_path!r}: allowed for a sweep is a folder of this machine")
    config.judged_by(base)
    config.check_beside(base)
    check_batched(config, base)
    _check_points(config, base)
    path = claimed_folder(config.storage_path, config.name, "sweep").resolve()
    (path / SWEEP_FILE).write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    (path / DIRECTORY_FILE).write_text(str(Path.cwd()), encoding="utf-8")
    (path / BASE_FILE).write_text(yaml.safe_dump(base.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    return _execute(config, base, path, resume=False)


def resume(path: Path) -> SweepResult:
    """Go on with a sweep that was interrupted: what is complete stays, what was running goes on from its last state.

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
    own = RaySettings(dashboard=config.dashboard)
    started_cluster = connect(base.engine if isinstance(base.engine, RaySettings) else own)
    try:
        if resume:
            packs = read_packs(path)
        else:
            packs = packs_of(config, base, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
            write_packs(path, packs)
        shared = {
            "base": base,
            "folder": str(path / RUNS_FOLDER),
            "checkpoint_seconds": config.checkpoint_seconds,
            "directory": (path / DIRECTORY_FILE).read_text(encoding="utf-8"),
        }
        if packs is None:
            function = tune.with_parameters(run_trial, **shared, checkpoint_steps=config.exchange_steps(base))
        else:
            function = tune.with_parameters(run_pack, **shared, packs=packs)
        trainable = tune.with_resources(function, _resources(base))
        if resume:
            tuner = tune.Tuner.restore(str(path), trainable=trainable, resume_unfinished=True)
        else:
            tuner = make_tuner(config, base, trainable, path, packs)
        return conclude(config, base, path, tuner.fit(), packs)
    finally:
        if started_cluster:
            ray.shutdown()


def _resources(base: Config) -> Any:
    """Return what a trial asks for at once: a core, or a bundle for each of its agents behind its own."""
    engine = base.engine
    if not isinstance(engine, RaySettings):
        return {"cpu": 1, "gpu": 1 if engine.device != "cpu" else 0}
    number = base.num_agents + getattr(base.algorithm, "shards", 0)
    bundle = bundle_of(engine, number, ray.cluster_resources())  # type: ignore[no-untyped-call]
    return tune.PlacementGroupFactory([{"CPU": 0.0}, *[bundle] * number], strategy=engine.placement_strategy)
