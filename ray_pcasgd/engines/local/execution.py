"""Executes a schedule's rows in one process, in the order of their data flow; those of all families alike."""

import time
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence, Set
from functools import partial

from ray_pcasgd.agents.learner import NonFiniteLossError
from ray_pcasgd.agents.participant import Outcome, Participant, Received
from ray_pcasgd.base.state import State, difference
from ray_pcasgd.engines.base import Leaving, Pause, Report, RunError, StateError
from ray_pcasgd.engines.failures import evaluated, naming, require_own, restoring, who_of
from ray_pcasgd.engines.local.batching import prepare_together, take_together
from ray_pcasgd.engines.local.versions import Versions, reads_of
from ray_pcasgd.records import Event, Read, Row, StepReport
from ray_pcasgd.schedule.scheduler import Recorded, away_from, tell_loss
from ray_pcasgd.schedule.simulation import Timing


class Execution:
    """Executes rows; what a row does is its agent's (``Participant.take``).

    A row can run once its agent is at the row's step and every version that it reads is published, with its direction
    where the agent needs that.

    Args:
        schedule: the rows; ``None`` among them where what comes next depends on losses.
        agents: the agents, in the order of their numbers.
        stacks: whether rows that are ready together run as one batch.
        leaving: asks for pauses, besides those at evaluations; ``None``: the run does not pause.

    """

    def __init__(
        self,
        schedule: Iterable[Row | None],
        agents: Sequence[Participant],
        stacks: bool = False,
        leaving: Leaving | None = None,
    ) -> None:
        family = agents[0].spec.family
        self.agents = agents
        self.recipe = agents[0].spec.recipe
        self.stacks = stacks
        self.leaving = leaving
        counts, falls_back = None, not isinstance(schedule, Timing)
        known: list[Row] = []
        if family.retention == "counted" or (family.retention == "once" and isinstance(schedule, Recorded)):
            schedule = known = [row for row in schedule if row is not None]
            counts = reads_of(known, agents)
        self.sending = rows_that_send(known) if family.exchanges else None
        """The row by which each version is sent, where rows exchange."""
        self.rows = iter(schedule)
        self.window: deque[Row] = deque()
        self.at_once = 2 * len(agents) if stacks or family.runs_ahead else 1
        """Rows among which those are looked for that can run; more where there are none."""
        self.versions = Versions([agent.spec for agent in agents], counts, falls_back)
        for agent in agents:
            self.publish(agent, None)
        self.running = {agent.spec.agent for agent in agents if agent.is_running}
        """Agents that take further steps."""
        self.isolated: dict[int, int] = {}
        """The last versions of agents that have left the run."""
        self.events: list[Event] = []
        """What is still to be reported."""
        self.drawn = 0
        """Rows that the schedule was asked for."""
        self.evaluations = 0
        """Evaluations that all agents have come to."""
        self.started = time.perf_counter()

    def reports(self) -> Iterator[Report]:
        """Execute all rows."""
        while True:
            self.prepare()
            yield from self.happened()
            ready = self.take_ready()
            if not ready:
                return
            for group in self.grouped(ready):
                yield from self.execute(group)
                yield from self.happened()
            yield from self.pause()

    def close(self) -> None:
        """End what the agents have running in the background."""
        for agent in self.agents:
            agent.close()

    def happened(self) -> Iterator[Event]:
        """Yield the events that were not yielded yet."""
        yield from self.events
        self.events.clear()

    def prepare(self) -> None:
        """Let agents compute what needs no reading, as soon as their versions exist: others may need the direction."""
        pending = [one for one in self.agents if one.has_to_prepare and one.spec.agent not in self.isolated]
        losses: list[float | None] = [None] * len(pending)
        if self.stacks and len(pending) > 1:
            with naming(-1, min(agent.progress for agent in pending), who_of(pending)):
                losses = [*prepare_together(pending)]
        for agent, loss in zip(pending, losses, strict=True):
            try:
                with naming(agent.spec.agent, agent.progress):
                    agent.prepare(loss)
            except NonFiniteLossError as error:
                self.isolate(error)
            else:
                self.publish_direction(agent)

    def publish_direction(self, agent: Participant) -> None:
        """Publish the direction at an agent's present version, where readers may need it."""
        published = self.versions.get(agent.spec.agent, agent.version)
        if agent.publishes_directions and published is not None:
            published.direction = agent.published_direction

    def isolate(self, error: NonFiniteLossError) -> None:
        """Let an agent leave the run after its present version; end the run where that is not asked for."""
        if not self.recipe.isolate_non_finite:
            raise error
        self.isolated[error.agent] = error.step
        self.running.discard(error.agent)
        self.events.append(Event("agent_isolated", error.agent, error.step, str(error)))

    def grouped(self, rows: list[Row]) -> list[list[Row]]:
        """Return the groups that run as one batch each."""
        if not self.stacks:
            return [[row] for row in rows]
        groups: dict[Hashable, list[Row]] = {}
        for row in rows:
            groups.setdefault(self.agents[row.agent].batch_key(row), []).append(row)
        alone = groups.pop(None, [])
        if self.agents[0].spec.family.prepares:
            return [*([row] for row in alone), *groups.values()]
        together = [group for group in groups.values() if len(group) > 1]
        return [*together, *([row] for row in rows if not any(row in group for group in together))]

    def execute(self, rows: list[Row]) -> Iterator[StepReport]:
        """Execute a group of rows, and report them with what was really read: agents that have left are not."""
        agents = [self.agents[row.agent] for row in rows]
        rows = [self.as_read(row) for row in rows]
        received = [self.receive(row) for row in rows]
        outcomes: list[Outcome | NonFiniteLossError]
        if len(rows) == 1:
            outcomes = [self.take(agents[0], rows[0], received[0])]
        else:
            with naming(-1, min(agent.progress for agent in agents), who_of(agents)):
                outcomes = take_together(agents, rows, received)
        self.note_ends(agents)
        for row, agent, outcome in zip(rows, agents, outcomes, strict=True):
            if isinstance(outcome, NonFiniteLossError):
                self.isolate(outcome)
            else:
                self.publish(agent, row)
                self.forget(row)
                tell_loss(self.rows, row, outcome.loss)
        for row, agent, outcome in zip(rows, agents, outcomes, strict=True):
            if not isinstance(outcome, NonFiniteLossError):
                report, failed = evaluated(agent, agent.report(row, outcome, time.perf_counter() - self.started))
                self.events += [failed] if failed else []
                yield report

    def as_read(self, row: Row) -> Row:
        """Return a row without the reads of agents that have left the run."""
        if not self.isolated or row.kind == "cancelled":
            return row
        return row._replace(reads=tuple(read for read in row.reads if not self.is_gone(read)))

    def note_ends(self, agents: Iterable[Participant]) -> None:
        """Take in which of the agents that have just taken a row take no further steps."""
        self.running.difference_update(agent.spec.agent for agent in agents if not agent.is_running)

    @property
    def present(self) -> Set[int]:
        """Agents that take further steps, but for those that have left and took all rows that they have until now."""
        away = away_from(self.rows)
        if not away:
            return self.running
        return self.running - {agent for agent, version in away.items() if self.agents[agent].version >= version}

    def take(self, agent: Participant, row: Row, received: Sequence[Received]) -> Outcome | NonFiniteLossError:
        """Let an agent take a row."""
        try:
            with naming(row.agent, agent.progress):
                return agent.take(row, received)
        except NonFiniteLossError as error:
            return error

    def publish(self, agent: Participant, row: Row | None) -> None:
        """Publish what a row of an agent came to, where that is anything for others."""
        message = agent.message(row if self.sending is None else self.sending.get((agent.spec.agent, agent.version)))
        if message is not None:
            self.versions.put(agent.spec.agent, agent.version, message)

    def receive(self, row: Row) -> list[Received]:
        """Return what a row reads."""
        received = []
        for read in row.reads if row.kind != "cancelled" else ():
            version = self.versions.get(read.neighbor, read.version)
            if version is None:
                raise RunError(
                    f"schedule: agent {row.agent} reads version {read.version} of agent {read.neighbor} at step "
                    f"{row.step}, after newer ones or once more; allowed is each in its turn"
                )
            shared = self.agents[read.neighbor].share(version, row.agent)
            received.append(self.agents[row.agent].opened(read, shared))
        return received

    def forget(self, row: Row) -> None:
        """Drop what no row after this one can ask for."""
        self.versions.note_reads(row)
        spec = self.agents[row.agent].spec
        touched: Iterable[int] = (read.neighbor for read in row.reads)
        if spec.family.slack < 0:
            touched = spec.neighbors
            for k in touched:
                self.drop_late(k)
        present = self.present
        for k in (row.agent, *touched):
            self.versions.forget(k, self.agents[k].version, present)
            if self.agents[k].remembers_versions:
                self.agents[k].keep(partial(self.versions.is_referred_to, k))

    def drop_late(self, agent: int) -> None:
        """Drop an agent's messages that all of its readers have come too far to read."""
        for version, published in list(self.versions.by_agent[agent].items()):
            if all(self.agents[reader].is_late(note) for reader, note in published.notes.items()):
                self.versions.drop(agent, version)

    def take_ready(self) -> list[Row]:
        """Take the rows that can run now, in the schedule's order; an empty list once all rows have run."""
        limit = self.at_once
        while True:
            is_exhausted = self.draw(limit)
            rows = [row for row in self.window if row.agent not in self.isolated]
            # Of each agent only its next row can be ready.
            next_rows = {row.agent: row for row in reversed(rows)}
            ready = [row for row in rows if next_rows[row.agent] is row and self.is_ready(row)]
            if ready:
                taken = {row.agent: row for row in ready}
                self.window = deque(row for row in rows if taken.get(row.agent) is not row)
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

    def draw(self, limit: int) -> bool:
        """Draw rows until there are so many; return whether there are no more, or none before some have run."""
        while len(self.window) < limit:
            row = next(self.rows, None)
            if row is None:
                return True
            self.drawn += 1
            if self.agents[row.agent].is_own(row):
                self.window.append(row)
        return False

    def is_ready(self, row: Row) -> bool:
        """Return whether a row can run now."""
        version = self.agents[row.agent].version
        if version != row.step and (row.kind != "rejoined" or version > row.step):
            return False
        return row.kind == "cancelled" or all(self.is_here(row.agent, read) or self.is_gone(read) for read in row.reads)

    def is_gone(self, read: Read) -> bool:
        """Return whether an agent left the run before it came to the version that is read."""
        return read.neighbor in self.isolated and read.version > self.isolated[read.neighbor]

    def is_here(self, agent: int, read: Read) -> bool:
        """Return whether what an agent reads is published."""
        published = self.versions.get(read.neighbor, read.version)
        if published is None:
            return False
        is_whole = published.direction is not None or read.neighbor in self.isolated
        return is_whole or not self.agents[agent].needs_direction(read)

    def why_stuck(self, row: Row) -> str:
        """Return why a row never becomes ready."""
        for read in row.reads:
            if not self.is_here(row.agent, read):
                return (
                    f"schedule: agent {row.agent} reads version {read.version} of agent {read.neighbor} at step "
                    f"{row.step}, and no row before it publishes that version"
                )
        return f"schedule: agent {row.agent} has a row for step {row.step} and none for the step before it"

    def pause(self) -> Iterator[Pause]:
        """Yield a pause where all agents have come to a further evaluation, or one is asked for; between rows."""
        if self.leaving is None:
            return
        counting, present = [agent for agent in self.agents if agent.spec.family.counts], self.present
        running = [agent.progress for agent in counting if agent.spec.agent in present]
        is_due = bool(running) and min(running) // self.recipe.evaluate_every > self.evaluations
        if running and (is_due or self.leaving.is_asked):
            self.evaluations = min(running) // self.recipe.evaluate_every
            yield Pause(min(running), max(agent.progress for agent in counting), self.state)

    def state(self) -> State:
        """Return all that the rows to come depend on; its tensors are those in use."""
        return {
            "agents": [agent.state() for agent in self.agents],
            "versions": self.versions.state(),
            "window": list(self.window),
            "isolated": self.isolated,
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
            require_published(self.versions, self.agents)

    def restore(self, state: State) -> None:
        """Go on from a state, with the same schedule from its beginning."""
        for agent, own in zip(self.agents, state["agents"], strict=True):
            agent.restore(own)
        self.versions.restore(state["versions"], self.agents[0].device)
        self.window, self.isolated = deque(state["window"]), state["isolated"]
        self.running = {k for k, agent in enumerate(self.agents) if agent.is_running and k not in self.isolated}
        self.drawn, self.evaluations = state["drawn"], state["evaluations"]
        self.started = time.perf_counter() - state["seconds"]
        for _ in range(self.drawn):
            next(self.rows)


def rows_that_send(rows: Sequence[Row]) -> dict[tuple[int, int], Row]:
    """Return by agent and version the row by which it is sent to the one with which the agent averages next.

    An agent that asked and was lost before it reported its row has one in its partner's record.
    """
    asking = [
        Row(read.neighbor, read.version, row.start, row.ready, row.ready, ())
        for row in rows
        if row.kind == "passive"
        for read in row.reads
    ]
    return {row[:2]: row for row in (*asking, *rows) if row.kind != "rejoined"}


def require_published(versions: Versions, agents: Sequence[Participant]) -> None:
    """Raise ``StateError`` where versions of a state are not such as the agents publish."""
    for agent in agents:
        for published in versions.by_agent[agent.spec.agent].values():
            for name in ("weights", "buffers", "direction"):
                if (value := getattr(published, name)) is None:
                    continue  # a direction that is not computed yet, or is of no use
                if (found := difference(agent.example_of(name), value, f"state.versions.{name}")) is not None:
                    raise StateError(found)
