"""How many messages are under way over a link that is played in virtual time, and how old they are as they come."""

import heapq
import math
from itertools import count, pairwise
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.engines.live.window import FEWEST, MOST, Window, messages_allowed


class Played(NamedTuple):
    """What became of the messages that were sent, in their order."""

    offers: list[int]
    """Which offer each one was."""
    ages: list[float]
    """Of each message as it came, from the offering of its version on."""
    queued: list[float]
    """Seconds that each message waited for the link."""
    under_way: list[int]
    """Messages without an answer, as each one was sent."""


def played(offers: list[float], transmission: float, delay: float) -> Played:
    """Play a link with room for any number of messages, one transmitted after another, and a sender with a window."""
    window, result = Window(), Played([], [], [], [])
    order = count()
    events = [(at, next(order), True, at) for at in offers]
    heapq.heapify(events)
    free_at, under_way, unsent = 0.0, 0, None
    while events:
        now, number, is_offer, sent_at = heapq.heappop(events)
        if is_offer:
            window.offered(now)
            unsent = number
        else:
            under_way -= 1
            window.answered(sent_at, now)
        if unsent is not None and under_way < window.allowed:
            begins = max(now, free_at)
            free_at = begins + transmission
            under_way += 1
            result.offers.append(unsent)
            result.ages.append(free_at + delay - offers[unsent])
            result.queued.append(begins - now)
            result.under_way.append(under_way)
            heapq.heappush(events, (free_at + 2 * delay, next(order), False, now))
            unsent = None
    return result


NUMBER = 400
"""Versions that are offered, one every second."""
LINKS = st.tuples(st.floats(0.01, 5.0), st.floats(0.0, 5.0))
"""Seconds of a message's transmission, and of the delay one way."""


@given(LINKS)
def test_a_link_carries_what_it_can_and_what_comes_is_fresh(link: tuple[float, float]) -> None:
    transmission, delay = link
    found = played([float(at) for at in range(NUMBER)], transmission, delay)
    holds = (transmission + 2 * delay) / max(transmission, 1.0)
    assert max(found.under_way) <= max(holds + 1, FEWEST) + 1e-6
    # What is sent before the link's rate is known may queue a little longer.
    half = next(place for place, offer in enumerate(found.offers) if offer >= NUMBER / 2)
    assert max(found.queued[half:]) <= 2 * transmission + 1e-6
    assert max(found.ages[half:]) <= delay + 3 * transmission + 1 + 1e-6
    assert len(found.ages[half:]) >= 0.6 * NUMBER / 2 * min(1.0, 1 / transmission)


@given(LINKS, st.lists(st.floats(0.0, 20.0), min_size=1, max_size=60))
def test_however_versions_come_the_newest_is_sent_in_the_end(link: tuple[float, float], pauses: list[float]) -> None:
    offers = [sum(pauses[:number]) for number in range(1, len(pauses) + 1)]
    transmission, delay = link
    found = played(offers, transmission, delay)
    assert all(1 <= number <= MOST for number in found.under_way)
    assert found.offers[-1] == len(offers) - 1
    assert all(a < b for a, b in pairwise(found.offers))


@given(st.floats(0, 1e3), st.floats(0, 1e6))
def test_bounds(round_trip: float, per_second: float) -> None:
    allowed = messages_allowed(round_trip, per_second)
    assert FEWEST <= allowed <= MOST
    if FEWEST < allowed < MOST:
        assert allowed - 1 == math.floor(round_trip * per_second)


def test_a_pause_of_the_reader_whose_answers_come_at_once_allows_no_more_than_before() -> None:
    window = Window()
    for number in range(100):
        window.offered(0.1 * number)
        window.answered(0.1 * number, 0.1 * number + 0.25)
    before = window.allowed
    for number in range(100, 103):
        window.offered(0.1 * number)
    for number in range(100, 103):
        window.answered(0.1 * number, 70.0)
    assert window.allowed <= before == 3
