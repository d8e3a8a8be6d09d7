"""Runs as trials of a Ray Tune experiment of your own: any search, scheduler, callback and storage that Tune has.

``ray_pcasgd.sweep`` is the short way, with tables and a page. Here Tune's own objects are yours::

    from ray import tune
    from ray_pcasgd.tune import resources, trainable

    settings = {"num_steps": 60, "engine": "local"}
    tuner = tune.Tuner(
        tune.with_resources(trainable(settings), resources(settings)),
        param_space={"algorithm.theta": tune.uniform(0, 1), "seed": tune.grid_search([0, 1])},
        tune_config=tune.TuneConfig(metric="test_accuracy", mode="max"),
        run_config=tune.RunConfig(storage_path="s3://bucket/experiments"),
    )
    best = tuner.fit().get_best_result()
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune

from ray_pcasgd.config import Config
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.sweep.devices import check_device
from ray_pcasgd.sweep.running import resources_of
from ray_pcasgd.sweep.trials import run_trial

__all__ = ["resources", "trainable"]


def trainable(
    settings: str | Path | Mapping[str, Any] | Config | None = None, checkpoint_seconds: float = 60.0
) -> Callable[[dict[str, Any]], None]:
    """Return a function for ``tune.Tuner`` that trains with what all trials share, and a trial's own settings.

    A trial's settings have their dotted names (``algorithm.theta``, ``step_size``, ``seed``). It reports each
    evaluation of the averaged model by its metrics' names (``test_loss``, ``step``, ...), and leaves its run in the
    trial's own folder, which Tune copies to its storage.

    Args:
        settings: those of a run, which all trials share: a mapping, a ``Config`` or the path of a YAML file.
        checkpoint_seconds: how often a trial on the local engine keeps a state, from which it goes on where Tune
            restores it.

    Raises:
        SettingsError: they cannot be run.

    """
    base = load_config(settings)
    check_device(base, base)
    make_plan(base, runs_here=False)
    return partial(_train, base=base, checkpoint_seconds=checkpoint_seconds, directory=str(Path.cwd()))


def resources(settings: str | Path | Mapping[str, Any] | Config | None = None) -> Any:
    """Return what a trial takes, for ``tune.with_resources``: a core, or on the ray engine a bundle for each agent.

    To be called once Ray is there: agents that reserve no CPUs by their settings share those of the cluster.
    """
    return resources_of(load_config(settings))


def _train(point: Mapping[str, Any], base: Config, checkpoint_seconds: float, directory: str) -> None:
    run_trial(point, base, str(tune.get_context().get_trial_dir()), checkpoint_seconds, directory)
