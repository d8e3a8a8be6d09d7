"""Calibration: settings of a planned run whose agents and links are as slow as recorded live runs' were."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ray_pcasgd.agents.local_steps import EqualTime
from ray_pcasgd.base.errors import SettingsError
from ray_pcasgd.base.own_files import write_whole
from ray_pcasgd.base.text import one_line
from ray_pcasgd.base.yaml_text import write_yaml
from ray_pcasgd.config import Config
from ray_pcasgd.rules.base import Rule
from ray_pcasgd.runs.live_record import LiveRecord, live_record
from ray_pcasgd.runs.plan.local_steps import rounds_of
from ray_pcasgd.runs.plan.peers import barrier_of
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.schedule.calibration import (
    Bounds,
    compute_seconds,
    evaluation_seconds,
    fitted,
    message_bounds,
)
from ray_pcasgd.schedule.calibration_bytes import link_times
from ray_pcasgd.schedule.laws import ConstantLaw, LogNormal

Pair = tuple[str, str]
"""Two sites, in order."""
WITHIN: Pair = ("", "")
"""The links within sites, those of all sites together."""


@dataclass(frozen=True)
class Calibration:
    """What was found of live runs, and where it is written."""

    path: Path
    """The settings file; the seconds are in ``table``."""
    compute: Mapping[int, Sequence[float]]
    """Seconds of each agent's mini-batches, by agent."""
    evaluations: Mapping[int, float]
    """Seconds that each agent's evaluations took in all: they are no part of a plan's time."""
    links: Mapping[Pair, LogNormal | ConstantLaw | None]
    """The law of the seconds that messages took, by pair of sites; ``None`` where none was ever late or waited for.
    Where there is a bandwidth, without what their transmission took."""
    bandwidths: Mapping[Pair, float]
    """Bits a second, by pair of sites; of messages that differ in size alone any can be told."""

    @property
    def table(self) -> Path:
        """The CSV file of the seconds, a column for each agent."""
        return self.path.with_suffix(".csv")


def calibrate(
    runs: str | Path | Sequence[str | Path],
    output: str | Path,
    trust: bool = False,
) -> Calibration:
    """Calibrate: write the settings of a planned run whose times are those of recorded live runs.

    The settings are the first live run's, except for three:

    - ``compute``: the seconds that each agent's steps took, in a CSV file beside the settings;
    - ``links``: log-normal delays fitted to the messages' recorded times, one for the links within sites and one for
      each pair of sites; with several runs whose messages differ in size (by ``wire``, for instance) bandwidths too;
    - ``engine.mode``: planned.

    Args:
        runs: the live run's folder, or its location on remote storage; or those of several runs of the same agents on
            the same machines.
        output: the settings file to write, ``NAME.yaml``; the seconds are in ``NAME.csv``. Neither may exist.
        trust: whether the runs' settings may name code, though you have not run them before.

    Raises:
        SettingsError: there is no such run, it is none whose times can be calibrated, or a file exists or cannot be
            written.

    """
    path = _new_file(output)
    locations = [str(runs)] if isinstance(runs, str | Path) else [str(run) for run in runs]
    if not locations:
        raise SettingsError("runs = []: allowed is one run, or several")
    recorded = [live_record(location, trust, has_sizes=len(locations) > 1) for location in locations]
    first = recorded[0]
    for other in recorded[1:]:
        if other.sites != first.sites:
            raise SettingsError(
                f"{other.location}: its agents are not those of {first.location}, or at other sites; allowed are runs "
                "of the same agents on the same machines"
            )
    try:
        found = _measured(path, recorded)
    except ValueError as error:
        raise SettingsError(f"{first.location}: {one_line(error, 500)}") from None
    tree = first.tree | _changes(first.config, found, first.sites)
    tree["engine"] |= {"mode": "planned", "join_later": []}
    try:
        _write(found, tree)
    except OSError as error:
        raise SettingsError(f"output = {str(output)!r}: cannot be written ({one_line(error)})") from None
    return found


def _new_file(output: str | Path) -> Path:
    """Return the path of the settings file.

    Raises:
        SettingsError: the file, or the table beside it, exists already, or it is no YAML file.

    """
    path = Path(output).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        raise SettingsError(f"output = {str(output)!r}: allowed is a new file NAME.yaml")
    for file in (path, path.with_suffix(".csv")):
        if file.exists() or file.is_symlink():
            raise SettingsError(f"output = {str(output)!r}: {file.name} exists already; allowed is a new file")
    return path


