"""How many messages reports count: what was sent, whether a version is reported before or after it."""

from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.engines.live.sending import SentCount

VERSIONS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()))
"""Receivers, how many of them were sent the version, and whether that was known when it was reported."""


@given(VERSIONS)
def test_reports_count_what_was_sent(versions: list[tuple[int, int, bool]]) -> None:
    count, reported, sent, left_out = SentCount(), 0, 0, 0
    for receivers, wanted, known in versions:
        messages = min(receivers, wanted)
        if known:
            count.sent(receivers, messages)
        number = count.counted(receivers)
        if not known:
            count.sent(receivers, messages)
        assert 0 <= number <= receivers
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
