"""What a live agent reads, message by message."""

import random
from bisect import bisect_right

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.agents.mailbox import Header, Mailbox, Message
from ray_pcasgd.engines.live.reading import NeighborTracker, OwnTimes, choose_read
from ray_pcasgd.engines.live.window import MOST
from ray_pcasgd.records import Read

LAST = 1000


def mailbox_of(*headers: Header) -> Mailbox[str]:
    mailbox: Mailbox[str] = Mailbox((7,))
    for header in headers:
        mailbox.put(Message(header, "contents"), 0.0)
    return mailbox


def tracker_of(*headers: Header, transit: float = 0.0, last: int = LAST) -> NeighborTracker:
    tracker = NeighborTracker(last)
    for header in headers:
        tracker.take(header, header.sent_at + transit)
    return tracker


def read(
    mailbox: Mailbox[str], tracker: NeighborTracker, now: float, needs_pair: bool = False, cap: int | None = None
) -> Read | None:
    own = OwnTimes(1, [0.5, 1.5, 2.5, 3.5])

    def may_read(read: Read) -> bool:
        return not needs_pair or read.staleness == 0 or mailbox.following(7, read.version) is not None

    return choose_read(mailbox, 7, cap, now, tracker, own, may_read)


def read_of(
    *headers: Header, now: float, needs_pair: bool = False, cap: int | None = None, transit: float = 0.0
) -> Read | None:
    return read(mailbox_of(*headers), tracker_of(*headers, transit=transit), now, needs_pair, cap)


def test_the_newest_version_is_fresh_within_one_step_of_its_sender() -> None:
    assert read_of(Header(7, 3, 3.0, 1.0), now=3.9) == Read(7, 3, staleness=0, age=1)


def test_staleness_counts_the_steps_that_the_sender_takes_while_a_message_comes() -> None:
    header = Header(7, 3, 1.0, 0.5)
    assert tracker_of(header, transit=2.6).missed(3.9) == 5
    assert read_of(header, now=3.9, transit=2.6) == Read(7, 3, staleness=5, age=3)


def test_a_sender_whose_messages_come_at_once_and_that_is_silent_is_slow_and_not_ahead() -> None:
    assert read_of(Header(7, 3, 1.0, 0.5), now=3.9, transit=0.1) == Read(7, 3, staleness=0, age=3)
    assert read_of(Header(7, 3, 1.0, 0.5), now=3.9, transit=1.1) == Read(7, 3, staleness=2, age=3)


@given(st.floats(0.1, 3.0), st.floats(0.0, 10.0), st.floats(0.0, 40.0))
def test_of_a_steady_sender_and_link_the_estimate_is_right_to_a_step(step: float, transit: float, now: float) -> None:
    sent = [number * step for number in range(1, 1000)]
    arrived = bisect_right([moment + transit for moment in sent], now)
    tracker = NeighborTracker(LAST)
    for version in range(1, arrived + 1):
        tracker.take(Header(7, version, sent[version - 1], step), sent[version - 1] + transit)
    if arrived:
        assert abs(tracker.missed(now) - (bisect_right(sent, now) - arrived)) <= 1


@given(st.lists(st.floats(0.1, 9.0), min_size=1, max_size=20), st.floats(0.0, 0.09), st.floats(0.0, 1.0))
def test_where_messages_come_faster_than_steps_nothing_is_missed(
    pauses: list[float], transit: float, at: float
) -> None:
    newest = Header(7, len(pauses), sum(pauses), sum(pauses) / len(pauses))
    assert tracker_of(newest, transit=transit).missed(sum(pauses) + 100 * at) == 0


@given(st.integers(1, 90), st.integers(1, MOST + 2), st.floats(1.0, 100.0), st.integers(0, 20))
def test_the_reader_s_own_pause_is_no_transit(before: int, waiting: int, pause: float, clock: int) -> None:
    """Messages that waited for a stopped reader were late because of it, whatever the two clocks differ by."""
    step, transit = 0.02, 0.001 + clock
    tracker = NeighborTracker(LAST)
    for version in range(1, before + 1):
        tracker.take(Header(7, version, version * step, step), version * step + transit)
    ended = (before + waiting) * step + pause
    for version in range(before + 1, before + min(waiting, before - 1) + 1):
        tracker.take(Header(7, version, version * step, step), ended + transit)
    assert tracker.transit_seconds == pytest.approx(transit, abs=1e-6)


@given(st.data())
def test_no_staleness_is_past_what_a_neighbor_can_have_done(data: st.DataObject) -> None:
    """Whatever clocks and step times say: never past the neighbor's last version, never below what is known."""
    last = data.draw(st.integers(1, 60))
    number = data.draw(st.integers(1, last))
    times = st.floats(-1e9, 1e9)
    headers = [
        Header(7, v, data.draw(times), data.draw(st.floats(0, 1e6)), final=v == last) for v in range(1, number + 1)
    ]
    tracker = NeighborTracker(last)
    for header in headers:
        tracker.take(header, data.draw(times))
    missed = tracker.missed(data.draw(times))
    assert 0 <= missed <= last - number
    chosen = read(mailbox_of(*headers), tracker, data.draw(times))
    assert chosen is not None
    assert chosen.version == number
    assert 0 <= chosen.staleness <= last - number


