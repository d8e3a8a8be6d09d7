"""What a plain YAML scalar is, by one table that reading and writing share: the core schema of YAML 1.2.

A number is written in ASCII digits: ``5``, ``+5``, ``-5``, ``010`` (ten), ``0x10``, ``0o17``, ``5.``, ``.5``,
``1.5e1``, ``1e-3``; ``.inf`` and ``.nan`` too. ``true`` and ``false`` are booleans, ``null``, ``~`` and an empty value
are null. Everything else is text: ``1:30``, ``1_000``, ``1,5``, ``0b1``, ``yes``, ``on``, ``2024-05-01``, and whatever
stands in quotes. PyYAML by itself follows YAML 1.1, where ``010`` is eight, ``1:30`` ninety, ``on`` true, and ``1.5e1``
text.
"""

import re
from typing import Any, NamedTuple

import yaml


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

LONGEST_NUMBER = 1000
"""Digits of the longest whole number that is read; Python refuses to read a few thousand more."""


def number(text: str) -> int | float | None:
    """Return the number that a plain scalar is; ``None`` where it is none.

    >>> [number(text) for text in ("010", "1.5e1", "0x10", "+5", "1:30", "1_000", "5 ")]
    [10, 15.0, 16, 5, None, None, None]
    """
    kind = next((kind.tag for kind in KINDS if kind.form.match(text)), "")
    if kind == f"{_TAG}int" and len(text) <= LONGEST_NUMBER:
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if kind == f"{_TAG}float":
        # Python writes infinity and not-a-number without the point.
        return float(re.sub(r"\.(?=[a-zA-Z])", "", text))
    return None


def follow_core_schema(loader: type[yaml.SafeLoader]) -> None:
    """Let a class of PyYAML's loaders read plain scalars by ``KINDS``; those of its base class stay as they are."""
    loader.yaml_implicit_resolvers = _resolvers()
    for tag in ("int", "float"):
        loader.add_constructor(f"{_TAG}{tag}", _constructed)


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for kind in KINDS:
        for character in kind.first:
            resolvers.setdefault(character, []).append((kind.tag, kind.form))
    return resolvers


def _constructed(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    value = number(text := str(loader.construct_scalar(node)))
    if value is None:  # an explicit tag such as `!!int x`, or a number of thousands of digits
        raise yaml.constructor.ConstructorError(None, None, f"{text[:40]!r} is no number", node.start_mark)
    return value


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.2 or YAML 1.1 would read as something else: others read these files, too."""


_Dumper.yaml_implicit_resolvers = {
    first: [*_resolvers().get(first, []), *yaml.SafeDumper.yaml_implicit_resolvers.get(first, [])]
    for first in {*_resolvers(), *yaml.SafeDumper.yaml_implicit_resolvers}
}


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # Between single quotes these would be read as a line's end, and become a space.
    style = '"' if set(text) & set("\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar(f"{_TAG}str", text, style)


_Dumper.add_representer(str, _text)


def to_yaml(tree: Any) -> str:
    r"""Return a tree of plain values as YAML, which reads back to the same values by the core schema.

    >>> to_yaml({"name": "1e3", "seed": 10, "note": "on"})
    "name: '1e3'\nseed: 10\nnote: 'on'\n"
    """
    return str(yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True))
