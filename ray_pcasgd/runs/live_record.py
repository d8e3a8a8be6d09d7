"""What a live run's folder says of how long things took, and where its agents were."""

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from ray_pcasgd.base.errors import SettingsError
from ray_pcasgd.base.foreign_files import events_of
from ray_pcasgd.base.foreign_tables import read_table
from ray_pcasgd.base.text import one_line
from ray_pcasgd.config import Config
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.rules.adpsgd import ADPSGD
from ray_pcasgd.rules.base import Rule
from ray_pcasgd.rules.exchange import AllNeighbors
from ray_pcasgd.rules.server import ServerRule
from ray_pcasgd.runs.plan.defaults import cluster_of_each_agent
from ray_pcasgd.runs.plan.local_steps import rounds_of, steps_of_workers
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import read_yaml
from ray_pcasgd.runs.settings.trust import load_run_settings
from ray_pcasgd.runs.storage.fetched import fetched_run
from ray_pcasgd.schedule.calibration import Recording
from ray_pcasgd.schedule.changing import ChangingTopology
from ray_pcasgd.schedule.parquet import read_rows
from ray_pcasgd.schedule.plan_peers import Planner
from ray_pcasgd.schedule.plan_servers import ServerPlanner

_HOST = re.compile(r" on ([^\s,]{1,200})")
_FILES = ("schedule.parquet", "metrics.parquet", "events.jsonl")


class LiveRecord(NamedTuple):
    """What a live run's folder says."""

    location: str
    config: Config
    tree: dict[str, Any]
    """Its settings, as they are written."""
    recording: Recording
    sites: dict[int, str]
    sizes: Callable[[int, int], int]
    """Returns the bytes of a message, given sender and receiver; 0 where they do not matter."""


def live_record(location: str, trust: bool, has_sizes: bool) -> LiveRecord:
    """Return what a live run's folder says; with the bytes of its messages where it ``has_sizes``.

    Raises:
        SettingsError: there is no such run, or it is none whose times can be calibrated.

    """
    with fetched_run(location, _FILES) as folder:
        config = load_run_settings(folder, trust=trust)
        _require_live(location, config)
        try:
            recording = _recording(folder, config)
            sites = _sites_of(folder, config, {row.agent for row in recording.rows})
            sizes = _sizes_of(config) if has_sizes else lambda *_: 0
        except ValueError as error:
            raise SettingsError(f"{location}: {one_line(error, 500)}") from None
        return LiveRecord(location, config, read_yaml(folder / "config.yaml"), recording, sites, sizes)


def _sizes_of(config: Config) -> Callable[[int, int], int]:
    """Return what returns the bytes of a run's messages, given sender and receiver.

    Raises:
        ValueError: its data or its model is not there, of which bytes depend.

    """
    plan = make_plan(config, runs_here=False).schedule
    if isinstance(plan, ServerPlanner):
        first, gradients, weights = plan.num_workers, plan.gradient_bytes, plan.weights_bytes
        return lambda sender, receiver: weights[sender - first] if sender >= first else gradients[receiver - first]
    assert isinstance(plan, Planner)
    size = plan.message_bytes
    return lambda *_: size


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
    changes = isinstance(config.topology, ChangingTopology)
    rounds, every = rounds_of(config), config.evaluate_every
    has_barrier = config.barrier is not None and config.barrier.name != "none"
    return Recording(
        rows=rows,
        reads_first=frozenset(agents if config.overlap is False or algorithm.combines_first else ()),
        waits=frozenset(agents if has_barrier or algorithm.waits_for_partners else ()),
        sends_to_all=isinstance(algorithm.exchange, AllNeighbors) and not changes,
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
