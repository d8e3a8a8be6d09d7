"""Delays in one word, as the command line takes them: ``pareto(2, 0.1s)``."""

import re
from typing import Any, NamedTuple, get_args

from ray_pcasgd.laws import Law

_UNITS = {"": ("steps", 1.0), "steps": ("steps", 1.0), "s": ("seconds", 1.0), "ms": ("seconds", 1e-3)}
_LAWS = {law.model_fields["name"].default: law for law in get_args(get_args(Law)[0])}
"""By name: those of the union that ``Law`` is."""


class WrittenDelay(NamedTuple):
    """A delay as it was written."""

    delay: dict[str, Any]
    """The law's settings."""
    unit: str
    """steps or seconds."""


def parse_delay(text: str) -> WrittenDelay:
    """Return the law of ``NAME(number, ...)``, its settings in their order, or of a bare number.

    Numbers with ``s`` or ``ms`` are seconds, and make the delay one in seconds; others are steps, or have no unit.

    >>> parse_delay("pareto(2, 100ms)")
    WrittenDelay(delay={'name': 'pareto', 'shape': 2.0, 'scale': 0.1}, unit='seconds')
    >>> parse_delay("20")
    WrittenDelay(delay={'name': 'constant', 'value': 20.0}, unit='steps')

    Raises:
        ValueError: it is no law, or not with so many numbers.

    """
    found = re.fullmatch(r"\s*([a-z-]+)\s*\((.*)\)\s*", text)
    name, inner = (found[1], found[2]) if found else ("constant", text)
    if name not in _LAWS or name == "measured":
        names = ", ".join(other for other in _LAWS if other != "measured")
        raise ValueError(f"law = {text!r}: allowed are {names}, with their numbers, such as pareto(2, 0.1s)")
    fields = [field for field in _LAWS[name].model_fields if field != "name"]
    numbers = [_number(text, part) for part in inner.split(",")]
    required = [field for field in fields if _LAWS[name].model_fields[field].is_required()]
    if not len(required) <= len(numbers) <= len(fields):
        raise ValueError(f"law = {text!r}: allowed is {name}({', '.join(fields)})")
    units = {unit for _, unit in numbers if unit is not None}
    if len(units) > 1:
        raise ValueError(f"law = {text!r}: allowed is one unit: numbers with s or ms, or steps")
    values = dict(zip(fields, (value for value, _ in numbers), strict=False))
    return WrittenDelay({"name": name, **values}, units.pop() if units else "steps")


def _number(text: str, part: str) -> tuple[float, str | None]:
    """Return a number and its unit; nothing where it has none."""
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[-+]?[0-9]+)?)\s*(steps|ms|s|)\s*", part)
    if not found:
        raise ValueError(f"law = {text!r}: {part.strip()!r} is no number; allowed are numbers, with s, ms or steps")
    unit, factor = _UNITS[found[2]]
    return float(found[1]) * factor, unit if found[2] else None
