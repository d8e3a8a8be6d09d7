"""Many peers as one: all that they hold lies in one table each, and a group of them steps by a few operations on it."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ray_pcasgd.agents.clipping import clipped
from ray_pcasgd.agents.drift import velocity_gain
from ray_pcasgd.agents.learner import NonFiniteLossError
from ray_pcasgd.agents.participant import Published
from ray_pcasgd.agents.peer import Peer
from ray_pcasgd.base import numerics
from ray_pcasgd.base.state import leaves_of
from ray_pcasgd.engines.base import RunError
from ray_pcasgd.engines.local.batching import stack
from ray_pcasgd.engines.local.history import History, Integers, index_of
from ray_pcasgd.engines.local.links import GroupReads, Links
from ray_pcasgd.engines.local.networks import StackedNetworks
from ray_pcasgd.engines.local.streams import Streams
from ray_pcasgd.engines.local.versions import Versions
from ray_pcasgd.records import IndexedReads, Own, Row

_NUMBERS_AT_ONCE = 1 << 20
"""Numbers of one vector of each of several agents: 4 MB, so that those of a step stay in a cache together."""

_NEVER = 1 << 62
"""A version that no peer comes to."""

_LARGEST = torch.finfo(torch.float32).max


class PeersInTable:
    """The peers of a run, with their published versions.

    The table is what counts; ``settle`` puts what it holds of a peer into the peer itself, for whoever looks there.

    Args:
        peers: the peers, in the order of their numbers.
        slack: by how many versions later reads may fall back.

    """

    def __init__(self, peers: Sequence[Peer], slack: int) -> None:
        first = peers[0]
        self.peers = peers
        self._recipe = first.spec.recipe
        self._rule = self._recipe.rule
        self._optimizer, self._parts = first.optimizer, first.replica.parts
        self._length = first.weights.numel()
        self._networks = StackedNetworks(first.replica, self._recipe.task.loss)
        self._links = Links([peer.spec for peer in peers], slack)
        self._batches = Streams([peer.batches for peer in peers])
        self._curvature_batches = Streams([peer.curvature_batches for peer in peers])
        self._step_size = lru_cache(maxsize=1 << 12)(self._recipe.step_size_at)
        self.losses: list[float | None] = []
        """Of the next step of each peer, where it is computed already."""
        self._history: History
        self._directions: Tensor
        """The newest directions, shape (A, D), where they are not published."""
        self._velocities: Tensor
        """The mean velocities, shape (A, D), where the rule needs them."""
        self._due: Integers
        """From which version on each peer's curvature is to be measured."""
        self._optimizer_states: Any
        self._rule_states: Any

    @property
    def versions(self) -> Integers:
        """The present version of each peer."""
        return self._history.newest

    @property
    def running(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Who takes further steps."""
        running: np.ndarray[Any, np.dtype[np.bool_]] = self.versions < self._recipe.num_steps
        return running

    def take_in(self, versions: Versions) -> None:
        """Take in what the peers hold now, and what they have published."""
        peers = self.peers
        self.losses = [peer.loss for peer in peers]
        self._history = History(len(peers), self._length, self._recipe.sends_directions)
        self._take_in_versions(versions)
        self._links.restore(versions.last_read)
        kept = 0 if self._recipe.sends_directions else len(peers)
        self._directions = torch.stack([peer.direction for peer in peers[:kept]]) if kept else torch.empty(0)
        paths = [peer.displacements for peer in peers]
        self._velocities = torch.stack(
            [path.state()["velocity"] if path is not None else torch.empty(0) for path in paths]
        )
        self._due = np.array([_NEVER if peer.curvature is None else peer.curvature.next_due for peer in peers])
        self._optimizer_states = stack([peer.optimizer_state for peer in peers])
        self._rule_states = stack([peer.rule_state for peer in peers])

    def _take_in_versions(self, versions: Versions) -> None:
        history, published = self._history, [versions.by_agent[agent] for agent in range(len(self.peers))]
        for agent, own in enumerate(published):
            history.begin(agent, min(own))
        while agents := [a for a, own in enumerate(published) if history.newest[a] < max(own)]:
            places = index_of(history.add(np.array(agents)))
            these = [published[a][int(history.newest[a])] for a in agents]
            history.weights[places] = torch.stack([one.weights for one in these])
            if self._recipe.sends_directions:
                nothing = torch.zeros(self._length)
                found = [nothing if one.direction is None else one.direction for one in these]
                history.directions[places] = torch.stack(found)

    def settle(self, agent: int) -> None:
        """Put into a peer what the table holds of it."""
        peer, at = self.peers[agent], np.array([agent])
        peer.version, peer.loss = int(self.versions[agent]), self.losses[agent]
        peer.weights = self._history.weights[int(self._history.newest_places(at)[0])].clone()
        if not self._recipe.sends_directions:
            peer.direction = self._directions[agent].clone()
        elif (newest := peer.version - (peer.loss is None)) >= self._history.first[agent]:
            peer.direction = self._history.directions[int(self._history.places(at, np.array([newest]))[0])].clone()
        peer.optimizer_state, peer.rule_state = (
            tree_map(lambda tensor: tensor[agent].clone(), states)
            for states in (self._optimizer_states, self._rule_states)
        )
        if peer.displacements is not None:
            own = {"velocity": self._velocities[agent], "weights": peer.weights, "version": peer.version}
            peer.displacements.restore(own, peer.device)
        peer.load()

    def versions_state(self, published: Versions) -> dict[str, Any]:
        """Return the state of ``published``, once it has taken in what is here; all peers are settled."""
        history = self._history
        for agent, peer in enumerate(self.peers):
            own: dict[int, Published] = {}
            for version in range(int(history.first[agent]), int(history.newest[agent]) + 1):
                place = int(history.places(np.array(agent), np.array(version)))
                has_direction = version < history.newest[agent] or self.losses[agent] is not None
                direction = history.directions[place].clone() if has_direction and peer.publishes_directions else None
                own[version] = Published(history.weights[place].clone(), peer.buffers, direction)
            published.by_agent[agent] = own
        published.last_read = self._links.last_reads()
        return published.state()

    # Steps.

    def prepare(self, agents: Integers) -> None:
        """Compute the directions of peers at their present versions; they take further steps.

        Raises:
            NonFiniteLossError: the loss of one, its direction or its next step is not finite.

        """
        for some in self._in_parts(agents):
            at, places = index_of(some), index_of(self._history.newest_places(some))
            weights = self._history.weights[places]
            inputs, targets = self._batches.next_of(some)
            losses, gradients = self._networks.gradients(weights, inputs, targets)
            gradients = clipped(self._recipe.gradient_clipping, gradients)
            direction: Callable[..., tuple[Any, Tensor]] = partial(self._optimizer.direction, parts=self._parts)
            if not self._optimizer.takes_leading_axes:
                direction = torch.func.vmap(direction)
            states, directions = direction(_rows(self._optimizer_states, at), weights, gradients)
            _write(self._optimizer_states, at, states)
            if self._recipe.sends_directions:
                self._history.directions[places] = directions
            else:
                self._directions[at] = directions
            for agent, loss in zip(some.tolist(), losses.tolist(), strict=True):
                self.losses[agent] = loss
            self._check_directions(some, directions)

    def _check_directions(self, agents: Integers, directions: Tensor) -> None:
        """Do what ``Learner.check_finite`` does: by the lengths, and where they tell nothing, by that itself."""
        lengths = torch.linalg.vector_norm(directions, dim=1).tolist()
        for agent, length in zip(agents.tolist(), lengths, strict=True):
            loss = self.losses[agent]
            assert loss is not None
            if not (math.isfinite(loss) and self._step_size(int(self.versions[agent])) * length <= _LARGEST):
                self.settle(agent)
                self.peers[agent].check_finite(loss)

    def step(self, rows: Sequence[Row]) -> tuple[list[float], dict[str, list[float]]]:
        """Let peers take their rows, each of another peer; return the steps' losses, and the rule's measures.

        Raises:
            NonFiniteLossError: the next version of one is not finite.
            RunError: a version is read that is not there any more.

        """
        if self._history.num_free < len(rows):
            self._history.forget(self._links.horizons(self.versions, self.running))
        group = self._links.read(rows)
        self._require_versions(group)
        places = np.where(group.is_read, self._history.places(group.neighbors, group.versions), 0)
        self._measure_curvatures(group, places)
        measures: dict[str, list[float]] = {}
        for some in self._in_parts(np.arange(len(rows))):
            for name, values in self._step(group, places, some).items():
                measures.setdefault(name, []).extend(values.tolist())
        self._links.note(group)
        losses = [self.losses[row.agent] for row in rows]
        for row in rows:
            self.losses[row.agent] = None
        return losses, measures  # type: ignore[return-value]  # a row runs once its loss is known

    def _step(self, group: GroupReads, places: Integers, some: Integers) -> dict[str, Tensor]:
        """Let the peers of some of a group's rows step; return the rule's measures, each of shape (B,)."""
        history, agents = self._history, group.agents[some]
        at, own_places = index_of(agents), index_of(history.newest_places(agents))
        versions = self.versions[agents]
        steps = versions.tolist()
        own = Own(
            history.weights[own_places],
            history.directions[own_places] if self._recipe.sends_directions else self._directions[at],
            _numbers(group.own_mixing[some]),
            torch.tensor([self._step_size(step) for step in steps]),
            self._coefficients(agents.tolist(), steps),
        )
        velocities = self._velocities[at]
        reads = IndexedReads(
            history.weights,
            history.directions,
            torch.from_numpy(places[some]),
            velocities,
            _numbers(group.mixing[some]),
            _numbers(group.staleness[some]),
            _numbers(group.age[some]),
            torch.from_numpy(group.reliable[some]),
        )
        states, update = self._rule.step_many(_rows(self._rule_states, at), own, reads)
        self._check_versions(agents, update.weights)
        _write(self._rule_states, at, states)
        if velocities.shape[1]:
            # In place, and in the table itself where they are a view of it.
            velocities.lerp_(update.weights - own.weights, _numbers(velocity_gain(versions + 1))[:, None])
            if not isinstance(at, slice):
                self._velocities[at] = velocities
        next_places = index_of(history.add(agents))  # it may put a longer table into the place of this one
        history.weights[next_places] = update.weights
        return update.measures

    def _require_versions(self, group: GroupReads) -> None:
        """Raise ``RunError`` where a row reads a version that was read by all, or whose direction never comes."""
        last = self._recipe.num_steps
        is_gone = group.is_read & (group.versions < self._history.first[group.neighbors])
        needs = group.is_read & ~group.reliable & (group.staleness > 0) & self._recipe.sends_directions
        for row, slot in np.argwhere(is_gone | (needs & (group.versions >= last))):
            agent, step = group.agents[row], self.versions[group.agents[row]]
            why = "after newer ones or once more; allowed is each in its turn"
            raise RunError(
                f"schedule: agent {agent} reads version {group.versions[row, slot]} of agent "
                f"{group.neighbors[row, slot]} at step {step}, "
                f"{why if is_gone[row, slot] else 'and no row before it publishes that version'}"
            )

    def _check_versions(self, agents: Integers, weights: Tensor) -> None:
        """Do what ``Learner.check_version`` does."""
        for place in (~weights.sum(1).isfinite()).nonzero().flatten().tolist():
            if not numerics.is_finite(weights[place]):
                agent = int(agents[place])
                raise NonFiniteLossError(agent, int(self.versions[agent]), math.nan, "weights")

    def _coefficients(self, agents: Sequence[int], steps: Sequence[int]) -> dict[str, Tensor]:
        """Return the rule's numbers, each of shape (B,)."""
        peers, rule = self.peers, self._rule
        each = [
            rule.coefficients(agent, step) | peers[agent].measured_coefficients(0)
            for agent, step in zip(agents, steps, strict=True)
        ]
        return {name: torch.tensor([one[name] for one in each]) for name in each[0]}

    def _measure_curvatures(self, group: GroupReads, places: Integers) -> None:
        """Do what ``Peer.measure_curvature`` does for those of a group for whom it is due."""
        due = np.flatnonzero(self.versions[group.agents] >= self._due[group.agents])
        if not self._rule.measures_curvature or not len(due):
            return
        late = ~group.reliable & (group.age <= self._rule.age_max) & (group.staleness > 0)
        for some in self._in_parts(due[late[due].any(1)]):
            agents = group.agents[some]
            mixing = _numbers(np.where(late[some], group.mixing[some], 0.0))
            directions = numerics.sums_by_place(mixing, torch.from_numpy(places[some]), self._history.directions)
            weights = self._history.weights[index_of(self._history.newest_places(agents))]
            batches = self._curvature_batches.at(agents, self.versions[agents])
            found = self._networks.curvatures(weights, *batches, directions)
            for agent, value, direction in zip(agents.tolist(), found, directions, strict=True):
                peer, version = self.peers[agent], int(self.versions[agent])
                assert peer.curvature is not None
                state = tree_map(lambda tensor, own=agent: tensor[own], self._optimizer_states)
                peer.curvature.take(version, [peer.feedback_of(value, state, direction)])
                self._due[agent] = peer.curvature.next_due

    def _in_parts(self, agents: Integers) -> Iterator[Integers]:
        """Yield the agents in parts whose vectors fit into a cache."""
        length = max(1, _NUMBERS_AT_ONCE // self._length)
        for first in range(0, len(agents), length):
            yield agents[first : first + length]


def _numbers(values: Any) -> Tensor:
    """Return an array as a tensor of float32."""
    return torch.from_numpy(np.asarray(values, np.float32))


def _rows(states: Any, at: slice | Tensor) -> Any:
    """Return the states of some agents, of a tree whose tensors have a leading axis of all."""
    return tree_map(lambda tensor: tensor[at], states) if leaves_of(states) else states


def _write(states: Any, at: slice | Tensor, new: Any) -> None:
    """Write the states of some agents."""
    for tensor, own in zip(leaves_of(states), leaves_of(new), strict=True):
        tensor[at] = own