def _measured(path: Path, recorded: Sequence[LiveRecord]) -> Calibration:
    """Return what recordings say.

    Raises:
        ValueError: nobody has taken a step, or no law fits.

    """
    workers = range(recorded[0].config.num_agents)
    compute: dict[int, list[float]] = {}
    evaluations: defaultdict[int, float] = defaultdict(float)
    bounds: dict[Pair, dict[int, list[Bounds]]] = {}
    for one in recorded:
        for agent, seconds in compute_seconds(one.recording).items():
            if agent in workers:
                compute.setdefault(agent, []).extend(seconds)
        for agent, spent in evaluation_seconds(one.recording).items():
            evaluations[agent] += spent
        for (pair, size), found in _bounds(one).items():
            bounds.setdefault(pair, {}).setdefault(size, []).extend(found)
    if not compute:
        raise ValueError("no agent has taken a step; allowed are runs that have begun")
    if len(recorded) == 1:
        laws = {pair: fitted([one for found in of_pair.values() for one in found]) for pair, of_pair in bounds.items()}
        return Calibration(path, compute, evaluations, laws, {})
    times = {pair: link_times(of_pair) for pair, of_pair in bounds.items()}
    bandwidths = {pair: one.bits_per_second for pair, one in times.items() if one.bits_per_second is not None}
    return Calibration(path, compute, evaluations, {pair: one.latency for pair, one in times.items()}, bandwidths)


def _bounds(recorded: LiveRecord) -> dict[tuple[Pair, int], list[Bounds]]:
    """Return what messages took, by pair of sites and their bytes."""
    sites, sizes = recorded.sites, recorded.sizes

    def group(sender: int, receiver: int) -> tuple[Pair, int]:
        return _pair(sites, sender, receiver), sizes(sender, receiver)

    links = {(read.neighbor, row.agent) for row in recorded.recording.rows for read in row.reads}
    groups = {group(*link) for link in links}
    # Between sites messages take longer than within them: who waited has most likely waited for those.
    guess = {one: 1.0 for one in groups if one[0] != WITHIN}
    return message_bounds(recorded.recording, group, guess)


def _changes(config: Config, found: Calibration, sites: Mapping[int, str]) -> dict[str, Any]:
    """Return the settings that differ from the live run's, without the engine's."""
    changes: dict[str, Any] = {
        "name": None,
        "compute": _compute(found.compute, found.table.resolve()),
        "links": _links(found, sites),
    }
    algorithm, without = config.algorithm, config.model_copy(update={"barrier": None})
    if isinstance(algorithm, Rule) and config.barrier == barrier_of(without, algorithm):
        changes["barrier"] = None  # the rule's own, filled in; another rule has another one
    if isinstance(config.local_steps, EqualTime):  # by speeds that are others now
        changes["local_steps"] = list(rounds_of(config).local_steps)
    return changes


def _write(found: Calibration, tree: Mapping[str, Any]) -> None:
    """Write both files, or neither of them."""
    write_whole(found.table, _as_csv(found.compute))
    try:
        load_config(tree)  # what is written can be run
        write_whole(found.path, write_yaml(dict(tree)))
    except BaseException:
        found.table.unlink()  # written just now
        raise


def _pair(sites: Mapping[int, str], sender: int, receiver: int) -> Pair:
    one, other = sorted((sites[sender], sites[receiver]))
    return WITHIN if one == other else (one, other)


def _compute(seconds: Mapping[int, Sequence[float]], table: Path) -> dict[str, Any]:
    mean = float(np.mean([one for of_agent in seconds.values() for one in of_agent]))
    laws = {agent: {"name": "measured", "path": str(table), "column": _column(agent)} for agent in sorted(seconds)}
    return {"law": mean, "agents": laws, "stragglers": {}}


def _column(agent: int) -> str:
    return f"agent {agent}"


def _as_csv(seconds: Mapping[int, Sequence[float]]) -> str:
    """Return a table with a column for each agent, whose ends are empty where others have more."""
    columns = [pd.Series(seconds[agent], name=_column(agent)) for agent in sorted(seconds)]
    return pd.concat(columns, axis=1).to_csv(index=False, float_format="%.9g")


def delay_text(law: LogNormal | ConstantLaw) -> str:
    """Return a law of seconds as settings say it."""
    if isinstance(law, ConstantLaw):
        return f"{law.value:.6g}s"
    return f"log-normal({law.median:.6g}s, {law.sigma:.4g})"


def bandwidth_text(bits_per_second: float) -> str:
    """Return a bandwidth as settings say it."""
    return f"{max(1e-6, bits_per_second / 1e6):.6g} Mbit/s"


_UNLIMITED = "1000 Tbit/s"


def _links(found: Calibration, sites: Mapping[int, str]) -> list[dict[str, Any]]:
    """Return the entries that say laws and bandwidths, the links within sites first."""
    members: dict[str, list[int]] = {}
    for agent, site in sorted(sites.items()):
        members.setdefault(site, []).append(agent)
    entries: list[dict[str, Any]] = []
    for pair in sorted(found.links):
        law, place = found.links[pair], {} if pair == WITHIN else {"between": [members[site] for site in pair]}
        told = {} if law is None else {"delay": delay_text(law)}
        if (bandwidth := found.bandwidths.get(pair)) is not None:
            told["bandwidth"] = bandwidth_text(bandwidth)
        if entries and place:  # or else what is said of the links within sites would count
            told = {"delay": "0s"} | ({"bandwidth": _UNLIMITED} if WITHIN in found.bandwidths else {}) | told
        if told:
            entries.append({**told, **place})
    return entries
