"""Several algorithms under the same schedule and seeds."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ray_pcasgd.base.locations import refuse_key
from ray_pcasgd.base.text import one_line
from ray_pcasgd.config import Config
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.plan.defaults import with_defaults
from ray_pcasgd.runs.plan.plan import joined, make_plan
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.settings.hints import for_word, plain
from ray_pcasgd.runs.settings.loading import SettingsError, load_config, merge, parse_assignment
from ray_pcasgd.runs.settings.reference import kinds_in
from ray_pcasgd.runs.storage.names import claimed_folder
from ray_pcasgd.runs.storage.remote import is_remote
from ray_pcasgd.runs.trainer import Trainer


class Method(NamedTuple):
    """One line of a comparison."""

    label: str
    changes: Mapping[str, Any]


UNDELAYED = Method("d-psgd without delay", {"algorithm": {"name": "d-psgd"}, "links": [], "schedule": None})
"""The upper line: what the same agents reach when no message is late."""

METHODS = (
    UNDELAYED,
    *(Method(name, {"algorithm": {"name": name}}) for name in ("d-asgd", "c-asgd", "p-asgd", "pc-asgd", "pc-asgd-pv")),
)
"""The default comparison."""


class Comparison(NamedTuple):
    """The figures of a comparison."""

    path: Path
    runs: pd.DataFrame
    """One row per method and seed: label, seed, path, schedule_hash, error, and the final metrics."""

    def table(self, metric: str) -> pd.DataFrame:
        """Return mean and sample deviation over seeds of the averaged model's and of the agents' mean metric.

        The deviation of a single seed is not a number.
        """
        columns = {
            "averaged": f"test_{metric}",
            "agents": f"agents_mean_test_{metric}",
            "consensus_distance": "consensus_distance",
        }
        groups = self.runs.groupby("label", sort=False)
        return pd.DataFrame(
            {
                f"{name}_{statistic}": getattr(groups[column], statistic)()
                for name, column in columns.items()
                for statistic in ("mean", "std")
            }
        )


def parse_method(text: str) -> Method:
    """Return the method of ``NAME[,key=value...]``, for example ``pc-asgd,theta=0.5``.

    >>> parse_method("pc-asgd,theta=0.5")
    Method(label='pc-asgd,theta=0.5', changes={'algorithm': {'name': 'pc-asgd', 'theta': 0.5}})

    Raises:
        SettingsError: a setting has no value, or is one of the whole run, which all methods of a comparison share.

    """
    name, *assignments = re.split(r",(?![^\[{]*[\]}])", text)  # not at the commas within a list
    changes: dict[str, Any] = {"name": name.strip()}
    for assignment in assignments:
        _require_of_algorithm(assignment)
        changes = merge(changes, parse_assignment(assignment))
    return Method(text, {"algorithm": changes})


def _require_of_algorithm(assignment: str) -> None:
    """Raise ``SettingsError`` for a setting that is the run's, and no algorithm's."""
    key, _, value = assignment.partition("=")
    word = plain(key.strip().partition(".")[0])
    meant = for_word(word).removeprefix("write ").partition(".")[0]
    run = next((name for name in (word, meant) if name in Config.model_fields), "")
    algorithms = kinds_in(Config.model_fields["algorithm"].annotation)
    of_algorithms = {name for kind in algorithms for name in kind.model_fields}
    if run and word not in of_algorithms:
        raise SettingsError(
            f"{one_line(key.strip(), 100)} = {one_line(value, 100)}: is a setting of the run, which all methods of a "
            f"comparison share; allowed behind an algorithm's name are its own settings; give {run} to all by --set "
            f"{run}=..., or compare runs of their own by ray-pcasgd report"
        )


def compare(
    config: Config,
    methods: Sequence[Method] = METHODS,
    num_seeds: int = 3,
    callbacks: Callable[[str], Sequence[Callback]] = lambda label: (),
) -> Comparison:
    """Run every method with every seed, and return the figures; the run folders lie in one folder.

    Args:
        config: settings that all runs share.
        methods: what they differ in, with a label each.
        num_seeds: runs of each method; seeds count up from ``config.seed``.
        callbacks: returns the callbacks of one run, by its label and seed in words.

    Raises:
        SettingsError: some method's settings cannot be run; nothing was started.

    """
    refuse_key(config.storage_path, "storage_path")
    if is_remote(config.storage_path):
        raise SettingsError(
            f"storage_path = {config.storage_path!r}: allowed for a comparison is a folder of this machine"
        )
    configs = {
        (method.label, seed): load_config(load_config(config, changes=method.changes), changes={"seed": seed})
        for method in methods
        for seed in range(config.seed, config.seed + num_seeds)
    }
    for own in configs.values():
        with_defaults(own)  # what settings alone tell, before any data are loaded
    # What cannot be run is refused before the first of them runs: a graph's degrees may go by the seed, too.
    clusters = [make_plan(own).cluster for own in configs.values()]
    with joined(clusters[0]):
        path = claimed_folder(config.storage_path, config.name, "comparison")
        return _run_all(configs, path, callbacks)


def _run_all(
    configs: Mapping[tuple[str, int], Config], path: Path, callbacks: Callable[[str], Sequence[Callback]]
) -> Comparison:
    trainers = {
        (label, seed): Trainer(
            own,
            storage_path=str(path),
            name=f"{_slug(label)}-seed{seed}",
            callbacks=callbacks(f"{label}, seed {seed}"),
        )
        for (label, seed), own in configs.items()
    }
    rows = [_row(label, seed, trainer.fit()) for (label, seed), trainer in trainers.items()]
    comparison = Comparison(path, pd.DataFrame(rows))
    comparison.runs.to_parquet(path / "comparison.parquet", index=False)
    return comparison


def _row(label: str, seed: int, result: Result) -> dict[str, Any]:
    return {
        "label": label,
        "seed": seed,
        "path": result.path,
        "schedule_hash": result.schedule_hash,
        "error": str(result.error) if result.error else None,
        **result.metrics,
    }


def _slug(label: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in label)
