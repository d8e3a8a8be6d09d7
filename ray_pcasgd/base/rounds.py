"""Rounds of local steps: how many mini-batches each agent takes from one version to the next. Knows no tensors."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rounds:
    """Which mini-batches lie between an agent's versions.

    A version is the end of a round of ``H`` mini-batches; an agent's last round may have fewer.

    >>> rounds = Rounds(num_steps=25, local_steps=(10, 1))
    >>> [rounds.steps_in(0, version) for version in range(rounds.last(0))], rounds.last(1)
    ([10, 10, 5], 25)
    """

    num_steps: int
    """Mini-batches that each agent takes."""
    local_steps: tuple[int, ...] = ()
    """H of each agent; empty: 1 for all."""

    def length(self, agent: int) -> int:
        """Return H, the mini-batches of a whole round."""
        return self.local_steps[agent] if self.local_steps else 1

    @property
    def longest(self) -> int:
        """The largest H."""
        return max(self.local_steps, default=1)

    @property
    def are_single(self) -> bool:
        """Whether each round is one mini-batch."""
        return self.longest == 1

    def last(self, agent: int) -> int:
        """Return the agent's last version."""
        return self.versions_in(agent, self.num_steps)

    def versions_in(self, agent: int, steps: int) -> int:
        """Return the rounds that so many mini-batches reach into, the last one perhaps in part."""
        return -(-steps // self.length(agent))

    def progress(self, agent: int, version: int) -> int:
        """Return the mini-batches that the agent has taken at a version."""
        return min(version * self.length(agent), self.num_steps)

    def steps_in(self, agent: int, version: int) -> int:
        """Return the mini-batches of the round that begins at a version."""
        return self.progress(agent, version + 1) - self.progress(agent, version)

    def mean_version(self, agent: int, versions: Mapping[int, int]) -> float:
        """Return what others' versions come to on average, counted in the agent's own rounds; 0 of none."""
        taken = sum(self.progress(k, version) for k, version in versions.items())
        return taken / (len(versions) * self.length(agent)) if versions else 0.0

    def evaluated_every(self, every: int) -> int:
        """Return the steps between evaluations: the smallest multiple of ``every`` that no round is longer than."""
        return -(-self.longest // every) * every

    def evaluation_point(self, agent: int, version: int, every: int) -> int | None:
        """Return the step that is evaluated at a version, if one is.

        All agents are evaluated at the same steps, each at the end of the round in which it comes to that step: at the
        multiples of ``evaluated_every``, and after the last step. What lies within the longest round before the end is
        left out, since rounds of different agents end elsewhere there.
        """
        progress = self.progress(agent, version)
        if progress == self.num_steps:
            return self.num_steps
        apart = self.evaluated_every(every)
        point = progress // apart * apart
        is_reached = self.progress(agent, version - 1) < point <= self.num_steps - self.longest
        return point if is_reached else None
