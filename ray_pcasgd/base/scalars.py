"""What a plain YAML scalar is, by one table that reading and writing share: the core schema of YAML 1.2.

A number is written in ASCII digits: ``5``, ``+5``, ``-5``, ``010`` (ten), ``0x10``, ``0o17``, ``5.``, ``.5``,
``1.5e1``, ``1e-3``; ``.inf`` and ``.nan`` too. ``true`` and ``false`` are booleans, ``null``, ``~`` and an empty value
are null. Everything else is text: ``1:30``, ``1_000``, ``1,5``, ``0b1``, ``yes``, ``on``, ``2024-05-01``, and whatever
stands in quotes. PyYAML by itself follows YAML 1.1, where ``010`` is eight, ``1:30`` ninety, ``on`` true, and ``1.5e1``
text.
"""

import re
from typing import NamedTuple


class Kind(NamedTuple):
    """One kind of plain scalar."""

    tag: str
    form: re.Pattern[str]
    first: tuple[str, ...]
    """Characters that it may begin with; an empty text for an empty scalar."""


_TAG = "tag:yaml.org,2002:"
_DIGITS = "0123456789"

KINDS = (
    Kind(f"{_TAG}null", re.compile(r"(?:~|null|Null|NULL|)\Z"), ("~", "n", "N", "")),
    Kind(f"{_TAG}bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), tuple("tTfF")),
    Kind(f"{_TAG}int", re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"), tuple(f"+-{_DIGITS}")),
    Kind(
        f"{_TAG}float",
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
        ),
        tuple(f"+-.{_DIGITS}"),
    ),
    # Not of the core schema, but of every reader: one mapping taken into another.
    Kind(f"{_TAG}merge", re.compile(r"<<\Z"), ("<",)),
)
"""The kinds, in the order in which they are tried."""

LONGEST_NUMBER = 100
"""Digits of the longest number that is read."""


def number(text: str) -> int | float | None:
    """Return the number that a plain scalar is; ``None`` where it is not a number.

    >>> [number(text) for text in ("010", "1.5e1", "0x10", "+5", "1:30", "1_000", "5 ")]
    [10, 15.0, 16, 5, None, None, None]
    """
    if len(text) > LONGEST_NUMBER:
        return None
    kind = next((kind.tag for kind in KINDS if kind.form.match(text)), "")
    if kind == f"{_TAG}int":
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if kind == f"{_TAG}float":
        # Python writes infinity and not-a-number without the point.
        return float(re.sub(r"\.(?=[a-zA-Z])", "", text))
    return None
