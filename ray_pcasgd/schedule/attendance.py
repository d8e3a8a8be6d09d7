"""Who is there in a plan whose agents leave and come back, as far as it has been planned."""

from collections import Counter, deque
from collections.abc import Iterable, Sequence

from ray_pcasgd.schedule.membership import Away, Change, Departure, changes_of


class Attendance:
    """Who is away, who has left when, and what is still to change.

    Args:
        away: Who is not there when.

    """

    def __init__(self, away: Sequence[Away]) -> None:
        self._changes = deque(changes_of(away))
        self._returns = Counter(change.agent for change in self._changes if change.is_back)
        """How often each agent is still to come back."""
        self.away: dict[int, int] = {one.agent: 0 for one in away if one.leaves == 0}
        """The agents that are away, and their versions."""
        self.departures = [Departure(agent, 0, None) for agent in sorted(self.away)]
        """Those until now."""

    @property
    def next_change(self) -> int | None:
        """The moment of the next change; ``None``: there is none."""
        return self._changes[0].moment if self._changes else None

    def due(self, now: int) -> list[Change]:
        """Return the changes of a moment, in nanoseconds, which are then no longer to come."""
        due: list[Change] = []
        while self.next_change == now:
            due.append(self._changes.popleft())
            self._returns[due[-1].agent] -= due[-1].is_back
        return due

    def leave(self, agent: int, version: int) -> None:
        """Take in that an agent leaves at a version."""
        self.away[agent] = version
        self.departures.append(Departure(agent, version, None))

    def come_back(self, agent: int, version: int) -> None:
        """Take in that an agent comes back at a version."""
        del self.away[agent]
        place = max(place for place, one in enumerate(self.departures) if one.agent == agent)
        self.departures[place] = self.departures[place]._replace(back_at=version)

    def has_left_for_good(self, agent: int) -> bool:
        """Return whether an agent is away and does not come back."""
        return agent in self.away and not self._returns[agent]

    def all_departures(self, rows: Iterable[object]) -> tuple[Departure, ...]:
        """Return all departures, by their moments, once the rows that change it are drawn as far as the last change."""
        for _ in rows:
            if self.next_change is None:
                break
        return tuple(self.departures)
