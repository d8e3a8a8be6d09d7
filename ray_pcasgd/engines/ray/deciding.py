"""How an actor asks its policy: it reads the clocks, and waits under its lock for as long as the policy says."""

import time

from ray_pcasgd.engines.live.decisions import Compute, Decision, Moment, Policy, Wait
from ray_pcasgd.engines.ray.shell import Shell, StoppedError


def moment() -> Moment:
    """Return what time it is."""
    return Moment(time.time(), time.monotonic())


def await_decision(shell: Shell, policy: Policy[Decision]) -> Decision:
    """Return what a policy decides, once it no longer waits; called with the lock held, which is free while it waits.

    What has begun is completed where nothing is waited for: an answer that was asked for is not thrown away.

    Raises:
        StoppedError: the run is being stopped, and there is something to wait for, or to begin.

    """
    while True:
        decision = policy.decide(moment())
        shell.unsent += policy.events()
        if shell.stopped and isinstance(decision, Compute | Wait):
            raise StoppedError
        if not isinstance(decision, Wait):
            return decision
        until = decision.until
        shell.changed.wait(None if until is None else max(0.0, until - time.monotonic()))
