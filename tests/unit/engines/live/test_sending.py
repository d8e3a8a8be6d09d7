"""How many messages reports count: what was sent, whether a version is reported before or after it."""

from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.engines.live.sending import InStep, SentCount

VERSIONS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans(), st.integers(0, 5)))
"""Receivers, how many of them were sent the version at once, whether that was known when it was reported, and how many
that were not sent theirs at once have been sent it since, at most."""


@given(VERSIONS)
def test_reports_count_what_was_sent(versions: list[tuple[int, int, bool]]) -> None:
    count, reported, sent, left_out = SentCount(), 0, 0, 0
    waiting = 0
    for receivers, wanted, known, late in versions:
        follow = min(waiting, late)
        messages = min(receivers, wanted) + follow
        waiting = waiting - follow + receivers - min(receivers, wanted)
        if known:
            count.sent(receivers, messages)
        number = count.counted(receivers)
        if not known:
            count.sent(receivers, messages)
        assert number >= 0
        reported, sent = reported + number, sent + messages
        left_out = max(left_out, receivers - messages)
    # A last report without receivers to come owes nothing any more once versions follow that all are sent.
    for _ in range(40):
        count.sent(5, 5)
        reported, sent = reported + count.counted(5), sent + 5
    assert reported == sent


def test_what_is_left_out_is_not_counted_with_the_next_version() -> None:
    count = SentCount()
    assert count.counted(3) == 3
    count.sent(3, 1)
    assert count.counted(3) == 1
    count.sent(3, 3)
    assert count.counted(3) == 3


def test_who_was_not_sent_the_version_before_is_sent_a_whole_copy() -> None:
    steps = InStep()
    steps.begin((1,))
    assert steps.send((1, 2), 1, is_difference=True) == {2}, "version 0 is known to all who are there"
    steps.sent((1, 2), (1,))
    assert steps.send((1, 2), 4, is_difference=False) == {1, 2}, "nobody has what it would differ from"
    steps.sent((1, 2), (1, 2))
    assert steps.send((1, 2, 3), 5, is_difference=True) == {3}, "it has come in"
    steps.sent((1, 2, 3), (1, 3))
    assert steps.send((1, 2, 3), 6, is_difference=True) == {2}, "it was not sent version 5"
    steps.lose((1,))
    steps.sent((1, 2, 3), (1, 2, 3))
    assert steps.send((2, 3), 7, is_difference=True) == set()
    steps.sent((2, 3), (2, 3))
    assert steps.send((1, 2, 3), 8, is_difference=True) == {1}, "it was lost, and is another one"
    # Version 4 was whole for all, which its report says itself; the last one was not sent yet.
    assert steps.counted() == 2
    steps.sent((1, 2, 3), (2, 3))
    assert steps.counted() == 0
