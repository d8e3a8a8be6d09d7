"""From step reports to the rows of ``metrics.parquet``."""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, NamedTuple, Protocol

import pandas as pd

from ray_pcasgd.base.ranges import Ranges
from ray_pcasgd.base.state import State
from ray_pcasgd.records import Snapshot, StepReport
from ray_pcasgd.runs.consensus import Consensus, average, concatenate
from ray_pcasgd.runs.metric_rows import MetricRows

NAN = float("nan")

_TIMES = ("agent", "step", "seconds", "wall_seconds")
"""A row's first columns."""

TUNED = ("momentum", "total_momentum")
"""What an optimizer that tunes its momentum measures; of other runs there are no such columns."""


class Evaluating(Protocol):
    """An evaluation whose figures may still be to come."""

    def figures(self, wait: bool) -> dict[str, float] | None:
        """Return the figures; ``None`` as long as they are not there, unless it is to wait for them."""
        ...


class _Awaited(NamedTuple):
    """An evaluation that every agent has reported, whose averaged model is being evaluated."""

    version: int
    rows: dict[int, dict[str, Any]]
    """By agent."""
    workers: list[dict[str, Any]]
    """The rows of workers; empty in a run without servers."""
    consensus: Consensus
    evaluating: Evaluating


class _Mean:
    """A mean of numbers as they come, summed in their order; those that are not a number do not count."""

    def __init__(self, total: float = 0.0, number: int = 0) -> None:
        self.total = total
        self.number = number

    def add(self, value: float) -> None:
        if value == value:
            self.total += value
            self.number += 1

    @property
    def value(self) -> float:
        return self.total / self.number if self.number else NAN


def _saved(value: Any) -> Any:
    """Return a part of a tally as states have it: a mean as a list."""
    if isinstance(value, dict):
        return {name: _saved(mean) for name, mean in value.items()}
    return [value.total, value.number] if isinstance(value, _Mean) else value


def _restored(value: Any) -> Any:
    """Return what ``_saved`` has saved."""
    if isinstance(value, dict):
        return {name: _restored(mean) for name, mean in value.items()}
    return _Mean(*value) if isinstance(value, list) else value


class _Tally:
    """What one agent did since its last evaluation, and since the start; as much however many rows it took."""

    def __init__(self, waits_between: bool) -> None:
        self.waits_between = waits_between
        """Whether it waits between its rows, instead of within them: a worker, and a peer that combines first."""
        self.waited_seconds = 0.0
        self.bytes_sent = 0
        self.cancelled_steps = 0
        self.last_end: float | None = None
        self.reset()

    def reset(self) -> None:
        self.losses, self.gradients, self.staleness, self.thetas = _Mean(), _Mean(), _Mean(), _Mean()
        self.tuned: dict[str, _Mean] = {}
        self.largest_staleness = NAN
        self.predicting = 0.0
        self.choosing = 0.0

    def take(self, report: StepReport) -> None:
        row, measures = report.row, report.measures
        self.losses.add(report.loss)
        for read in row.reads:
            self.staleness.add(read.staleness)
        self.largest_staleness = _largest((self.largest_staleness, *(read.staleness for read in row.reads)))
        self.waited_seconds += row.waited_seconds
        if report.waited_seconds is not None:
            self.waited_seconds += report.waited_seconds
        elif self.waits_between and self.last_end is not None:
            self.waited_seconds += max(0.0, row.start - self.last_end)
        self.last_end = row.end
        self.cancelled_steps += row.kind == "cancelled"
        self.bytes_sent += report.bytes_sent
        if "gradients" in measures:
            self.gradients.add(measures["gradients"])
        if "theta" in measures:
            self.thetas.add(measures["theta"])
        for name in TUNED:
            if name in measures:
                self.tuned.setdefault(name, _Mean()).add(measures[name])
        self.predicting += measures.get("predicting", 0.0) * measures.get("choosing", 0.0)
        self.choosing += measures.get("choosing", 0.0)

    def row(self) -> dict[str, float]:
        return {
            "train_loss": self.losses.value,
            "staleness_mean": self.staleness.value,
            "staleness_max": self.largest_staleness,
            "theta": self.thetas.value,
            "predicting_share": self.predicting / self.choosing if self.choosing else NAN,
            "waited_seconds": self.waited_seconds,
            "bytes_sent": float(self.bytes_sent),
            "cancelled_steps": float(self.cancelled_steps),
            "gradients_per_update": self.gradients.value,
            **{name: mean.value for name, mean in sorted(self.tuned.items())},
        }

    def state(self) -> State:
        return {name: _saved(value) for name, value in vars(self).items()}

    def restore(self, state: State) -> None:
        vars(self).update({name: _restored(value) for name, value in state.items()})