def test_one_agent_that_was_stopped_for_a_minute_reads_what_is_true() -> None:
    """Today's numbers of the issue: versions 33 and 32 were read with staleness 269 and 86 in a run of 60 steps."""
    tracker, mailbox = NeighborTracker(60), mailbox_of()
    for version in range(1, 34):
        header = Header(7, version, 0.02 * version, 0.02)
        tracker.take(header, header.sent_at + 0.001 if version < 20 else 60.0)
        mailbox.put(Message(header, "contents"), 60.0)
    chosen = read(mailbox, tracker, now=60.0)
    assert chosen is not None
    assert (chosen.version, chosen.staleness) == (33, 0)
    final = Header(7, 60, 1.2, 0.02, final=True)
    tracker.take(final, 60.001)
    chosen = read(mailbox, tracker, now=60.01)
    assert chosen is not None
    assert (chosen.version, chosen.staleness) == (33, 27)


def test_versions_that_an_injected_delay_holds_back_are_known_all_the_same() -> None:
    mailbox: Mailbox[str] = Mailbox((7,))
    headers = [Header(7, v, float(v), 1.0, latency_seconds=2.5) for v in range(1, 6)]
    for header in headers:
        mailbox.put(Message(header, "contents"), header.sent_at)
    assert read(mailbox, tracker_of(*headers), now=5.0) == Read(7, 2, staleness=3, age=2)


def test_late_news_is_told_from_fresh_by_when_it_was_sent() -> None:
    headers = [Header(7, v, 0.02 * v, 0.02) for v in range(1, 101)]
    tracker = tracker_of(*headers, transit=0.03)
    assert tracker.lateness(2.03) == pytest.approx(0.0, abs=1e-9)
    assert tracker.lateness(62.03) == pytest.approx(60.0, abs=1e-9)


def test_a_slow_sender_is_not_stale_though_the_reader_has_moved_on() -> None:
    assert read_of(Header(7, 3, 0.0, 100.0), now=3.9) == Read(7, 3, staleness=0, age=4)


def test_a_sender_that_has_finished_is_never_stale() -> None:
    assert tracker_of(Header(7, 3, 0.0, 0.5, final=True), transit=50.0).missed(99.0) == 0


def test_a_stale_version_without_its_direction_gives_way_to_the_one_before() -> None:
    headers = Header(7, 2, 0.0, 0.5), Header(7, 3, 1.0, 0.5)
    assert read_of(*headers, now=3.9, needs_pair=True, transit=2.6) == Read(7, 2, staleness=6, age=4)


def test_a_neighbor_of_which_no_complete_pair_is_here_is_left_out() -> None:
    assert read_of(Header(7, 3, 1.0, 0.5), now=3.9, needs_pair=True, transit=2.6) is None


def test_a_version_that_is_held_back_is_read_once_enough_steps_are_known() -> None:
    headers = [Header(7, v, float(v), 1.0, hold_steps=2) for v in range(4)]
    assert read_of(*headers, now=3.1) == Read(7, 1, staleness=2, age=3)


def test_a_cap_counts_staleness_from_the_reader_s_own_round() -> None:
    headers = [Header(7, v, float(v), 1.0) for v in range(4)]
    assert read_of(*headers, now=9.0, cap=2) == Read(7, 2, staleness=0, age=2)


def test_what_is_not_here_yet_is_not_waited_for() -> None:
    headers = Header(7, 2, 2.0, 1.0), Header(7, 3, 3.0, 1.0)
    mailbox, tracker = mailbox_of(*headers), tracker_of(*headers)
    chosen = choose_read(mailbox, 7, None, 3.1, tracker, OwnTimes(1, []), lambda read: read.version < 3)
    assert chosen == Read(7, 2, staleness=1, age=0)


@pytest.mark.parametrize("seed", range(20))
def test_a_reader_that_is_stopped_now_and_then_knows_staleness_to_a_step_once_its_mail_is_in(seed: int) -> None:
    """A whole run in virtual time: steady neighbor, link of 3 steps, reader stopped at random."""
    draws = random.Random(seed)
    step, transit, number = 0.02, 0.065, 300
    sent = [step * v for v in range(1, number + 1)]
    tracker, taken, now = NeighborTracker(number), 0, 0.0
    while now < sent[-1]:
        now += 3.0 * draws.random() if draws.random() < 0.01 else step * (0.5 + draws.random())
        while taken < number and sent[taken] + transit <= now:
            tracker.take(Header(7, taken + 1, sent[taken], step, final=taken + 1 == number), now)
            taken += 1
        if taken:
            truth = bisect_right(sent, now) - taken
            assert abs(tracker.missed(now) - truth) <= 1


def test_lag_counts_what_a_neighbor_is_known_to_have_done() -> None:
    header = Header(7, 3, 1.0, 0.5)
    assert tracker_of(header, transit=2.6).lag(20, 3.9) == 20 - 3 - 5
    assert tracker_of(header).lag(2, 1.2) == -1
    assert tracker_of().lag(4, 9.9) == 4
