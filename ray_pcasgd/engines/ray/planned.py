"""Drives an actor by planned rows: it waits for exactly the versions that they name, whatever the machine's timing."""

from ray_pcasgd.agents.mailbox import Delivery, Header
from ray_pcasgd.agents.participant import Published, Received
from ray_pcasgd.base.state import State
from ray_pcasgd.engines.ray.actor import Actor, Found
from ray_pcasgd.engines.ray.driver import Driver
from ray_pcasgd.records import Read, Row


class PlannedDriver(Driver):
    """Takes an agent's rows in order; of any family."""

    def __init__(self, actor: Actor, state: State | None) -> None:
        self.actor = actor
        if state is not None:
            actor.participant.restore(state)
        self.awaited: Row | None = None
        """The row whose reads are waited for."""
        self.is_over = False
        """Whether the agent takes no rows any more."""

    def run(self) -> None:
        """Take the agent's rows, until it leaves the run or they are at their end."""
        for row in self.actor.rows():
            if not self.actor.participant.is_own(row) or not self.take(row):
                break
        with self.actor.changed:
            self.is_over = True

    def take(self, row: Row) -> bool:
        """Take a row; return whether the agent is still in the run."""
        actor = self.actor
        # Who comes back by a plan has given up a step, which engines may have computed before they know of that.
        if (row.kind == "step" or self.came_back_by_plan(row)) and not actor.prepare():
            return False
        receivers = self.publish(row) if actor.spec.family.exchanges else None
        received: list[Received] = []
        taken = row
        if row.kind != "cancelled":
            received = actor.open_all(self.await_reads(row))
            taken = row._replace(reads=tuple(one.read for one in received))
        outcome = actor.take(taken, received)
        if outcome is None:
            return False
        if receivers is None:
            receivers = self.publish(taken)
        self.forget_old(row)
        actor.submit(taken, outcome, receivers)
        return True

    def on_isolated(self, published: Published | None) -> None:
        """Tell all neighbors, not only those whom this version would be sent to."""
        header = self.actor.header()._replace(isolated=True)
        self.actor.send(published, dict.fromkeys(self.actor.spec.receivers, header))

    def publish(self, row: Row) -> int:
        """Send the present version to its readers; return how many there are."""
        actor, participant = self.actor, self.actor.participant
        message = participant.message(row)
        if message is None:
            return 0
        readers = participant.receivers()
        if actor.spec.family.exchanges:
            readers = tuple(read.neighbor for read in row.reads)
        actor.send(message, dict.fromkeys(readers, actor.header()))
        return len(readers)

    def await_reads(self, row: Row) -> list[Found]:
        """Wait for every version that the row names; leave out those of agents that left the run before them."""

        def names() -> str:
            missing = (read for read in row.reads if self.is_missing(read))
            return " and ".join(f"version {read.version} of agent {read.neighbor}" for read in missing)

        mailbox = self.actor.mailbox
        with self.actor.changed:
            self.awaited = row
            self.forget_missed()
            self.actor.wait_until(self.should_wake, names, while_others_send=row.kind == "rejoined")
            self.awaited = None
            here = [self.actor.find(read) for read in row.reads if not mailbox.isolated(read.neighbor, read.version)]
            return [item for item in here if item is not None]

    def came_back_by_plan(self, row: Row) -> bool:
        """Return whether an agent comes back with a row as a planner has it, which falls back behind no read."""
        return row.kind == "rejoined" and not self.actor.driving.falls_back

    def on_message(self, header: Header) -> None:
        """Take in that a message has come; by a plan, it may be one that is not going to be read."""
        if self.is_over and not self.actor.driving.falls_back:
            self.actor.mailbox.forget(header.sender, header.version, slack=0)
        self.forget_missed()

    def forget_missed(self) -> None:
        """Drop what has come while the agent was away, since it comes back from newer versions."""
        if self.awaited is not None and self.came_back_by_plan(self.awaited):
            for read in self.awaited.reads:
                self.actor.mailbox.forget(read.neighbor, read.version, slack=0)

    def is_missing(self, read: Read) -> bool:
        """Return whether something is still to come that this read needs."""
        mailbox = self.actor.mailbox
        if mailbox.isolated(read.neighbor, read.version):
            return False
        if mailbox.get(read.neighbor, read.version) is None:
            return True
        if not self.actor.participant.needs_direction(read) or mailbox.left(read.neighbor):
            return False
        return self.actor.direction_at(read.neighbor, read.version) is None

    def forget_old(self, row: Row) -> None:
        """Drop what no row after this one asks for."""
        mailbox, participant, family = self.actor.mailbox, self.actor.participant, self.actor.spec.family
        slack = family.slack if self.actor.driving.falls_back else min(family.slack, 0)
        with self.actor.changed:
            for read in row.reads:
                if family.retention == "horizon":
                    mailbox.forget(read.neighbor, read.version, slack)
                else:
                    mailbox.discard(read.neighbor, read.version)
            for k in self.actor.spec.neighbors if family.slack < 0 else ():
                for version in mailbox.versions(k):
                    message = mailbox.get(k, version)
                    note = message.header.note if message else None
                    if isinstance(note, Delivery) and participant.is_late(note):
                        mailbox.discard(k, version)
        participant.keep()

    def should_wake(self) -> bool:
        """Return whether all that the awaited row names is here: to wake up at each message would cost more than it."""
        return self.awaited is None or not any(map(self.is_missing, self.awaited.reads))
