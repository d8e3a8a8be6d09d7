"""Drives an actor by a live policy: it reads the clocks, waits as the policy says, and acts as it decides."""

import time
from typing import TypeVar

from ray_pcasgd.base.state import State
from ray_pcasgd.engines.live.decisions import Compute, Moment, Policy, Wait
from ray_pcasgd.engines.ray.actor import Actor
from ray_pcasgd.engines.ray.cuts import AgentState, portable_state
from ray_pcasgd.engines.ray.driver import Driver
from ray_pcasgd.engines.ray.mail import StoppedError

Decided = TypeVar("Decided")


def moment() -> Moment:
    """Return what time it is."""
    return Moment(time.time(), time.monotonic())


class LiveDriver(Driver):
    """What the drivers of all families have in common."""

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self.is_leaving = False
        """Whether the agent was asked to leave the run on purpose."""
        self.kept_at = time.monotonic()

    def await_decision(self, policy: Policy[Decided]) -> Decided:
        """Return what a policy decides, once it no longer waits; called with the lock held, which is free meanwhile.

        What has begun is completed where nothing is waited for: an answer that was asked for is not thrown away.

        Raises:
            StoppedError: the run is being stopped, and there is something to wait for, or to begin.

        """
        actor = self.actor
        while True:
            decision = policy.decide(moment())
            actor.unsent += policy.events()
            if actor.stopped and isinstance(decision, Compute | Wait):
                raise StoppedError
            if not isinstance(decision, Wait):
                return decision
            until = decision.until
            actor.changed.wait(None if until is None else max(0.0, until - time.monotonic()))

    def keep_state(self, state: State) -> None:
        """Give the supervisor the agent's part of the run's state."""
        actor = self.actor
        part = AgentState(actor.spec.agent, actor.version, 0, portable_state(state), is_isolated=actor.is_isolated)
        actor.unsent.append(part)
        self.kept_at = time.monotonic()

    @property
    def is_time_to_keep(self) -> bool:
        """Whether the agent's part of the run's state is due."""
        every = self.actor.driving.state_seconds
        return every is not None and time.monotonic() - self.kept_at >= every

    def leave(self) -> None:
        """Take in that the agent is asked to leave the run on purpose."""
        self.is_leaving = True
