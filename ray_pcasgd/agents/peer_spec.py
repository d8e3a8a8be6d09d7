"""What the peers of a run share, and what one of them is."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ray_pcasgd.agents.fragments import Fragments
from ray_pcasgd.agents.mailbox import FALLBACK_VERSIONS
from ray_pcasgd.agents.participant import (
    Family,
    LearnerSpec,
    Training,
)
from ray_pcasgd.agents.reliability import ByCluster, ByStaleness
from ray_pcasgd.agents.sent_weights import SentWeights
from ray_pcasgd.agents.wire import Wire
from ray_pcasgd.base.rounds import Rounds
from ray_pcasgd.records import Read
from ray_pcasgd.rules.base import Rule
from ray_pcasgd.rules.exchange import Exchange

PEERS = Family(slack=FALLBACK_VERSIONS, runs_ahead=True, does_without=True, may_be_isolated=True, tells_neighbors=True)
PUSHING_PEERS = replace(PEERS, retention="once", may_be_isolated=False, pushes=True)
"""Those who push shares of their mass, each of which is read once."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Training):
    """What all peers of a run share."""

    rule: Rule
    reliability: ByStaleness | ByCluster
    clusters: tuple[int, ...]
    """The cluster of each agent."""
    local_steps: tuple[int, ...] = ()
    """Mini-batches of each agent from one version to the next; empty: 1 for all."""
    wire: Wire = field(default_factory=Wire)
    """The formats of what they send."""
    combines_first: bool = False
    """Whether agents combine what they have read before a round's local steps (``combining``)."""
    publishes_whole: bool = False
    """Whether versions of which fragments are read are published whole: some row of a plan, or of a recorded schedule,
    comes back as their mean."""
    in_phases: Exchange | None = None
    """Who reads whom at which step, where the graph changes from step to step."""

    @property
    def exchange(self) -> Exchange:
        """Who reads whom, and who sends to whom."""
        return self.rule.exchange if self.in_phases is None else self.in_phases

    @cached_property
    def rounds(self) -> Rounds:
        """Which mini-batches lie between the agents' versions."""
        return Rounds(self.num_steps, self.local_steps)

    @cached_property
    def fragments(self) -> Fragments:
        """Into which parts versions are cut."""
        return Fragments(self.wire.fragments, self.seed)

    @cached_property
    def sent_weights(self) -> SentWeights:
        """What is sent of a version's weights."""
        return SentWeights(self.wire.weights, self.fragments)

    @property
    def has_fragments(self) -> bool:
        """Whether messages hold a part of a version's weights."""
        return self.wire.fragments > 1

    def reliable(self, agent: int, read: Read) -> bool:
        """Return whether ``agent`` trusts what it reads as it is."""
        return self.reliability.reliable(agent, read, self.clusters)

    def message_bytes(self, parameters: int, buffers: int) -> int:
        """Return the bytes of one version's message: weights, mixed buffers and, where it is needed, the direction."""
        numbers = self.fragments.length(parameters)
        direction = self.wire.directions.num_bytes(numbers) if self.sends_directions else 0
        return self.wire.weights.num_bytes(numbers) + direction + 4 * buffers

    @property
    def sends_directions(self) -> bool:
        """Whether messages hold directions."""
        return self.rule.needs_directions and not self.rule.reads_displacements

    def needs_direction(self, agent: int, read: Read) -> bool:
        """Return whether ``agent`` needs the direction at the version that it reads, not its weights alone."""
        return self.sends_directions and self.predicts(agent, read)

    def predicts(self, agent: int, read: Read) -> bool:
        """Return whether ``agent`` may predict by a direction what it reads."""
        # Nothing has led to the start, where it is the direction before a version that is sent with it.
        has_one = read.version > 0 or not self.combines_first
        return self.rule.needs_directions and has_one and read.staleness > 0 and not self.reliable(agent, read)


@dataclass(frozen=True, kw_only=True)
class PeerSpec(LearnerSpec):
    """What one peer is, in numbers."""

    recipe: Recipe
    mixing: tuple[float, ...]
    """w_ik, for each neighbor."""
    own_mixing: float
    samples: tuple[int, ...]
    """Size of each neighbor's shard."""
    borrowed: Any = None
    """Indices of the training samples that candidates are probed on, where they are not those of the agent's shard."""
    out_neighbors: tuple[int, ...] | None = None
    """Who reads the agent; not given: its neighbors, as on every undirected graph."""
    phases: tuple[tuple[float, tuple[float, ...]], ...] = ()
    """w_ii and w_ik of the steps that follow each other, again and again; empty: they are always the same."""

    def mixing_at(self, version: int) -> tuple[float, tuple[float, ...]]:
        """Return w_ii and w_ik of the step that begins with a version."""
        return self.phases[version % len(self.phases)] if self.phases else (self.own_mixing, self.mixing)

    @property
    def family(self) -> Family:
        """What the agent has in common with those of its family."""
        return PUSHING_PEERS if self.recipe.rule.reading == "every" else PEERS

    @property
    def steps_a_version(self) -> int:
        """Mini-batches of the agent's round."""
        return self.recipe.rounds.length(self.agent)

    @property
    def receivers(self) -> tuple[int, ...]:
        """Who may be sent messages."""
        return self.neighbors if self.out_neighbors is None else self.out_neighbors
