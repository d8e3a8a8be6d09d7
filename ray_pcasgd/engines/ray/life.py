"""Signs of life of agents: an agent whose process hangs does not answer, but no call to it ever fails."""

import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import ray

from ray_pcasgd.engines.ray.crew import ActorGroup

LAST_SECONDS = 1.0
"""Seconds that an overdue answer still gets, in case this process was held up itself."""


class _Question(NamedTuple):
    call: Any
    asked_at: float


class Heartbeats:
    """Asks agents for signs of life while they train."""

    def __init__(self, crew: ActorGroup) -> None:
        self._crew = crew
        # Those who wait for a silent agent give up first: it may speak again.
        self.seconds = 2 * crew.driving.wait_seconds
        self._questions: dict[int, _Question] = {}

    def missing(self, agents: Iterable[int]) -> list[int]:
        """Return those of the agents that have not answered for ``seconds``."""
        return [agent for agent in agents if self._is_missing(agent)]

    def _is_missing(self, agent: int) -> bool:
        question = self._questions.get(agent)
        age = time.monotonic() - question.asked_at if question else self.seconds
        if question and age < self.seconds / 4:
            return False
        is_overdue = age > self.seconds
        if question and not ray.wait([question.call], timeout=LAST_SECONDS if is_overdue else 0)[0]:
            return is_overdue
        self._questions[agent] = _Question(self._crew.actors[agent].ready.remote(), time.monotonic())
        return False
