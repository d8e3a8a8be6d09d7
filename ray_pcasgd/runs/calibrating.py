"""Calibration: settings of a planned run whose agents and links are as slow as a recorded live run's were."""

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ray_pcasgd.agents.local_steps import EqualTime
from ray_pcasgd.base.errors import SettingsError
from ray_pcasgd.base.foreign_files import events_of
from ray_pcasgd.base.foreign_tables import read_table
from ray_pcasgd.base.own_files import write_whole
from ray_pcasgd.base.text import one_line
from ray_pcasgd.base.yaml_text import write_yaml
from ray_pcasgd.config import Config
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.rules.adpsgd import ADPSGD
from ray_pcasgd.rules.base import Rule
from ray_pcasgd.rules.exchange import AllNeighbors
from ray_pcasgd.rules.server import ServerRule
from ray_pcasgd.runs.plan.local_steps import rounds_of, steps_of_workers
from ray_pcasgd.runs.plan.peers import barrier_of
from ray_pcasgd.runs.plan.plan import cluster_of_each_agent
from ray_pcasgd.runs.settings.loading import load_config, read_yaml
from ray_pcasgd.runs.settings.trust import load_run_settings
from ray_pcasgd.runs.storage.fetched import fetched_run
from ray_pcasgd.schedule.calibration import Recording, compute_seconds, evaluation_seconds, message_seconds
from ray_pcasgd.schedule.laws import ConstantLaw, LogNormal
from ray_pcasgd.schedule.parquet import read_rows

_HOST = re.compile(r" on ([^\s,]{1,200})")
_FILES = ("schedule.parquet", "metrics.parquet", "events.jsonl")
Pair = tuple[str, str]
"""Two sites, in order."""
WITHIN: Pair = ("", "")
"""The links within sites, those of all sites together."""


@dataclass(frozen=True)
class Calibration:
    """What was found of a live run, and where it is written."""

    path: Path
    """The settings file; the seconds are in ``table``."""
    compute: Mapping[int, Sequence[float]]
    """Seconds of each agent's mini-batches, by agent."""
    evaluations: Mapping[int, float]
    """Seconds that each agent's evaluations took in all: they are no part of a plan's time."""
    links: Mapping[Pair, LogNormal | ConstantLaw | None]
    """The law of the seconds that messages took, by pair of sites; ``None`` where none was ever late or waited for."""

    @property
    def table(self) -> Path:
        """The CSV file of the seconds, a column for each agent."""
        return self.path.with_suffix(".csv")


def calibrate(run: str | Path, output: str | Path, trust: bool = False) -> Calibration:
    """Calibrate: write the settings of a planned run whose times are those of a recorded live run.

    They are the live run's, except three. ``compute`` has the seconds that each agent's steps took, from a CSV file
    beside the settings. ``links`` has log-normal delays, fitted to what the schedule says of the messages: one for the
    links within sites, and one for each pair of sites. ``engine.mode`` is planned.

    Args:
        run: the live run's folder, or its location on remote storage.
        output: the settings file to write, ``NAME.yaml``; the seconds are in ``NAME.csv``. Neither may exist.
        trust: whether the run's settings may name code, though you have not run them before.

    Raises:
        SettingsError: there is no such run, it is none whose times can be calibrated, or a file exists or cannot be
            written.

    """
    path, location = _new_file(output), str(run)
    with fetched_run(location, _FILES) as folder:
        config = load_run_settings(folder, trust=trust)
        _require_live(location, config)
        try:
            recording = _recording(folder, config)
            sites = _sites_of(folder, config, {row.agent for row in recording.rows})
            found = _measured(path, recording, sites, range(config.num_agents))
        except ValueError as error:
            raise SettingsError(f"{location}: {one_line(error, 500)}") from None
        tree = read_yaml(folder / "config.yaml")
    tree |= _changes(config, found, sites)
    tree["engine"] |= {"mode": "planned", "join_later": []}
    try:
        _write(found, tree)
    except OSError as error:
        raise SettingsError(f"output = {str(output)!r}: cannot be written ({one_line(error)})") from None
    return found


def _new_file(output: str | Path) -> Path:
    """Return the path of the settings file; refused where it, or the table beside it, exists already."""
    path = Path(output).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        raise SettingsError(f"output = {str(output)!r}: allowed is a new file NAME.yaml")
    for file in (path, path.with_suffix(".csv")):
        if file.exists() or file.is_symlink():
            raise SettingsError(f"output = {str(output)!r}: {file.name} exists already; allowed is a new file")
    return path


def _measured(path: Path, recording: Recording, sites: Mapping[int, str], workers: Collection[int]) -> Calibration:
    """Return what a recording says.

    Raises:
        ValueError: nobody has taken a step, or no law fits.

    """
    compute = {agent: seconds for agent, seconds in compute_seconds(recording).items() if agent in workers}
    if not compute:
        raise ValueError("no agent has taken a step; allowed are runs that have begun")
    pairs = {_pair(sites, k, i) for k, i in itertools.combinations(sites, 2)}
    # Between sites messages take longer than within them: who waited has most likely waited for those.
    guess = {pair: 1.0 for pair in pairs if pair != WITHIN}
    laws = message_seconds(recording, lambda k, i: _pair(sites, k, i), guess)
    return Calibration(path, compute, evaluation_seconds(recording), laws)


