"""Executes rows of many peers as one, with all that they hold in one table; the reports are those of ``Execution``."""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeGuard

import numpy as np
import torch

from ray_pcasgd.agents.drift import MeanVelocity
from ray_pcasgd.agents.participant import Outcome, Participant
from ray_pcasgd.agents.peer import Peer
from ray_pcasgd.base.state import State
from ray_pcasgd.engines.base import Leaving, Pause, Report
from ray_pcasgd.engines.failures import evaluated, naming, require_own, restoring, who_of
from ray_pcasgd.engines.local.execution import require_published
from ray_pcasgd.engines.local.table import PeersInTable
from ray_pcasgd.engines.local.versions import Versions
from ray_pcasgd.engines.local.waiting import WaitingRows
from ray_pcasgd.records import Event, Row, StepReport
from ray_pcasgd.rules.base import Rule
from ray_pcasgd.schedule.plan_peers import Planner
from ray_pcasgd.schedule.scheduler import Recorded, Schedule

_LARGEST_MODEL = 1 << 20
"""Parameters: steps of larger models take so long that the engine's own share of them hardly counts."""


def fits_into_a_table(agents: Sequence[Participant], schedule: Schedule) -> TypeGuard[Sequence[Peer]]:
    """Return whether ``StackedExecution`` takes a run whose steps are stacked; any other is left to ``Execution``.

    It takes peers on the CPU that step by one mini-batch and may read all their neighbors, whose rules have a second
    form (``Rule.steps_many``), whose messages are plain, and whose models have nothing but trained parameters, and not
    so many of them that the table would cost more memory than it saves time. It takes no churn, no isolation, and no
    drift that asks for an agent's own old versions.
    """
    first = agents[0]
    if type(first) is not Peer or not first.spec.neighbors or first.device.type != "cpu":
        return False
    recipe, rule, replica = first.spec.recipe, first.spec.recipe.rule, first.replica
    is_steady = type(schedule) is Planner or (
        isinstance(schedule, Recorded) and all(row.kind == "step" and not row.held for row in schedule.recorded)
    )
    return (
        is_steady
        and first.may_be_stacked
        and rule.steps_many
        and recipe.in_phases is None
        # What a class that inherits them has changed may count in one of the two alone.
        and {"step", "step_many"} <= vars(type(rule)).keys()
        and all(_owner(rule, name) is Rule for name in ("partners", "receivers", "observed_coefficients", "probes_at"))
        and not (rule.corrects_gradients or first.pushes or rule.reads_displacements)
        and first.rounds.are_single
        and recipe.wire.is_plain
        and not recipe.has_fragments
        and not recipe.isolate_non_finite
        and recipe.faults is None
        and (first.displacements is None or isinstance(first.displacements, MeanVelocity))
        and first.weights.numel() <= _LARGEST_MODEL
        and not (replica.has_frozen or replica.local() or first.buffers.numel())
    )


def _owner(rule: Rule, name: str) -> type:
    """Return the class that defines what a rule does under a name: of two forms of one thing, it should be the same."""
    return next(kind for kind in type(rule).__mro__ if name in vars(kind))


