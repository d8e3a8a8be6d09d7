"""When agents of a live run leave and come back by its settings, whatever else has become of them meanwhile."""

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from ray_pcasgd.engines.live.presence import Presence
from ray_pcasgd.schedule.membership import Away


class Turn(NamedTuple):
    """One agent is to leave or to come back."""

    second: float
    """Of the run."""
    agent: int
    is_back: bool


class Timetable:
    """The changes of membership that a live run's settings ask for.

    Each is made once, at its second or as soon after it as it can be made, so that what operators ask for in between
    holds until the next one. Whoever has taken all steps leaves no more.

    **Choice**: an agent that is being made again when it is to leave does so once it trains, and one that is still in
    its last step when it is to come back, once it has left. Where that takes until the next change, neither is made.

    Args:
        away: Who is not there when; times of one agent do not touch.
        second: The second of the run from which on changes are made; those before it have been.

    """

    def __init__(self, away: Sequence[Away] = (), second: float = 0.0) -> None:
        self.absent = frozenset(one.agent for one in away if one.leaves <= second < one.returns)
        """Agents that are not there at that second."""
        self._to_come: dict[int, deque[Turn]] = {one.agent: deque() for one in away}
        for one in sorted(away):
            turns = Turn(one.leaves, one.agent, False), Turn(one.returns, one.agent, True)
            self._to_come[one.agent] += [turn for turn in turns if second < turn.second < math.inf]

    def due(self, second: float, presence: Sequence[Presence]) -> list[Turn]:
        """Return the changes that are to be made now, by agent: one of each at most, which does not come again."""
        found = (self._due(turns, second, presence[agent]) for agent, turns in sorted(self._to_come.items()))
        return [turn for turn in found if turn is not None]

    def returns(self, agent: int) -> bool:
        """Return whether an agent is still to come back."""
        return self.back_at(agent) is not None

    def back_at(self, agent: int) -> float | None:
        """Return the second at which an agent is to come back next; ``None``: it is not."""
        return next((turn.second for turn in self._to_come.get(agent, ()) if turn.is_back), None)

    def _due(self, turns: deque[Turn], second: float, presence: Presence) -> Turn | None:
        while turns and turns[0].second <= second:
            turn = turns[0]
            if presence is (Presence.AWAY if turn.is_back else Presence.TRAINING):
                return turns.popleft()
            is_undone = len(turns) > 1 and turns[1].second <= second
            if presence is (Presence.LEAVING if turn.is_back else Presence.RETURNING) and not is_undone:
                return None  # it is made once the agent has left, or trains
            turns.popleft()
        return None
