"""When agents of a live run leave and come back by its settings: against what the settings say, second by second."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.engines.live.presence import Presence
from ray_pcasgd.engines.live.timetable import Timetable, Turn
from ray_pcasgd.schedule.membership import Away

P = Presence
SECONDS = st.integers(0, 12).map(float)


@st.composite
def times_away(draw: st.DrawFn, agents: int = 3) -> tuple[Away, ...]:
    """Return who is away when: times of one agent are apart."""
    found: list[Away] = []
    for agent in range(agents):
        edges = sorted(draw(st.sets(SECONDS, max_size=4)))
        if len(edges) % 2:
            edges.append(math.inf)
        found += [Away(agent, *edges[place : place + 2]) for place in range(0, len(edges), 2)]
    return tuple(found)


def is_away(away: tuple[Away, ...], agent: int, second: float) -> bool:
    return any(one.agent == agent and one.leaves <= second < one.returns for one in away)


def obey(timetable: Timetable, second: float, presence: list[Presence]) -> list[Turn]:
    """Let agents do at once what is due, again and again, until nothing is."""
    done: list[Turn] = []
    while due := timetable.due(second, presence):
        done += due
        for turn in due:
            presence[turn.agent] = P.TRAINING if turn.is_back else P.AWAY
    return done


@given(times_away(), SECONDS, st.lists(SECONDS, max_size=8).map(sorted))
def test_agents_that_obey_at_once_are_there_when_the_settings_say(
    away: tuple[Away, ...], since: float, looked_at: list[float]
) -> None:
    timetable = Timetable(away, since)
    presence = [P.AWAY if agent in timetable.absent else P.TRAINING for agent in range(3)]
    for second in [since, *(one for one in looked_at if one > since)]:
        obey(timetable, second, presence)
        there = [P.AWAY if is_away(away, agent, second) else P.TRAINING for agent in range(3)]
        assert presence == there
        for agent in range(3):
            later = [one.returns for one in away if one.agent == agent and second < one.returns < math.inf]
            assert timetable.back_at(agent) == min(later, default=None)
            assert timetable.returns(agent) == bool(later)


ONCE = (Away(0, 3.0, 5.0), Away(0, 8.0, math.inf))
LEAVES, BACK, GOES = Turn(3.0, 0, False), Turn(5.0, 0, True), Turn(8.0, 0, False)


@pytest.mark.parametrize(
    ("then", "expected"),
    [
        # An operator has let it leave before, or it is lost for good: it comes in at its second all the same.
        ([(3.1, P.AWAY), (4.9, P.AWAY), (5.0, P.AWAY), (5.1, P.RETURNING)], [BACK]),
        # An operator has let it come in before.
        ([(3.1, P.TRAINING), (4.0, P.TRAINING), (5.1, P.TRAINING), (6.0, P.TRAINING)], [LEAVES]),
        # Its step takes long: it comes back once it has left.
        ([(3.0, P.TRAINING), (5.5, P.LEAVING), (6.0, P.LEAVING), (6.5, P.AWAY)], [LEAVES, BACK]),
        # It is made again after a failure: it leaves once it trains, unless it would be back by then.
        ([(3.1, P.RETURNING), (4.0, P.TRAINING), (5.0, P.AWAY)], [LEAVES, BACK]),
        ([(3.1, P.RETURNING), (5.0, P.RETURNING), (5.5, P.TRAINING)], []),
        ([(3.1, P.RETURNING), (8.0, P.RETURNING), (8.5, P.TRAINING)], [GOES]),
        # It has taken all its steps.
        ([(3.1, P.FINISHED), (5.1, P.FINISHED), (9.0, P.FINISHED)], []),
        # Nobody has looked for long: one after another, unless one is undone before it is made.
        ([(5.5, P.TRAINING), (6.0, P.LEAVING), (7.0, P.AWAY), (8.0, P.RETURNING), (9.0, P.TRAINING)],
         [LEAVES, BACK, GOES]),
        ([(9.0, P.TRAINING), (9.1, P.LEAVING), (9.2, P.AWAY), (9.3, P.AWAY)], [LEAVES]),
    ],
)  # fmt: skip
def test_what_has_become_of_an_agent_meanwhile(then: list[Any], expected: list[Turn]) -> None:
    timetable = Timetable(ONCE)
    assert timetable.absent == set()
    assert [turn for second, presence in then for turn in timetable.due(second, [presence])] == expected
