"""What the plans of all families have in common: who takes part, what planners are given, recorded schedules."""

import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ray_pcasgd.agents.participant import LearnerSpec
from ray_pcasgd.base.doors import is_others
from ray_pcasgd.base.text import one_line
from ray_pcasgd.config import AnyAlgorithm, Config
from ray_pcasgd.records import Row
from ray_pcasgd.rules.adpsgd import ADPSGD
from ray_pcasgd.rules.server import ServerRule
from ray_pcasgd.runs.storage.fetched import local_file
from ray_pcasgd.runs.storage.remote import reason_of
from ray_pcasgd.schedule.delays import check_timing
from ray_pcasgd.schedule.hosts import check_hosts
from ray_pcasgd.schedule.info import ScheduleInfo
from ray_pcasgd.schedule.network import Network
from ray_pcasgd.schedule.ordering import causally_ordered
from ray_pcasgd.schedule.parquet import read_log
from ray_pcasgd.schedule.regions import check_regions, links_of
from ray_pcasgd.schedule.row_log import RowLog
from ray_pcasgd.schedule.scheduler import Recorded, Schedule


class Roster(NamedTuple):
    """Who takes part in a run, and by which schedule."""

    network: Network | None
    """Between peers; ``None`` with a server."""
    clusters: tuple[int, ...]
    """The cluster of each agent, servers included."""
    specs: tuple[LearnerSpec, ...]
    """Of all agents; servers come last."""
    schedule: Schedule


class ModelSize(NamedTuple):
    """What of a model is sent, as it is once it was tried out."""

    parameters: int
    """Trained numbers, D."""
    buffers: int
    """Mixed numbers, F."""
    own_bytes: int
    """Bytes of each agent's own tensors that its first steps change, which workers send to a server."""


class ScheduleKind(NamedTuple):
    """What tells apart the schedules of algorithms that cannot replay each other's, as ``ScheduleInfo`` has it."""

    reading: str
    num_servers: int = 0

    @property
    def with_directions(self) -> bool:
        """Whether a read of a stale version needs its neighbor's direction there: between peers."""
        return not self.num_servers and self.reading != "pairs"

    def check(self, path: str, info: ScheduleInfo) -> None:
        """Raise ``ValueError`` where a recorded schedule is of another kind."""
        if self.reading == "pairs":
            if info.reading != "pairs":
                raise ValueError(f"schedule = {path!r}: allowed with ad-psgd are schedules of ad-psgd")
            return
        if info.num_servers != self.num_servers:
            raise ValueError(
                f"schedule = {path!r}: was recorded with {info.num_servers} server(s); allowed with the algorithm is "
                f"one with {self.num_servers}"
            )
        if info.reading == "pairs":
            raise ValueError(f"schedule = {path!r}: is one of ad-psgd; allowed is it with ad-psgd only")


def kind_of(algorithm: AnyAlgorithm) -> ScheduleKind:
    """Return which schedules an algorithm's runs have."""
    if isinstance(algorithm, ServerRule):
        return ScheduleKind("", algorithm.shards)
    return ScheduleKind("pairs" if isinstance(algorithm, ADPSGD) else algorithm.reading)


def gathering_of(algorithm: AnyAlgorithm) -> str:
    """Return what tells apart the gatherings of servers, as ``ScheduleInfo`` has it: settings that are no defaults.

    Empty between peers, and where it cannot be written. How long epochs are shows in the rows.
    """
    if not isinstance(algorithm, ServerRule):
        return ""
    gathering = algorithm.gathering
    tree: dict[str, Any] = {"name": gathering.name}
    if is_others(gathering):
        tree["class"] = f"{type(gathering).__module__}:{type(gathering).__qualname__}"
    try:
        return json.dumps(tree | ({} if gathering.epoch else gathering.model_dump(mode="json", exclude_defaults=True)))
    except ValueError:  # a class of one's own may have any fields
        return ""


def _check_gathering(config: Config, info: ScheduleInfo) -> None:
    """Raise ``ValueError`` where a recorded schedule came to be by another gathering than the run's."""
    own = gathering_of(config.algorithm)
    if own and info.gathering and info.gathering != own:
        recorded = one_line(info.gathering, 200)  # the file may come from anybody
        raise ValueError(
            f"algorithm.gathering = {own}: allowed with schedule = {config.schedule!r} is {recorded}, by which it "
            "came to be; a schedule says what each update takes, and no other policy can"
        )


def waits_for_directions(config: Config) -> bool:
    """Return whether a row that reads a stale version needs its sender's next row, which computes the direction there.

    Not of agents that combine first: they send the direction that has led to a version with it.
    """
    return kind_of(config.algorithm).with_directions and config.overlap is not False


def planned_timing(config: Config, clusters: tuple[int, ...]) -> dict[str, Any]:
    """Return what the planners of all families are given."""
    return {
        "num_steps": config.num_steps,
        "compute": config.compute,
        "links": (*links_of(config.regions), *config.links),
        "hosts": config.hosts,
        "clusters": clusters,
        "seed": config.seed,
    }


def check_agents(config: Config, num_agents: int) -> None:
    """Raise ``ValueError`` where a setting of time names an agent that the run does not have, servers included."""
    check_timing(config.compute, config.links, num_agents)
    check_hosts(config.hosts, num_agents)
    check_regions(config.regions, num_agents)


def _read(location: str) -> tuple[RowLog, dict[str, str]]:
    try:
        with local_file(location) as path:
            return read_log(path, location)
    except OSError as error:
        raise ValueError(f"schedule = {location!r}: cannot be read ({reason_of(error)})") from None


def recorded_rows(config: Config, fitted: Callable[[RowLog, ScheduleInfo], Iterable[Row]]) -> Recorded:
    """Return the rows of the run's recorded schedule that it executes, in an order in which they can be executed.

    Args:
        config: The run's settings, with a ``schedule``.
        fitted: Returns those of a schedule's rows that the run executes, and raises ``ValueError`` where they do not
            fit its settings.

    Raises:
        ValueError: there is no such schedule, or it does not fit the run.

    """
    assert config.schedule is not None
    rows, metadata = _read(config.schedule)
    info, kind = ScheduleInfo.from_metadata(metadata), kind_of(config.algorithm)
    kind.check(config.schedule, info)
    _check_gathering(config, info)
    # Fitted first: a direction that only a row beyond the run's end would compute must not be waited for.
    executed = fitted(rows, info)
    log = executed if isinstance(executed, RowLog) else RowLog(executed)
    return Recorded(RowLog(causally_ordered(log, waits_for_directions(config))))
