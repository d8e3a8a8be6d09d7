"""A set of whole numbers, kept as ranges: of numbers that mostly come one after another it takes no more with each."""

from array import array
from bisect import bisect_right
from collections.abc import Iterator

import numpy as np


class Ranges:
    """A set of whole numbers, kept as ranges without gaps.

    >>> steps = Ranges()
    >>> [steps.add(step) for step in (0, 1, 5, 2, 1)]
    [True, True, True, True, False]
    >>> list(steps), 4 in steps, 5 in steps
    ([(0, 3), (5, 6)], False, True)
    """

    def __init__(self) -> None:
        self._begins = array("q")
        self._ends = array("q")
        """One above the last number of each range."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges, rising: the first number of each, and one above its last."""
        return zip(self._begins, self._ends, strict=True)

    @property
    def end(self) -> int:
        """One above the largest number; 0 of an empty set."""
        return self._ends[-1] if self._ends else 0

    def __contains__(self, number: int) -> bool:
        place = bisect_right(self._begins, number) - 1
        return place >= 0 and number < self._ends[place]

    def add(self, number: int) -> bool:
        """Add a number; return whether it is new."""
        begins, ends = self._begins, self._ends
        if ends and number == ends[-1]:  # what is added most
            ends[-1] += 1
            return True
        place = bisect_right(begins, number)
        if place and number < ends[place - 1]:
            return False
        touches_left = place > 0 and ends[place - 1] == number
        touches_right = place < len(begins) and begins[place] == number + 1
        if touches_left and touches_right:
            ends[place - 1] = ends.pop(place)
            del begins[place]
        elif touches_left:
            ends[place - 1] = number + 1
        elif touches_right:
            begins[place] = number
        else:
            begins.insert(place, number)
            ends.insert(place, number + 1)
        return True

    def contain(self, numbers: np.ndarray) -> np.ndarray:
        """Return which of the numbers are in the set, as an array of bools."""
        begins, ends = (np.array(side, dtype=np.int64) for side in (self._begins, self._ends))
        if not len(begins):
            return np.zeros(numbers.shape, dtype=bool)
        place = np.searchsorted(begins, numbers, side="right") - 1
        return (place >= 0) & (numbers < ends[place])
