"""What agents have published in one process, as far as some row may still ask for it."""

from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from ray_pcasgd.agents.mailbox import Delivery
from ray_pcasgd.agents.participant import LearnerSpec, Participant, Published
from ray_pcasgd.base.state import State
from ray_pcasgd.records import Row


class Versions:
    """The published versions by agent; each is dropped once no row to come can ask for it.

    See ``Family.retention`` for when that is. The present version of an agent stays, unless its readers read each
    version at most once.

    Args:
        specs: the agents.
        counts: by agent and version, how often it will be read; of schedules all of whose rows are known.

    """

    def __init__(self, specs: Sequence[LearnerSpec], counts: Counter[tuple[int, int]] | None) -> None:
        self.by_agent: dict[int, dict[int, Published]] = {spec.agent: {} for spec in specs}
        self.slacks = {k: {s.agent: s.family.slack for s in specs if k in s.neighbors} for k in self.by_agent}
        """Of each agent, who reads it, and by how much a later read may fall back."""
        self.passing = {k for k, slacks in self.slacks.items() if any(slack < 0 for slack in slacks.values())}
        """Agents whose newest version need not stay."""
        self.last_read = {(reader, k): 0 for k, readers in self.slacks.items() for reader in readers}
        self.counts = counts
        """How often a version will still be read. An agent that came back into a recorded run read versions that
        others have read, too."""
        self.unread: dict[int, dict[int, set[int]]] | None = None
        """By agent and version, who has yet to read it, where each reader reads each version once."""
        if counts is None and specs[0].family.retention == "once":
            self.unread = {k: {} for k in self.by_agent}

    def get(self, agent: int, version: int) -> Published | None:
        """Return a version that is here."""
        return self.by_agent[agent].get(version)

    def put(self, agent: int, version: int, published: Published) -> None:
        """Publish a version."""
        self.by_agent[agent][version] = published
        if self.unread is not None:
            self.unread[agent][version] = set(self.slacks[agent])

    def note_reads(self, row: Row) -> None:
        """Take in what a row has read, or would have read for work that was cancelled."""
        for read in row.reads:
            self.last_read[row.agent, read.neighbor] = read.version
            if self.unread is not None:
                self.unread[read.neighbor].get(read.version, set()).discard(row.agent)
            if self.counts is not None:
                self.counts[read[:2]] -= 1

    def forget(self, agent: int, newest: int, running: Set[int]) -> None:
        """Drop what no row to come can ask for of an agent.

        Args:
            agent: Whose versions.
            newest: Its present version.
            running: Agents that take further steps.

        """
        own, slacks = self.by_agent[agent], self.slacks[agent]
        if self.counts is not None:
            done = [version for version in own if self.counts[agent, version] <= 0]
        elif self.unread is not None:
            unread = self.unread[agent]
            done = [version for version in own if running.isdisjoint(unread.get(version, ()))]
        else:
            reached = [self.last_read[reader, agent] - slack for reader, slack in slacks.items() if reader in running]
            horizon = min(reached, default=newest)
            done = [version for version in own if version < horizon]
        for version in done:
            if version != newest or agent in self.passing:
                self.drop(agent, version)

    def drop(self, agent: int, version: int) -> None:
        """Drop one version."""
        del self.by_agent[agent][version]
        if self.unread is not None:
            del self.unread[agent][version]

    def is_referred_to(self, agent: int, version: int) -> bool:
        """Return whether a version of an agent may still be read, or a gradient that was computed at it."""
        read = (one.notes.get(agent) for reader in self.slacks[agent] for one in self.by_agent[reader].values())
        return version in self.by_agent[agent] or any(note is not None and note.computed_at == version for note in read)

    def state(self) -> State:
        """Return what ``restore`` goes on from."""
        return {
            "published": {k: {v: _parts(one) for v, one in own.items()} for k, own in self.by_agent.items()},
            "last_read": self.last_read,
            "counts": None if self.counts is None else dict(self.counts),
            "unread": self.unread and {k: {v: sorted(r) for v, r in own.items()} for k, own in self.unread.items()},
        }

    def restore(self, state: State, device: torch.device) -> None:
        """Go on from a state."""
        self.by_agent = {
            k: {v: _published(parts, device) for v, parts in own.items()} for k, own in state["published"].items()
        }
        self.last_read = state["last_read"]
        if self.counts is not None:
            self.counts = Counter(state["counts"])
        if self.unread is not None:
            self.unread = {k: {v: set(readers) for v, readers in own.items()} for k, own in state["unread"].items()}


def reads_of(rows: Iterable[Row], agents: Sequence[Participant]) -> Counter[tuple[int, int]]:
    """Return by agent and version how often a run's rows read it."""
    return Counter(read[:2] for row in rows if agents[row.agent].is_own(row) for read in row.reads)


def _parts(published: Published) -> dict[str, Any]:
    parts = {one.name: getattr(published, one.name) for one in fields(published)}
    return parts | {
        "notes": {server: list(note) for server, note in published.notes.items()},
        "local": dict(published.local),
    }


def _published(parts: dict[str, Any], device: torch.device) -> Published:
    parts = {name: part.to(device) if isinstance(part, Tensor) else part for name, part in parts.items()}
    notes = {server: Delivery(*note) for server, note in parts["notes"].items()}
    local = {name: tensor.to(device) for name, tensor in parts["local"].items()}
    return Published(**parts | {"notes": notes, "local": local})
