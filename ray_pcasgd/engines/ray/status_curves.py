"""Curves of a run's status: the training loss and the test figures so far, in a bounded number of points."""

import math
from collections.abc import Mapping
from typing import NamedTuple

MOST_POINTS = 200
"""Points of a curve; a chart has no room for more."""


class Evaluation(NamedTuple):
    """The averaged model's test figures at a step."""

    step: int
    figures: dict[str, float]


class LossCurve:
    """The mean of the training losses over stretches of steps, which grow as the run goes on.

    >>> curve = LossCurve()
    >>> for step, loss in ((0, 4.0), (1, 2.0), (1, 3.0), (2, float("nan"))):
    ...     curve.take(step, loss)
    >>> curve.points()
    [(0, 4.0), (1, 2.5)]
    """

    def __init__(self, most_points: int = MOST_POINTS) -> None:
        self._most = most_points
        self._width = 1
        """Steps of a stretch."""
        self._stretches: dict[int, tuple[float, int]] = {}
        """Sum and number of the losses, by the stretch's place."""

    def take(self, step: int, loss: float) -> None:
        """Take in a loss; one that is not finite has no place in a mean."""
        if not math.isfinite(loss):
            return
        self._add(step // self._width, loss, 1)
        while len(self._stretches) > self._most:
            self._width *= 2
            narrow, self._stretches = self._stretches, {}
            for place, (total, number) in narrow.items():
                self._add(place // 2, total, number)

    def _add(self, place: int, total: float, number: int) -> None:
        before, count = self._stretches.get(place, (0.0, 0))
        self._stretches[place] = (before + total, count + number)

    def points(self, until: int | None = None) -> list[tuple[int, float]]:
        """Return the curve: the last step of each stretch, and the mean loss there.

        Without stretches that begin after ``until``, where that is given.
        """
        means = ((place, total / number) for place, (total, number) in sorted(self._stretches.items()))
        kept = ((place, mean) for place, mean in means if until is None or place * self._width <= until)
        return [((place + 1) * self._width - 1, mean) for place, mean in kept if math.isfinite(mean)]


def with_tested(
    curve: list[Evaluation], step: int, figures: Mapping[str, float], most_points: int = MOST_POINTS
) -> list[Evaluation]:
    """Return test figures with newer ones, those that are finite; where there are too many, without every second one.

    An evaluation that is made once more takes the place of the one before it.
    """
    known = {name: value for name, value in figures.items() if math.isfinite(value)}
    added = [*(one for one in curve if one.step < step), Evaluation(step, known)]
    return added if len(added) <= most_points else added[(len(added) - 1) % 2 :: 2]
