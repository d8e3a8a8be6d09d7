"""From step reports to the rows of ``metrics.parquet``."""

from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd

from ray_pcasgd.consensus import Consensus, average
from ray_pcasgd.records import Snapshot, StepReport

NAN = float("nan")


class _Tally:
    """What one agent did since its last evaluation, and since the start."""

    def __init__(self) -> None:
        self.waited_seconds = 0.0
        self.bytes_sent = 0
        self.start_afresh()

    def start_afresh(self) -> None:
        self.losses: list[float] = []
        self.staleness: list[int] = []
        self.thetas: list[float] = []
        self.predicting = 0.0
        self.choosing = 0.0

    def take(self, report: StepReport) -> None:
        row, measures = report.row, report.measures
        self.losses.append(report.loss)
        self.staleness.extend(read.staleness for read in row.reads)
        self.waited_seconds += row.end - row.ready
        self.bytes_sent += report.bytes_sent
        if "theta" in measures:
            self.thetas.append(measures["theta"])
        self.predicting += measures.get("predicting", 0.0) * measures.get("choosing", 0.0)
        self.choosing += measures.get("choosing", 0.0)

    def row(self) -> dict[str, float]:
        return {
            "train_loss": _mean(self.losses),
            "staleness_mean": _mean(self.staleness),
            "staleness_max": _largest(self.staleness),
            "theta": _mean(self.thetas),
            "predicting_share": self.predicting / self.choosing if self.choosing else NAN,
            "waited_seconds": self.waited_seconds,
            "bytes_sent": float(self.bytes_sent),
        }


class Monitor:
    """Gathers reports into one metrics row per agent and evaluation, and one per evaluation of the averaged model.

    An evaluation is complete once every agent that still takes part has reported it; agents that have left
    (``leave``) are not waited for.
    """

    def __init__(self, num_agents: int, evaluate: Callable[[Snapshot], dict[str, float]]) -> None:
        self._evaluate = evaluate
        self._tallies = [_Tally() for _ in range(num_agents)]
        self._left: set[int] = set()
        self._open: dict[int, dict[int, dict[str, Any]]] = {}
        self._snapshots: dict[int, dict[int, Snapshot]] = {}
        self.rows: list[dict[str, Any]] = []
        self.latest: Consensus | None = None
        """The newest complete evaluation's consensus."""

    def take(self, report: StepReport) -> list[dict[str, Any]]:
        """Take in a report, and return the rows that it completes: agents' rows, then the averaged model's."""
        row = report.row
        tally = self._tallies[row.agent]
        tally.take(report)
        if report.snapshot is None:
            return []
        version = report.progress
        tested = {f"test_{name}": value for name, value in (report.evaluation or {}).items()}
        times = {"agent": row.agent, "step": version, "seconds": row.end, "wall_seconds": report.wall_seconds}
        self._open.setdefault(version, {})[row.agent] = {**times, **tested, "consensus_distance": NAN, **tally.row()}
        self._snapshots.setdefault(version, {})[row.agent] = report.snapshot
        tally.start_afresh()
        return self._complete(version)

    def leave(self, agent: int) -> list[dict[str, Any]]:
        """Wait no longer for an agent, and return the rows that this completes."""
        self._left.add(agent)
        return [row for version in sorted(self._open) for row in self._complete(version)]

    def finish(self) -> list[dict[str, Any]]:
        """Return the rows of evaluations that some agent never reached; they have no averaged model."""
        rows = [rows[agent] for _, rows in sorted(self._open.items()) for agent in sorted(rows)]
        self._open.clear()
        self.rows.extend(rows)
        return rows

    def frame(self) -> pd.DataFrame:
        """Return all rows so far; ``agent`` is missing where a row is the averaged model's."""
        frame = pd.DataFrame(self.rows)
        return frame if frame.empty else frame.astype({"agent": "Int64", "step": "int64"})

    def _complete(self, version: int) -> list[dict[str, Any]]:
        rows = self._open[version]
        if any(agent not in rows and agent not in self._left for agent in range(len(self._tallies))):
            return []
        consensus = average(self._snapshots.pop(version))
        self.latest = consensus
        done = [rows[agent] | {"consensus_distance": consensus.distances[agent]} for agent in sorted(rows)]
        tested = {f"test_{name}": value for name, value in self._evaluate(consensus.mean).items()}
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
            "waited_seconds": sum(row["waited_seconds"] for row in done),
            "bytes_sent": sum(row["bytes_sent"] for row in done),
        }
        del self._open[version]
        self.rows.extend([*done, averaged])
        return [*done, averaged]


def _largest(values: Iterable[float]) -> float:
    return float(max((value for value in values if value == value), default=NAN))


def _mean(values: Iterable[float]) -> float:
    numbers = [value for value in values if value == value]
    return sum(numbers) / len(numbers) if numbers else NAN
