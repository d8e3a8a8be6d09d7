"""Exchange: whom an agent reads and sends to at a step. It is all that planning needs of a rule; knows no tensors."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

from ray_pcasgd.base.randomness import generator

Reading = Literal["newest", "news", "every"]
"""What of a neighbor is read at a step, see ``Rule.reading``."""


class Exchange(Protocol):
    """Says who reads whom, and who sends to whom; the same in every engine."""

    @property
    def reading(self) -> Reading:
        """What of a neighbor is read at a step, see ``Rule.reading``."""
        ...

    @property
    def waits_for_partners(self) -> bool:
        """Whether a barrier is about those alone whom the agent reads at the step."""
        ...

    def partners(self, seed: int, agent: int, step: int, neighbors: tuple[int, ...]) -> tuple[int, ...]:
        """Return the neighbors that an agent reads at this step, in rising order."""
        ...

    def receivers(self, seed: int, agent: int, version: int, neighbors: tuple[int, ...]) -> tuple[int, ...]:
        """Return the neighbors that an agent sends a version to, in rising order."""
        ...


@dataclass(frozen=True)
class AllNeighbors:
    """Every neighbor is read at each step, and is sent each version."""

    reading: Reading = "newest"
    waits_for_partners: bool = False

    def partners(self, seed: int, agent: int, step: int, neighbors: tuple[int, ...]) -> tuple[int, ...]:
        """Return all neighbors."""
        return neighbors

    def receivers(self, seed: int, agent: int, version: int, neighbors: tuple[int, ...]) -> tuple[int, ...]:
        """Return all neighbors."""
        return neighbors


@dataclass(frozen=True)
class RandomNeighbor:
    """Now and then one random neighbor is read, or, where versions are pushed, is sent one."""

    every: float
    """Steps from one exchange to the next, on average; 1 or more."""
    pushes: bool
    waits_for_partners: bool = False

    @property
    def reading(self) -> Reading:
        """What was pushed is read once."""
        return "news" if self.pushes else "newest"

    def partners(self, seed: int, agent: int, step: int, neighbors: tuple[int, ...]) -> tuple[int, ...]:
        """Return the neighbors that the agent pulls from at this step."""
        return neighbors if self.pushes else self._drawn(seed, agent, step, neighbors)

    def receivers(self, seed: int, agent: int, version: int, neighbors: tuple[int, ...]) -> tuple[int, ...]:
        """Return the neighbors that the agent pushes this version to."""
        return self._drawn(seed, agent, version, neighbors) if self.pushes else neighbors

    def _drawn(self, seed: int, agent: int, number: int, neighbors: tuple[int, ...]) -> tuple[int, ...]:
        """Return one random neighbor with probability ``1 / every``, else an empty tuple."""
        random = generator(seed, "gossip", agent, number)
        if not neighbors or random.random() >= 1 / self.every:
            return ()
        return (neighbors[int(random.integers(len(neighbors)))],)


@dataclass(frozen=True)
class RandomPairs:
    """All agents meet in random pairs, drawn anew at each step; of an odd number one stays alone. All are neighbors."""

    reading: Reading = "newest"
    waits_for_partners: bool = True

    def partners(self, seed: int, agent: int, step: int, neighbors: tuple[int, ...]) -> tuple[int, ...]:
        """Return the agent's partner at this step."""
        partner = _drawn_pairs(seed, step, len(neighbors) + 1)[agent]
        return () if partner == agent else (partner,)

    def receivers(self, seed: int, agent: int, version: int, neighbors: tuple[int, ...]) -> tuple[int, ...]:
        """Return the agent's partner at the step that begins with this version, who reads it then."""
        return self.partners(seed, agent, version, neighbors)


@dataclass(frozen=True)
class InPhases:
    """Others are read from step to step, in the same order again and again."""

    read: tuple[tuple[tuple[int, ...], ...], ...]
    """By phase and agent, whom it reads, rising; at step t it is phase ``t mod T``."""
    reading: Reading = "newest"
    waits_for_partners: bool = True

    def partners(self, seed: int, agent: int, step: int, neighbors: tuple[int, ...]) -> tuple[int, ...]:
        """Return those whom the agent reads at this step."""
        return self.read[step % len(self.read)][agent]

    def receivers(self, seed: int, agent: int, version: int, neighbors: tuple[int, ...]) -> tuple[int, ...]:
        """Return those who read the agent at the step that begins with this version."""
        return tuple(k for k in neighbors if agent in self.read[version % len(self.read)][k])


@lru_cache(maxsize=64)
def _drawn_pairs(seed: int, step: int, num_agents: int) -> tuple[int, ...]:
    """Return the partner of each agent, itself where it has none."""
    order = generator(seed, "pairs", step).permutation(num_agents).tolist()
    partner = list(range(num_agents))
    for one, other in zip(order[::2], order[1::2], strict=False):
        partner[one], partner[other] = other, one
    return tuple(partner)
