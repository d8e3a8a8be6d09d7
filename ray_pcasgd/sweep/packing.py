"""Packs: points of a grid that differ only in numbers, run together in one process, as one of Tune's trials."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ray_pcasgd.base.foreign_files import read_text
from ray_pcasgd.base.text import one_line
from ray_pcasgd.config import Config
from ray_pcasgd.rules.base import Rule
from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.plan.variants import is_faster_together, shared_settings, why_alone
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.sweep.folder import PACKS_FILE
from ray_pcasgd.sweep.settings import GridSearch, Point, RunAll, SweepConfig, nested

_FEWEST = 4
"""Fewest points in a group, and in a pack if the group has enough, for which stacking is worth its overhead."""
_MOST = 32
"""Points of a pack: more of them gain little, and are lost together where a pack is interrupted."""
_PACKS_PER_CORE = 3
"""So that cores that are slower, or get the smaller packs, are not waited for long."""
_PACK_BYTES = 2**30
"""Of what the agents of a pack remember."""


class Job(NamedTuple):
    """One point with one seed."""

    name: str
    """Of its run folder."""
    point: Point
    seed: int

    def config(self, base: Config, folder: str) -> Config:
        """Return the settings of its run."""
        return load_config(
            base, changes=nested(self.point) | {"seed": self.seed, "storage_path": folder, "name": self.name}
        )


Pack = tuple[Job, ...]

_KEPT = ("step", "seconds", "wall_seconds", "consensus_distance", "train_loss", "staleness_mean", "time_total_s")


def kept_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of an evaluation's metrics that a sweep's table has."""
    return {name: value for name, value in metrics.items() if name in _KEPT or name.startswith("test_")}


def check_batched(config: SweepConfig, base: Config) -> None:
    """Raise ``SettingsError`` where packs are asked for, and cannot be made."""
    if config.batched == "always" and (reason := _why_not(config, base)):
        raise SettingsError(f"batched = 'always': {reason}")


def packs_of(config: SweepConfig, base: Config, cores: int) -> list[Pack] | None:
    """Return the packs of a sweep's grid; ``None`` where trials run one by one."""
    if config.batched == "never" or _why_not(config, base):
        return None
    seeds = range(base.seed, base.seed + config.seeds)
    jobs = [
        Job(f"{number:04d}-seed{seed}", point, seed) for number, point in enumerate(config.points()) for seed in seeds
    ]
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        settings = job.config(base, base.storage_path)
        alone = why_alone(settings)
        key = job.name if alone else json.dumps(shared_settings(settings), sort_keys=True)
        groups.setdefault(key, []).append(job)
    if config.batched == "auto" and max(map(len, groups.values())) < _FEWEST:
        return None
    share = math.ceil(len(jobs) / (cores * _PACKS_PER_CORE))
    packs: list[Pack] = []
    for group in groups.values():
        plan = make_plan(group[0].config(base, base.storage_path), runs_here=False)
        fast = config.batched == "always" or is_faster_together(plan.config, plan)
        fitting = max(1, _PACK_BYTES // _bytes_of(plan))
        most = min(_MOST, fitting, max(_FEWEST, share)) if fast else 1
        number = math.ceil(len(group) / most)
        packs.extend(tuple(group[place::number]) for place in range(number))
    return packs


def _why_not(config: SweepConfig, base: Config) -> str | None:
    if not isinstance(config.search, GridSearch):
        return f"search.name = {config.search.name!r}: allowed with it is 'grid'"
    if not isinstance(config.scheduler, RunAll):
        return f"scheduler.name = {config.scheduler.name!r}: allowed with it is 'fifo'"
    first = load_config(base, changes=nested(next(config.points())))
    reason = why_alone(first)
    return None if "algorithm" in config.space or "algorithm.name" in config.space else reason


def _bytes_of(plan: Plan) -> int:
    """Return about how much the agents of one run remember: their recent path, and versions that are under way."""
    parameters = sum(p.numel() for p in plan.config.task.build_model(plan.data, plan.config.seed).parameters())
    path = 8 * plan.config.algorithm.age_max if isinstance(plan.config.algorithm, Rule) else 0
    return int(plan.config.num_agents * parameters * (path + 4 * 32))


def write_packs(path: Path, packs: Sequence[Pack] | None) -> None:
    """Note the packs in a sweep's folder: how they are made depends on the machine."""
    if packs is not None:
        (path / PACKS_FILE).write_text(json.dumps(packs, indent=1) + "\n", encoding="utf-8")


def read_packs(path: Path) -> list[Pack] | None:
    """Return what ``write_packs`` noted; ``None`` where trials run one by one.

    Raises:
        SettingsError: it cannot be read.

    """
    file = path / PACKS_FILE
    if not file.exists():
        return None
    try:
        return [tuple(_job(*job) for job in pack) for pack in json.loads(read_text(file))]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise SettingsError(f"{file}: cannot be read ({one_line(error, 200)})") from None


def _job(name: str, point: Point, seed: int) -> Job:
    if not (isinstance(name, str) and isinstance(point, dict) and isinstance(seed, int)):
        raise ValueError("it holds something other than names, points and seeds")
    return Job(name, point, seed)
