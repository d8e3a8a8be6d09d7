"""The data flow of a schedule in one process: which rows can run, and which versions some row may still ask for."""

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ray_pcasgd.agents.mailbox import FALLBACK_VERSIONS
from ray_pcasgd.agents.peer import Peer, Received
from ray_pcasgd.base.state import State
from ray_pcasgd.engines.base import Leaving, Pause, RunError
from ray_pcasgd.engines.failures import require_own, restoring
from ray_pcasgd.records import Read, Row


@dataclass
class Published:
    """One version of an agent, as its readers see it; the direction comes once it is computed."""

    weights: Tensor
    buffers: Tensor
    direction: Tensor | None = None
    mass: float = 1.0

    def parts(self) -> list[Any]:
        """Return what ``of`` makes a version of again."""
        return [self.weights, self.buffers, self.direction, self.mass]

    @classmethod
    def of(cls, parts: list[Any], device: torch.device) -> "Published":
        """Return a version from its parts."""
        weights, buffers, direction, mass = parts
        return cls(weights.to(device), buffers.to(device), None if direction is None else direction.to(device), mass)


class DataFlow:
    """Executes a schedule's rows in the order of their data flow, not of their clocks.

    A row can run once its agent is at the row's step and every version that it reads is published, with its direction
    where the rule needs that.
    """

    leaving = Leaving()
    """Whether the next pause is to come as soon as it can."""

    def __init__(self, rows: Iterator[Row | None], agents: Sequence[Peer], recorded: Sequence[Row] = ()) -> None:
        specs = [agent.spec for agent in agents]
        self.recipe = specs[0].recipe
        self.agents = agents
        self.rows = rows
        self.window: deque[Row] = deque()
        self.published: list[dict[int, Published]] = [{0: Published(a.weights, a.buffers)} for a in agents]
        self.isolated: dict[int, int] = {}
        """The last versions of agents that have left the run."""
        self.last_read: dict[tuple[int, int], int] = {(s.agent, k): 0 for s in specs for k in s.neighbors}
        self.readers = [[s.agent for s in specs if k in s.neighbors] for k in range(len(specs))]
        self.unread: list[dict[int, set[int]]] = [{0: set(readers)} for readers in self.readers]
        """Where every version is read: who has yet to read each."""
        self.to_read = Counter(read[:2] for row in recorded for read in row.reads if row.step < self.recipe.num_steps)
        """Of a recorded schedule: by agent and version, how often it will still be read. An agent that came back into
        the recorded run read versions that others have read, too."""
        self.is_recorded = bool(recorded)
        self.losses: list[Any] = [None] * len(agents)
        """Of each agent's next step, where it is computed already."""
        self.drawn = 0
        """Rows that the schedule was asked for."""
        self.evaluations = 0
        """Evaluations that all agents have come to."""
        self.started = time.perf_counter()

    def pause(self) -> Iterator[Pause]:
        """Yield a pause where all agents have come to a further evaluation, or one is asked for; between rows."""
        running = [agent.version for agent in self.agents if self.is_running(agent.spec.agent)]
        is_due = bool(running) and min(running) // self.recipe.evaluate_every > self.evaluations
        if running and (is_due or self.leaving.is_asked):
            self.evaluations = min(running) // self.recipe.evaluate_every
            yield Pause(min(running), max(agent.version for agent in self.agents), self.state)

    def state(self) -> State:
        """Return all that the rows to come depend on; its tensors are those in use."""
        return {
            "agents": [agent.state() for agent in self.agents],
            "losses": self.losses,
            "window": list(self.window),
            "published": [{v: p.parts() for v, p in versions.items()} for versions in self.published],
            "isolated": self.isolated,
            "last_read": self.last_read,
            "unread": [{v: sorted(readers) for v, readers in versions.items()} for versions in self.unread],
            "to_read": dict(self.to_read),
            "drawn": self.drawn,
            "evaluations": self.evaluations,
            "seconds": time.perf_counter() - self.started,
        }

    def go_on(self, state: State | None) -> None:
        """Go on from a state, where one is given.

        Raises:
            StateError: it is not one of this run.

        """
        if state is None:
            return
        with restoring():
            require_own(state, self.state(), len(self.agents))
            self.restore(state)

    def restore(self, state: State) -> None:
        """Go on from a state, with the same schedule from its beginning."""
        device = self.agents[0].weights.device
        for agent, own in zip(self.agents, state["agents"], strict=True):
            agent.restore(own)
        self.losses, self.isolated, self.last_read = state["losses"], state["isolated"], state["last_read"]
        self.window = deque(state["window"])
        self.published = [
            {version: Published.of(parts, device) for version, parts in versions.items()}
            for versions in state["published"]
        ]
        self.unread = [{v: set(readers) for v, readers in versions.items()} for versions in state["unread"]]
        self.to_read = Counter(state["to_read"])
        self.drawn, self.evaluations = state["drawn"], state["evaluations"]
        self.started = time.perf_counter() - state["seconds"]
        for _ in range(self.drawn):
            next(self.rows)

    def take_ready(self) -> list[Row]:
        """Take the rows that can run now, in the schedule's order; an empty list once all rows have run."""
        limit = 2 * len(self.agents)
        while True:
            is_exhausted = self.refill(limit)
            rows = [row for row in self.window if row.agent not in self.isolated]
            # Of each agent only its next row can be ready.
            next_rows = {row.agent: row for row in reversed(rows)}
            ready = [row for row in rows if next_rows[row.agent] is row and self.is_ready(row)]
            if ready:
                taken = set(ready)
                self.window = deque(row for row in rows if row not in taken)
                return ready
            if not rows:
                # All of them are of agents that have left; others may still have steps to take.
                self.window.clear()
                if is_exhausted:
                    return []
                continue
            if is_exhausted:
                raise RunError(self.why_stuck(rows[0]))
            limit *= 2

    def refill(self, limit: int) -> bool:
        """Draw rows until there are so many; return whether there are no more."""
        while len(self.window) < limit:
            row = next(self.rows, None)
            if row is None:
                return True
            self.drawn += 1
            if row.step < self.recipe.num_steps:
                self.window.append(row)
        return False

    def is_ready(self, row: Row) -> bool:
        """Return whether a row can run now."""
        version = self.agents[row.agent].version
        at_its_step = version == row.step or (row.kind == "rejoined" and version < row.step)
        return at_its_step and all(
            self.is_gone(read.neighbor, read.version) or self.is_here(row.agent, read) for read in row.reads
        )

    def is_gone(self, agent: int, version: int) -> bool:
        """Return whether an agent left the run before it came to that version."""
        return agent in self.isolated and version > self.isolated[agent]

    def is_here(self, agent: int, read: Read) -> bool:
        """Return whether what an agent reads is published."""
        published = self.published[read.neighbor].get(read.version)
        if published is None or not self.recipe.needs_direction(agent, read):
            return published is not None
        return published.direction is not None or read.neighbor in self.isolated

    def why_stuck(self, row: Row) -> str:
        """Return why a row never becomes ready."""
        for read in row.reads:
            if not self.is_here(row.agent, read):
                return (
                    f"schedule: agent {row.agent} reads version {read.version} of agent {read.neighbor} at step "
                    f"{row.step}, and no row before it publishes that version"
                )
        return f"schedule: agent {row.agent} has a row for step {row.step} and none for the step before it"

    def receive(self, row: Row) -> list[Received]:
        """Return what a row reads; agents that have left the run are not read."""
        received = []
        for read in row.reads:
            if not self.is_gone(read.neighbor, read.version):
                version = self.published[read.neighbor].get(read.version)
                if version is None:
                    raise RunError(
                        f"schedule: agent {row.agent} reads version {read.version} of agent {read.neighbor} at step "
                        f"{row.step}, after newer ones or once more; allowed is each in its turn"
                    )
                direction = version.direction
                if direction is None and self.recipe.rule.needs_directions:
                    direction = torch.zeros_like(version.weights)
                received.append(Received(read, version.weights, version.buffers, direction, version.mass))
        return received

    def publish(self, row: Row) -> None:
        """Publish the version that a row came to, and drop what is not needed any more."""
        agent = self.agents[row.agent]
        self.published[row.agent][agent.version] = Published(agent.weights, agent.buffers, mass=agent.mass)
        self.forget(row)

    def forget(self, row: Row) -> None:
        """Drop the versions that no later row can ask for: reads of one link never fall back by more than one."""
        if self.agents[row.agent].pushes:
            self.forget_read(row)
            return
        for read in row.reads:
            self.last_read[row.agent, read.neighbor] = read.version
        for k in (row.agent, *(read.neighbor for read in row.reads)):
            newest = self.agents[k].version
            needed = [self.last_read[i, k] for i in self.readers[k] if self.is_running(i)]
            horizon = min([newest, *(version - FALLBACK_VERSIONS for version in needed)])
            for version in [v for v in self.published[k] if v < horizon]:
                del self.published[k][version]

    def forget_read(self, row: Row) -> None:
        """Drop the versions that all agents have read, where agents read each version once, in any order."""
        for read in row.reads:
            self.unread[read.neighbor].get(read.version, set()).discard(row.agent)
            self.to_read[read[:2]] -= 1
        self.unread[row.agent][row.step + 1] = set(self.readers[row.agent])
        for k in (row.agent, *(read.neighbor for read in row.reads)):
            for version, readers in list(self.unread[k].items()):
                is_wanted = self.to_read[k, version] > 0 if self.is_recorded else any(map(self.is_running, readers))
                if version < self.agents[k].version and not is_wanted:
                    del self.unread[k][version], self.published[k][version]

    def is_running(self, agent: int) -> bool:
        """Return whether an agent takes further steps."""
        return self.agents[agent].version < self.recipe.num_steps and agent not in self.isolated
