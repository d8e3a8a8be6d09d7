"""How many messages reports count: what was sent, whether a version is reported before or after it."""

from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.engines.live.sending import SentCount

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
