"""Reports of agents to the driver, both ends: through the scheduler, each exactly once, even where that is lost."""

import contextlib
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from torch.utils._pytree import tree_map

from ray_pcasgd.engines.ray import actor_log
from ray_pcasgd.engines.ray.lost import GONE
from ray_pcasgd.engines.ray.scheduler_actor import Call, Said
from ray_pcasgd.engines.ray.transport import as_tensor
from ray_pcasgd.records import Event, Snapshot, StepReport

REPORT_SECONDS = 0.25
"""Agents hand their reports to the scheduler about this often."""


@dataclass
class HandedIn:
    """Reports that were handed to the scheduler in one call."""

    number: int
    said: list[Said]
    answer: Any = None


class Reporter:
    """An agent's end: hands what is in ``unsent`` to the scheduler, and again to another one where that was lost."""

    def __init__(self, agent_number: int, scheduler: ActorHandle[Any], first_call: int) -> None:
        self.agent_number = agent_number
        self.scheduler = scheduler
        self.changed = threading.Condition()
        self.unsent: list[Said] = []
        self.calls_made = first_call
        self.handed_in: deque[HandedIn] = deque()
        """What the driver is not known to have yet."""
        self.sent_at = time.perf_counter()

    def report(self, flush: bool = False) -> None:
        """Hand what has gathered to the scheduler, now or when it is due."""
        if not self.unsent or not (flush or self.is_report_due):
            return
        actor_log.write(self.unsent)
        with self.changed:
            self.forget_received()
            self.handed_in.append(HandedIn(self.calls_made, self.unsent))
            self.calls_made += 1
            self.unsent = []
            self.sent_at = time.perf_counter()
            self.hand_in(self.handed_in[-1])

    @property
    def is_report_due(self) -> bool:
        """Whether the last reports were handed in so long ago that the next ones are due."""
        return time.perf_counter() - self.sent_at > REPORT_SECONDS

    def hand_in(self, call: HandedIn) -> None:
        """Hand one call's reports to the scheduler; called with the lock held."""
        oldest = self.handed_in[0].number
        call.answer = self.scheduler.record.remote(self.agent_number, call.number, oldest, call.said)

    def forget_received(self) -> None:
        """Forget the reports that the driver has; called with the lock held."""
        answers = [call.answer for call in self.handed_in]
        answered = ray.wait(answers, num_returns=len(answers), timeout=0)[0] if answers else []
        with contextlib.suppress(*GONE):
            with_driver = max(ray.get(answered), default=0)
            while self.handed_in and self.handed_in[0].number < with_driver:
                self.handed_in.popleft()

    @ray.method(concurrency_group="mail")
    def adopt(self, scheduler: ActorHandle[Any]) -> None:
        """Take a new scheduler for a lost one, and hand in again what the driver may not have."""
        with self.changed:
            self.scheduler = scheduler
            for call in self.handed_in:
                self.hand_in(call)


class Collector:
    """The driver's end: takes from the scheduler what agents have reported, whatever is lost meanwhile."""

    def __init__(self, scheduler: ActorHandle[Any], num_agents: int, answer_seconds: float) -> None:
        self.scheduler = scheduler
        self._answer_seconds = answer_seconds
        self._received = 0
        self._next = [0] * num_agents
        """The number of each agent's next call."""

    def replace(self, scheduler: ActorHandle[Any]) -> None:
        """Drain another scheduler from now on, to which agents say again what may not have come."""
        self.scheduler = scheduler
        self._received = 0

    def next_call(self, agent: int) -> int:
        """Return the number of an agent's next call."""
        return self._next[agent]

    def drain(self) -> list[Said]:
        """Return what agents have reported since the last call.

        Raises:
            RayError: the scheduler is lost, or does not answer.

        """
        calls: list[Call] = ray.get(self.scheduler.drain.remote(self._received), timeout=self._answer_seconds)
        self._received += len(calls)
        said: list[Said] = []
        for agent, number, own in calls:
            if number >= self._next[agent]:
                self._next[agent] = number + 1
                said += [report for one in own for report in self._fetched(one)]
        return said

    def _fetched(self, said: Said) -> list[Said]:
        """Return a report with its snapshot; where that was lost with its agent, an event and the rest of it."""
        if not isinstance(said, StepReport) or said.snapshot is None:
            return [said]
        reference: Any = said.snapshot
        try:
            snapshot = Snapshot(*tree_map(as_tensor, ray.get(reference, timeout=self._answer_seconds)))
        except RayError as error:
            agent, reason = said.row.agent, type(error).__name__
            detail = f"the evaluation of agent {agent} at step {said.progress} was lost ({reason})"
            lost = Event("evaluation_lost", agent, said.progress, detail)
            # The step itself was taken: without its row, the rows after it would have none before them.
            return [lost, said._replace(snapshot=None, evaluation=None)]
        return [said._replace(snapshot=snapshot)]
