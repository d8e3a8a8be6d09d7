"""Drives an actor by a live policy: it reads the clocks, waits as the policy says, and acts as it decides."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

from ray_pcasgd.base.state import State, pace
from ray_pcasgd.engines.live.decisions import Compute, Moment, Policy, Wait
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.messages import Parcel
from ray_pcasgd.engines.ray.actor import Actor
from ray_pcasgd.engines.ray.agent_state import AgentState
from ray_pcasgd.engines.ray.cuts import portable_state
from ray_pcasgd.engines.ray.driver import Driver
from ray_pcasgd.engines.ray.mail import StoppedError

Decided = TypeVar("Decided")


def moment() -> Moment:
    """Return what time it is."""
    return Moment(time.time(), time.monotonic())


class LiveDriver(Driver):
    """What the drivers of all families have in common."""

    policy: Any
    """What decides for the agent; each family's driver has its own kind."""

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self.is_leaving = False
        """Whether the agent was asked to leave the run on purpose."""
        self.kept_at = time.monotonic()
        self.cost_seconds = 0.0
        """What it took the agent to give its last part of the run's state."""
        self.coming: set[tuple[int, int]] = set()
        """Senders and versions of messages that are under way, and for which the agent may be waiting."""
        self.waited_seconds = 0.0
        """How long the newest decision was waited for."""

    def has_come(self, parcels: Sequence[Parcel], key: tuple[int, int]) -> bool:
        """Return whether parcels are here; if not, who waits for a decision is woken once one of them is.

        Args:
            parcels: What a message holds.
            key: Its sender and version.

        """
        transport = self.actor.transport
        missing = [parcel for parcel in parcels if not transport.is_here(parcel)]
        if missing and key not in self.coming:
            self.coming.add(key)
            transport.when_here(missing[0], partial(self._wake, key))
        return not missing

    def _wake(self, key: tuple[int, int]) -> None:
        """Have it decided anew, from another thread than the driver's."""
        with self.actor.changed:
            self.coming.discard(key)
            self.actor.changed.notify_all()

    def await_decision(self, policy: Policy[Decided]) -> Decided:
        """Return what a policy decides, once it no longer waits; called with the lock held, which is free meanwhile.

        What has begun is completed where nothing is waited for: an answer that was asked for is not thrown away.

        Raises:
            StoppedError: the run is being stopped, and there is something to wait for, or to begin.

        """
        actor = self.actor
        self.waited_seconds = 0.0
        while True:
            asked = time.monotonic()
            decision = policy.decide(moment())
            actor.unsent += policy.events()
            if actor.stopped and isinstance(decision, Compute | Wait):
                raise StoppedError
            if not isinstance(decision, Wait):
                return decision
            until = decision.until
            actor.changed.wait(None if until is None else max(0.0, until - time.monotonic()))
            self.waited_seconds += time.monotonic() - asked

    def keep_state(self, state: State) -> None:
        """Give the supervisor the agent's part of the run's state."""
        actor, began = self.actor, time.monotonic()
        part = AgentState(actor.spec.agent, actor.version, 0, portable_state(state), is_isolated=actor.is_isolated)
        actor.unsent.append(part)
        self.kept_at = time.monotonic()
        self.cost_seconds = self.kept_at - began

    @property
    def is_time_to_keep(self) -> bool:
        """Whether the agent's part of the run's state is due."""
        every = self.actor.driving.state_seconds
        return every is not None and time.monotonic() - self.kept_at >= pace(every, self.cost_seconds)

    def leave(self) -> None:
        """Take in that the agent is asked to leave the run on purpose."""
        self.is_leaving = True

    def begin(self) -> None:
        """Take in that the run begins."""
        self.policy.started_at = self.actor.started_at

    def set_links(self, injection: InjectedDelays) -> None:
        """Take in what an injection says of links."""
        self.policy.links(injection)

    def lost(self, neighbor: int) -> None:
        """Take in that another agent is gone."""
        self.policy.lost(neighbor)

    def known(self, neighbor: int) -> int:
        """Return the newest version of another agent that is known here."""
        found: int = self.policy.known(neighbor)
        return found

    def report_leaving(self) -> None:
        """Report that the agent has left, if it was asked to."""
        if self.is_leaving:
            with self.actor.changed:
                self.policy.left()
                self.actor.unsent += self.policy.events()
