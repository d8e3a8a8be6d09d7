"""How an actor's reports come to the driver: through the scheduler, each once, even where the scheduler is lost."""

import contextlib
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle

from ray_pcasgd.engines.ray.lost import GONE
from ray_pcasgd.engines.ray.scheduler_actor import Said

REPORT_SECONDS = 0.25
"""Agents hand their reports to the scheduler about this often."""


@dataclass
class HandedIn:
    """Reports that were handed to the scheduler in one call."""

    number: int
    said: list[Said]
    answer: Any = None


class Reporter:
    """Hands what gathers in ``unsent`` to the scheduler, and again to another one where that was lost."""

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
        now = time.perf_counter()
        if not self.unsent or not (flush or now - self.sent_at > REPORT_SECONDS):
            return
        with self.changed:
            self.forget_received()
            self.handed_in.append(HandedIn(self.calls_made, self.unsent))
            self.calls_made += 1
            self.unsent = []
            self.sent_at = now
            self.hand_in(self.handed_in[-1])

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
