"""What a live agent reads, message by message."""

import math
from bisect import bisect_right

from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.mailbox import Header, Mailbox, Message
from ray_pcasgd.records import Read
from ray_pcasgd.schedule.reading import OwnTimes, choose_read, steps_missed


def mailbox_of(*headers: Header) -> Mailbox[str]:
    mailbox: Mailbox[str] = Mailbox((7,))
    for header in headers:
        mailbox.put(Message(header, "contents"), 0.0)
    return mailbox


def read(
    mailbox: Mailbox[str], now: float, needs_pair: bool = False, cap: int | None = None, transit: float = math.inf
) -> Read | None:
    own = OwnTimes(1, [0.5, 1.5, 2.5, 3.5])

    def may_read(read: Read) -> bool:
        return not needs_pair or read.staleness == 0 or mailbox.following(7, read.version) is not None

    return choose_read(mailbox, 7, cap, now, transit, own, may_read)


def test_the_newest_version_is_fresh_within_one_step_of_its_sender() -> None:
    assert read(mailbox_of(Header(7, 3, 3.0, 1.0)), now=3.9) == Read(7, 3, staleness=0, age=1)


def test_staleness_counts_the_steps_that_the_sender_has_probably_taken_since() -> None:
    assert steps_missed(Header(7, 3, 1.0, 0.5), now=3.9, transit_seconds=math.inf) == 5
    assert read(mailbox_of(Header(7, 3, 1.0, 0.5)), now=3.9) == Read(7, 3, staleness=5, age=3)


def test_a_sender_whose_messages_come_at_once_and_that_is_silent_is_slow_and_not_ahead() -> None:
    assert read(mailbox_of(Header(7, 3, 1.0, 0.5)), now=3.9, transit=0.1) == Read(7, 3, staleness=0, age=3)
    assert read(mailbox_of(Header(7, 3, 1.0, 0.5)), now=3.9, transit=1.1) == Read(7, 3, staleness=2, age=3)


@given(st.floats(0.1, 3.0), st.floats(0.0, 10.0), st.floats(0.0, 40.0))
def test_of_a_steady_sender_and_link_the_estimate_is_right_to_a_step(step: float, transit: float, now: float) -> None:
    sent = [number * step for number in range(1, 1000)]
    arrived = bisect_right([moment + transit for moment in sent], now)
    newest = Header(7, arrived, sent[arrived - 1] if arrived else 0.0, step)
    assert abs(steps_missed(newest, now, transit) - (bisect_right(sent, now) - arrived)) <= 1


@given(st.lists(st.floats(0.1, 9.0), min_size=1, max_size=20), st.floats(0.0, 0.09), st.floats(0.0, 1.0))
def test_where_messages_come_faster_than_steps_nothing_is_missed(
    pauses: list[float], transit: float, at: float
) -> None:
    newest = Header(7, len(pauses), sum(pauses), sum(pauses) / len(pauses))
    assert steps_missed(newest, sum(pauses) + 100 * at, transit) == 0


def test_a_slow_sender_is_not_stale_though_the_reader_has_moved_on() -> None:
    assert read(mailbox_of(Header(7, 3, 0.0, 100.0)), now=3.9) == Read(7, 3, staleness=0, age=4)


def test_a_sender_that_has_finished_is_never_stale() -> None:
    assert steps_missed(Header(7, 3, 0.0, 0.5, final=True), now=99.0, transit_seconds=math.inf) == 0


def test_a_stale_version_without_its_direction_gives_way_to_the_one_before() -> None:
    headers = Header(7, 2, 0.0, 0.5), Header(7, 3, 1.0, 0.5)
    assert read(mailbox_of(*headers), now=3.9, needs_pair=True) == Read(7, 2, staleness=6, age=4)


def test_a_neighbor_of_which_no_complete_pair_is_here_is_left_out() -> None:
    assert read(mailbox_of(Header(7, 3, 1.0, 0.5)), now=3.9, needs_pair=True) is None


def test_a_version_that_is_held_back_is_read_once_enough_steps_are_known() -> None:
    headers = [Header(7, v, float(v), 1.0, hold_steps=2) for v in range(4)]
    assert read(mailbox_of(*headers), now=3.1) == Read(7, 1, staleness=2, age=3)


def test_a_cap_counts_staleness_from_the_reader_s_own_round() -> None:
    headers = [Header(7, v, float(v), 1.0) for v in range(4)]
    assert read(mailbox_of(*headers), now=9.0, cap=2) == Read(7, 2, staleness=0, age=2)


def test_what_is_not_here_yet_is_not_waited_for() -> None:
    mailbox = mailbox_of(Header(7, 2, 2.0, 1.0), Header(7, 3, 3.0, 1.0))
    chosen = choose_read(mailbox, 7, None, 3.1, math.inf, OwnTimes(1, []), lambda read: read.version < 3)
    assert chosen == Read(7, 2, staleness=1, age=0)