def _changes(config: Config, found: Calibration, sites: Mapping[int, str]) -> dict[str, Any]:
    """Return the settings that differ from the live run's, without the engine's."""
    changes: dict[str, Any] = {
        "name": None,
        "compute": _compute(found.compute, found.table.resolve()),
        "links": _links(found.links, sites),
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


def _require_live(location: str, config: Config) -> None:
    """Raise ``SettingsError`` where a run's schedule does not say how long anything took."""
    engine, algorithm = config.engine, config.algorithm
    if not isinstance(engine, RaySettings) or engine.mode != "live":
        mode = engine.mode if isinstance(engine, RaySettings) else "planned"
        raise SettingsError(f"{location}: engine.mode = {mode!r}: allowed is live; times of planned runs follow laws")
    if isinstance(algorithm, ADPSGD):
        raise SettingsError(
            f"{location}: algorithm.name = {algorithm.name!r}: allowed are rules between peers and servers; the "
            "exchange of a pair is two messages, of which schedules say nothing apart"
        )
    for place, link in enumerate(config.links):
        if link.delay is not None and link.unit != "seconds":
            raise SettingsError(
                f"{location}: links.{place}.unit = 'steps': allowed are seconds; what is held back by steps does not "
                "say when it came"
            )


def _recording(folder: Path, config: Config) -> Recording:
    """Return a run's rows, and how they are to be understood.

    Raises:
        ValueError: a file cannot be read, or holds something else.

    """
    rows = read_rows(folder / "schedule.parquet")[0]
    algorithm, agents = config.algorithm, range(config.num_agents)
    if isinstance(algorithm, ServerRule):
        steps = steps_of_workers(config, algorithm)
        everybody = frozenset({row.agent for row in rows})
        return Recording(
            rows=rows,
            reads_first=frozenset(agents),
            waits=everybody,
            sends_to_all=True,
            reads_all=False,
            waited=_waited(folder),
            steps_in=lambda agent, _: steps[agent],
            evaluates=lambda *_: False,
        )
    assert isinstance(algorithm, Rule)
    rounds, every = rounds_of(config), config.evaluate_every
    has_barrier = config.barrier is not None and config.barrier.name != "none"
    return Recording(
        rows=rows,
        reads_first=frozenset(agents if config.overlap is False or algorithm.combines_first else ()),
        waits=frozenset(agents if has_barrier or algorithm.waits_for_partners else ()),
        sends_to_all=isinstance(algorithm.exchange, AllNeighbors),
        reads_all=algorithm.reading == "every",
        waited=_waited(folder),
        steps_in=rounds.steps_in,
        evaluates=lambda agent, step: rounds.evaluation_point(agent, step + 1, every) is not None,
    )


def _waited(folder: Path) -> dict[int, float]:
    """Return the seconds that each agent has waited until its last evaluation."""
    path = folder / "metrics.parquet"
    if not path.is_file():
        return {}
    frame = read_table(path).to_pandas()
    if not {"agent", "waited_seconds"} <= set(frame):
        raise ValueError("metrics.parquet has no waited_seconds")
    last = frame.dropna(subset=["agent", "waited_seconds"]).groupby("agent")["waited_seconds"].last()
    return {int(agent): float(seconds) for agent, seconds in last.items()}


def hosts_of(folder: Path) -> dict[int, str]:
    """Return the host that each agent of a run was started on last, as far as its events say so."""
    started = (event for event in events_of(folder / "events.jsonl") if event["kind"] == "agent_started")
    found = {event["agent"]: _HOST.search(event.get("detail", "")) for event in started if "agent" in event}
    return {agent: match[1] for agent, match in found.items() if match}


def _sites_of(folder: Path, config: Config, agents: Collection[int]) -> dict[int, str]:
    """Return the site of each agent: the host that it was started on last; with injected delays its cluster as well.

    All are at one site where the host of some is not recorded.
    """
    hosts = hosts_of(folder)
    hosts = {agent: hosts[agent] for agent in agents} if hosts.keys() >= set(agents) else dict.fromkeys(agents, "")
    clusters = cluster_of_each_agent(config)
    if not config.links or len(set(clusters)) == 1:
        return hosts
    # A server is in its first worker's cluster.
    named = {agent: clusters[agent if agent < len(clusters) else 0] for agent in agents}
    return {
        agent: f"cluster {named[agent]} on {host}" if host else f"cluster {named[agent]}"
        for agent, host in hosts.items()
    }


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


def _links(laws: Mapping[Pair, LogNormal | ConstantLaw | None], sites: Mapping[int, str]) -> list[dict[str, Any]]:
    """Return the entries that say the laws, the links within sites first."""
    members: dict[str, list[int]] = {}
    for agent, site in sorted(sites.items()):
        members.setdefault(site, []).append(agent)
    entries: list[dict[str, Any]] = []
    for pair in sorted(laws):
        law, place = laws[pair], {} if pair == WITHIN else {"between": [members[site] for site in pair]}
        if law is not None:
            entries.append({"delay": delay_text(law), **place})
        elif entries and place:  # or else what is said of the links within sites would count
            entries.append({"delay": "0s", **place})
    return entries
