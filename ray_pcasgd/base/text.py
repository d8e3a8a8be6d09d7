"""How measured values are written for people, on the terminal and in the report alike."""

import math
import statistics
from collections.abc import Iterable

from ray_pcasgd.base.locations import without_keys

NOTHING = "–"
"""Stands where there is no value."""


def main_metric(columns: Iterable[str]) -> str | None:
    """Return the column of the metric to look at first: the first ``test_...`` but the loss, else the loss if any.

    >>> main_metric(["step", "test_loss", "test_accuracy"])
    'test_accuracy'
    """
    tests = [column for column in columns if column.startswith("test_")]
    return next((column for column in tests if column != "test_loss"), tests[0] if tests else None)


SPREAD = "± is the sample standard deviation over seeds"
"""What ± says on every page and in every table."""


def deviation_over(values: Iterable[float]) -> float | None:
    """Return the sample standard deviation over seeds; None for fewer than two.

    >>> deviation_over([1.0, 3.0]), deviation_over([1.0])
    (1.4142135623730951, None)
    """
    known = [value for value in values if not math.isnan(value)]
    return statistics.stdev(known) if len(known) > 1 else None


def is_share(column: str) -> bool:
    """Return whether a column's values lie in [0, 1] and are written in percent."""
    return "accuracy" in column.lower() or column.endswith("share")


def spoken(column: str) -> str:
    """Return a column's name in words.

    >>> spoken("test_top-5-accuracy")
    'test top-5-accuracy'
    """
    return column.replace("_", " ")


def format_value(column: str, value: float | None, deviation: float | None = None) -> str:
    """Return a column's value as text, with its standard deviation over seeds where there is one.

    >>> format_value("test_accuracy", 0.9593, 0.0042), format_value("test_mse", 0.012345)
    ('95.9 ± 0.4 %', '0.01235')
    >>> format_value("test_mse", 0.02, 0.0034)
    '0.0200 ± 0.0034'
    """
    if value is None or math.isnan(value):
        return NOTHING
    spread = None if deviation is None or math.isnan(deviation) else deviation
    if is_share(column):
        return f"{100 * value:.1f}" + (f" ± {100 * spread:.1f} %" if spread is not None else " %")
    if spread is None or not 1e-6 < spread < 1e7:
        return (f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}") + ("" if spread is None else " ± 0")
    # Both to the place of the deviation's second digit.
    places = max(0, 1 - math.floor(math.log10(spread)))
    return f"{value:,.{places}f} ± {spread:,.{places}f}"


def duration(seconds: float) -> str:
    """Return a duration as minutes and seconds, with hours where it has any.

    >>> duration(75.2), duration(3675)
    ('1:15', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def printable(text: object) -> str:
    r"""Return a text whose control characters, which a terminal takes for commands, are spaces; so are line breaks.

    So are marks that turn the direction of writing; keys in locations are masked.

    >>> printable("a\x1b[2J  b")
    'a [2J  b'
    """
    return "".join(c if c.isprintable() else " " for c in without_keys(str(text)))


def one_line(message: object, longest: int | None = None) -> str:
    r"""Return a message as one line of printable characters, cut where it has more than ``longest`` characters.

    >>> one_line("a\x1b[2J b\n c"), one_line("much too long", 8)
    ('a [2J b c', 'much too...')
    """
    text = " ".join(printable(message).split())
    return text if longest is None or len(text) <= longest else f"{text[:longest]}..."
