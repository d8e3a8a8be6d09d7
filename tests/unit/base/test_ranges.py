from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.base.ranges import Ranges

NUMBERS = st.lists(st.integers(0, 30) | st.integers(0, 2**40), max_size=60)


@given(NUMBERS)
def test_ranges_are_the_set_of_what_was_added(numbers: list[int]) -> None:
    ranges, reference = Ranges(), set[int]()
    for number in numbers:
        assert ranges.add(number) == (number not in reference)
        reference.add(number)
    looked_for = np.array([*range(-1, 40), *numbers, *(number + 1 for number in numbers)])
    assert [int(number) in ranges for number in looked_for] == [number in reference for number in looked_for]
    assert ranges.contain(looked_for).tolist() == [number in reference for number in looked_for]
    assert ranges.end == max(reference, default=-1) + 1
    kept = list(ranges)
    assert sum(end - begin for begin, end in kept) == len(reference)
    assert all(one[1] < other[0] for one, other in pairwise(kept)), "ranges that touch are one"


def test_numbers_one_after_another_take_one_range() -> None:
    ranges = Ranges()
    for number in (*range(0, 1000, 2), *range(1, 1000, 2)):
        ranges.add(number)
    assert list(ranges) == [(0, 1000)]