class StackedExecution:
    """Executes the rows of peers that ``fits_into_a_table`` says it takes.

    Groups of rows, reports, pauses and states are those of an ``Execution``; sums are in another order.

    Args:
        schedule: the rows.
        peers: the peers, in the order of their numbers.
        leaving: asks for pauses, besides those at evaluations; ``None``: the run does not pause.

    """

    def __init__(self, schedule: Schedule, peers: Sequence[Peer], leaving: Leaving | None = None) -> None:
        self.peers = peers
        self.recipe = peers[0].spec.recipe
        self.leaving = leaving
        self._specs = [peer.spec for peer in peers]
        self._falls_back = isinstance(schedule, Recorded)
        slack = self._specs[0].family.slack if self._falls_back else 0
        self._rows = iter(schedule)
        self._table = PeersInTable(peers, slack)
        self._bytes_sent = [peer.message_bytes * len(peer.receivers()) for peer in peers]
        self._evaluations = 0
        self._events: list[Event] = []
        self._started = time.perf_counter()
        versions = self._no_versions()
        for peer in peers:
            versions.put(peer.spec.agent, peer.version, peer.message(None))
        self._begin(versions, 0, ())

    def _no_versions(self) -> Versions:
        return Versions(self._specs, None, self._falls_back)

    def _begin(self, versions: Versions, drawn: int, window: Iterable[Row]) -> None:
        """Go on from where the peers are."""
        self._table.take_in(versions)
        self._waiting = WaitingRows(self._rows, len(self.peers), 2 * len(self.peers), self._is_own)
        self._waiting.begin(self._table.versions.tolist(), drawn, window)
        self._unprepared = [peer.spec.agent for peer in self.peers if peer.has_to_prepare]

    def _is_own(self, row: Row) -> bool:
        return row.step < self.recipe.num_steps

    def reports(self) -> Iterator[Report]:
        """Execute all rows."""
        while True:
            self._prepare()
            ready = self._waiting.take()
            if not ready:
                return
            yield from self._execute(self._in_order(ready))
            yield from self._pause()

    def close(self) -> None:
        """End what the peers have running in the background."""
        for peer in self.peers:
            peer.close()

    def _prepare(self) -> None:
        """Compute the directions at versions that are new."""
        if self._unprepared:
            with self._naming(self._unprepared):
                self._table.prepare(np.array(self._unprepared))
            self._unprepared = []

    def _naming(self, agents: Sequence[int]) -> naming:
        versions = self._table.versions[agents]
        return naming(-1, int(versions.min()), who_of([self.peers[min(agents)], self.peers[max(agents)]]))

    def _in_order(self, rows: list[Row]) -> list[Row]:
        """Return rows in the order of reports: those of agents with as many neighbors one after another."""
        degrees = {row.agent: len(self._specs[row.agent].neighbors) for row in rows}
        first = {degree: place for place, degree in reversed(list(enumerate(degrees.values())))}
        return rows if len(first) == 1 else sorted(rows, key=lambda row: first[degrees[row.agent]])

    def _execute(self, rows: list[Row]) -> Iterator[Report]:
        agents = [row.agent for row in rows]
        with self._naming(agents):
            losses, measures = self._table.step(rows)
        self._waiting.published(agents)
        last, names = self.recipe.num_steps, list(measures)
        self._unprepared = [row.agent for row in rows if row.step + 1 < last]
        each = zip(*measures.values(), strict=True) if measures else iter(() for _ in rows)
        for row, loss, values in zip(rows, losses, each, strict=True):
            own = dict(zip(names, values, strict=True))
            seconds = time.perf_counter() - self._started
            if not self.recipe.evaluates_at(row.step + 1):
                yield StepReport(row, row.step + 1, loss, own, self._bytes_sent[row.agent], seconds)
                continue
            peer = self.peers[row.agent]
            self._table.settle(row.agent)
            report, failed = evaluated(peer, peer.report(row, Outcome(loss, own), seconds))
            yield report
            if failed is not None:
                self._events.append(failed)
        yield from self._events
        self._events.clear()

    def _pause(self) -> Iterator[Pause]:
        """Yield a pause where all peers have come to a further evaluation, or one is asked for."""
        versions, running = self._table.versions, self._table.running
        if self.leaving is None or not running.any():
            return
        slowest = int(versions[running].min())
        passed = slowest // self.recipe.evaluate_every
        if passed > self._evaluations or self.leaving.is_asked:
            self._evaluations = passed
            yield Pause(slowest, int(versions.max()), self.state)

    def state(self) -> State:
        """Return all that the rows to come depend on, in the form of ``Execution.state``."""
        for agent in range(len(self.peers)):
            self._table.settle(agent)
        return {
            "agents": [peer.state() for peer in self.peers],
            "versions": self._table.versions_state(self._no_versions()),
            "window": self._waiting.left(),
            "isolated": {},
            "drawn": self._waiting.drawn,
            "evaluations": self._evaluations,
            "seconds": time.perf_counter() - self._started,
        }

    def go_on(self, state: State | None) -> None:
        """Go on from a state, where one is given.

        Raises:
            StateError: it is not one of this run.

        """
        if state is None:
            return
        with restoring():
            require_own(state, self.state(), len(self.peers))
            for peer, own in zip(self.peers, state["agents"], strict=True):
                peer.restore(own)
            versions = self._no_versions()
            versions.restore(state["versions"], torch.device("cpu"))
            require_published(versions, self.peers)
            self._begin(versions, state["drawn"], state["window"])
            self._evaluations = state["evaluations"]
            self._started = time.perf_counter() - state["seconds"]