class MetricsTable:
    """Gathers reports into one metrics row per agent and evaluation, and one per evaluation of the averaged model.

    An evaluation is complete once every agent that still takes part has reported it; agents that have left
    (``leave``) are not waited for. One that comes back and reports the newest evaluation after all makes it complete
    once more. ``settled`` hands an evaluation out once the averaged model's figures are there. Beside servers, these
    alone report evaluations, and their parts of the weights make the model.
    """

    def __init__(
        self,
        num_agents: int,
        evaluate: Callable[[Snapshot, int], Evaluating],
        servers: Collection[int] = (),
        combines_first: bool = False,
    ) -> None:
        self._evaluate = evaluate
        self._awaited: deque[_Awaited] = deque()
        """Evaluations that are complete but for the averaged model's figures, by rising version."""
        between = combines_first or bool(servers)
        self._tallies = [_Tally(waits_between=between and i not in servers) for i in range(num_agents)]
        self._servers = servers
        self._evaluated = servers or range(num_agents)
        self._left: set[int] = set()
        self._since: dict[int, int] = {}
        """From which version on agents are awaited again that were lost."""
        self._reported = [Ranges() for _ in range(num_agents)]
        """The versions of each agent; one that came back from an old state may come by the same version again."""
        self._open: dict[int, dict[int, dict[str, Any]]] = {}
        self._snapshots: dict[int, dict[int, Snapshot]] = {}
        self._newest = -1
        """The newest version whose evaluation is complete."""
        self._without_some: tuple[dict[int, dict[str, Any]], dict[int, Snapshot]] | None = None
        """That evaluation's rows and snapshots, where agents were away that may come back."""
        self.rows = MetricRows()
        self.latest: Consensus | None = None
        """The newest complete evaluation's consensus."""

    def take(self, report: StepReport) -> None:
        """Take in a report."""
        row = report.row
        tally = self._tallies[row.agent]
        tally.take(report)
        if report.snapshot is None:
            return
        version = report.progress
        if not self._reported[row.agent].add(version):
            return
        if version == self._newest and self._without_some is not None and row.agent not in self._left:
            self._open[version], self._snapshots[version] = self._without_some
            self.rows.drop(version)
            self._awaited = deque(one for one in self._awaited if one.version != version)
        tested = {f"test_{name}": value for name, value in (report.evaluation or {}).items()}
        times = {"agent": row.agent, "step": version, "seconds": row.end, "wall_seconds": report.wall_seconds}
        self._open.setdefault(version, {})[row.agent] = {**times, **tested, "consensus_distance": NAN, **tally.row()}
        self._snapshots.setdefault(version, {})[row.agent] = report.snapshot
        tally.reset()
        self._complete(version)

    def leave(self, agent: int, back_at: int | None = None) -> None:
        """Wait no longer for an agent; where it is known at which version it comes back, for those from there on."""
        if back_at is None:
            self._left.add(agent)
            self._since.pop(agent, None)
        else:
            self.come_back(agent, back_at)
        for version in sorted(self._open):
            self._complete(version)

    def settled(self, wait: bool = False) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows of each evaluation whose figures are there: agents' rows, then the averaged model's.

        Where it is to ``wait``, those of all evaluations that every agent has reported.
        """
        while self._awaited and (figures := self._awaited[0].evaluating.figures(wait)) is not None:
            one = self._awaited.popleft()
            self.latest = one.consensus
            rows = self._rows(one, {f"test_{name}": value for name, value in figures.items()})
            self.rows.extend(rows)
            yield rows

    def come_back(self, agent: int, version: int) -> None:
        """Wait for an agent again, from a version on."""
        self._left.discard(agent)
        self._since[agent] = version

    def _is_awaited(self, agent: int, version: int) -> bool:
        return agent not in self._left and version >= self._since.get(agent, 0)

    def finish(self) -> list[dict[str, Any]]:
        """Return the rows of evaluations that some agent never reached; they have no averaged model.

        To be called once all others are settled.
        """
        rows = [rows[agent] for _, rows in sorted(self._open.items()) for agent in sorted(rows)]
        self._open.clear()
        self.rows.extend(rows)
        return rows

    def frame(self) -> pd.DataFrame:
        """Return all rows so far; ``agent`` is missing where a row is the averaged model's."""
        return self.rows.frame()

    def state(self) -> State:
        """Return what ``restore`` goes on from."""
        return {
            "rows": self.rows.state(),
            "open": self._open,
            "snapshots": self._snapshots,
            "tallies": [tally.state() for tally in self._tallies],
            "left": sorted(self._left),
            "since": self._since,
            "latest": None if self.latest is None else [self.latest.mean, self.latest.distances],
            "awaited": [
                [one.version, one.rows, one.workers, one.consensus.mean, one.consensus.distances]
                for one in self._awaited
            ],
            "newest": self._newest,
            "without_some": None if self._without_some is None else list(self._without_some),
        }

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self.rows = MetricRows.restored(state["rows"], len(self._tallies))
        self._open, self._snapshots, self._left = state["open"], state["snapshots"], set(state["left"])
        self._since, self._newest = state["since"], state["newest"]
        self._without_some = None if state["without_some"] is None else tuple(state["without_some"])
        self._reported = [Ranges() for _ in self._tallies]
        reported = ((agent, version) for version, rows in self._open.items() for agent in rows)
        for agent, version in chain(self.rows.evaluated(), reported):
            self._reported[agent].add(version)
        for tally, own in zip(self._tallies, state["tallies"], strict=True):
            tally.restore(own)
        self.latest = None if state["latest"] is None else Consensus(*state["latest"])
        self._awaited = deque(
            _Awaited(version, rows, workers, Consensus(mean, distances), self._evaluate(mean, version))
            for version, rows, workers, mean, distances in state["awaited"]
        )

    def _complete(self, version: int) -> None:
        rows = self._open[version]
        missing = any(agent not in rows and self._is_awaited(agent, version) for agent in self._evaluated)
        if missing or version < self._newest:
            return
        snapshots = self._snapshots.pop(version)
        self._newest = version
        self._without_some = (rows, snapshots) if self._left and not self._servers else None
        consensus = concatenate(snapshots) if self._servers else average(snapshots)
        workers = [k for k in range(len(self._tallies)) if k not in self._servers] if self._servers else []
        of_workers = [self._row_of_worker(k, rows[min(rows)]) for k in workers]
        evaluating = self._evaluate(consensus.mean, version)
        self._awaited.append(_Awaited(version, self._open.pop(version), of_workers, consensus, evaluating))

    def _rows(self, awaited: "_Awaited", tested: dict[str, float]) -> list[dict[str, Any]]:
        version, rows, workers, consensus, _ = awaited
        done = [rows[agent] | {"consensus_distance": consensus.distances[agent]} for agent in sorted(rows)]
        if self._servers:
            done = [row | tested for row in done]
            workers = [{**dict.fromkeys(_TIMES), **dict.fromkeys(tested, NAN), **row} for row in workers]
        averaged = {
            "agent": pd.NA,
            "step": version,
            "seconds": max(row["seconds"] for row in done),
            "wall_seconds": max(row["wall_seconds"] for row in done),
            **tested,
            "consensus_distance": consensus.distance,
            **{name: _mean(row[name] for row in done) for name in ("train_loss", "staleness_mean", "theta")},
            "staleness_max": _largest(row["staleness_max"] for row in done),
            "predicting_share": _mean(row["predicting_share"] for row in done),
            **{
                name: sum(row[name] for row in [*workers, *done])
                for name in ("waited_seconds", "bytes_sent", "cancelled_steps")
            },
            "gradients_per_update": _mean(row["gradients_per_update"] for row in done),
            **{name: _mean(row.get(name, NAN) for row in done) for name in TUNED if any(name in row for row in done)},
        }
        return [*workers, *done, averaged]

    def _row_of_worker(self, worker: int, server: Mapping[str, Any]) -> dict[str, Any]:
        tally = self._tallies[worker]
        times = {name: server[name] for name in ("step", "seconds", "wall_seconds")}
        row = {"agent": worker, **times, "consensus_distance": NAN, **tally.row()}
        tally.reset()
        return row


def _largest(values: Iterable[float]) -> float:
    return float(max((value for value in values if value == value), default=NAN))


def _mean(values: Iterable[float]) -> float:
    numbers = [value for value in values if value == value]
    return sum(numbers) / len(numbers) if numbers else NAN
