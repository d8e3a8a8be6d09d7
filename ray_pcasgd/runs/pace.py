"""A run's pace and staleness: one definition for its files, the terminal and its page."""

from collections.abc import Collection, Iterable, Mapping

from ray_pcasgd.records import Row

NAN = float("nan")


def is_agent_step(row: Row, servers: Collection[int]) -> bool:
    """Return whether a row counts as an agent-step: a step that was taken, by an agent that learns.

    A server's update does not, nor a worker's cancelled gradient, nor that an agent was averaged with or came back.
    """
    return row.kind == "step" and row.agent not in servers


def mean_staleness(rows: Iterable[Row], servers: Collection[int]) -> float:
    """Return the mean staleness over all reads of a run, in steps; NaN where no version was read.

    Between peers, of every read of a neighbor; with servers, of every gradient that a server took.
    """
    total = number = 0
    for row in rows:
        if not servers or row.agent in servers:
            total += sum(read.staleness for read in row.reads)
            number += len(row.reads)
    return total / number if number else NAN


def taken_gradients(rows: Iterable[Row], server: int) -> dict[str, int]:
    """Return how many messages workers have ``computed``, how many a server has ``taken``, and the ``cancelled`` ones.

    >>> from ray_pcasgd.records import Read
    >>> rows = [Row(0, 0, 0.0, 1.0, 1.0, ()), Row(1, 0, 0.0, 2.0, 2.0, (), kind="cancelled")]
    >>> taken_gradients([*rows, Row(2, 0, 1.0, 1.0, 1.0, (Read(0, 1, 0, 0),))], 2)
    {'computed': 1, 'taken': 1, 'cancelled': 1}
    """
    found = {"computed": 0, "taken": 0, "cancelled": 0}
    for row in rows:
        if row.agent == server:
            found["taken"] += len(row.reads)
        elif row.agent < server and row.kind in ("step", "cancelled"):
            found["computed" if row.kind == "step" else "cancelled"] += 1
    return found


def told_of_gradients(found: Mapping[str, int]) -> str:
    """Return what ``taken_gradients`` has found, in a line.

    >>> told_of_gradients({"computed": 788, "taken": 240, "cancelled": 0})
    '240 of 788 messages of workers were taken; the others came too late, or not before the end'
    """
    cancelled = f"; {found['cancelled']} were cancelled" if found["cancelled"] else ""
    rest = "; the others came too late, or not before the end" if found["taken"] < found["computed"] else ""
    return f"{found['taken']} of {found['computed']} messages of workers were taken{rest}{cancelled}"


def overlap(rows: Iterable[Row], servers: Collection[int] = ()) -> float:
    """Return by which share of its time an agent runs while another one does, in [0, 1]: the mean over those who learn.

    An agent's time is that from the start of its first step to the end of its last; of one agent alone it is 1.

    >>> step = lambda agent, start, end: Row(agent, 0, start, end, end, ())
    >>> overlap([step(0, 0.0, 4.0), step(1, 3.0, 7.0)]), overlap([step(0, 0.0, 1.0), step(1, 2.0, 3.0)])
    (0.25, 0.0)
    """
    spans: dict[int, tuple[float, float]] = {}
    for row in rows:
        if row.agent in servers:
            continue
        start = row.end if row.kind == "passive" else row.start  # which is that of the agent that asked
        first, last = spans.get(row.agent, (start, row.end))
        spans[row.agent] = (min(first, start), max(last, row.end))
    if len(spans) < 2:
        return 1.0
    shares = []
    for agent, (first, last) in spans.items():
        others = sorted((max(first, one), min(last, two)) for other, (one, two) in spans.items() if other != agent)
        covered, reached = 0.0, first
        for begin, end in others:
            covered += max(0.0, end - max(begin, reached))
            reached = max(reached, end)
        shares.append(covered / (last - first) if last > first else 1.0)
    return sum(shares) / len(shares)


class Pace:
    """How fast agent-steps come: their number after the first one, over the time from the first to the last."""

    def __init__(self) -> None:
        self.number = 0
        self._at_first = 0
        self.first: float | None = None
        self.last = 0.0

    def count(self, now: float, steps: int = 1) -> None:
        """Take in agent-steps at ``now``, in seconds since any instant."""
        if self.first is None:
            self.first, self._at_first = now, steps
        self.last = now
        self.number += steps

    def rate_at(self, now: float) -> float | None:
        """Return agent-steps per second up to ``now``; None as long as that is unknown."""
        if self.first is None or self.number == self._at_first or now <= self.first:
            return None
        return (self.number - self._at_first) / (now - self.first)

    @property
    def rate(self) -> float | None:
        """Agent-steps per second up to the last one; None where there are not two."""
        return self.rate_at(self.last)
