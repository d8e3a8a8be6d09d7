"""Laws in one word, wherever a law stands: ``pareto(2, 0.1s)``, ``200ms``, ``exponential(mean=3)``.

A number with ``s`` or ``ms`` is a time in seconds, one with ``steps`` counts steps. A bare one has no unit: what that
means is up to where the law stands. Units may also stand in the long form: ``{name: pareto, shape: 2, scale: 100ms}``.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ray_pcasgd.base.scalars import number
from ray_pcasgd.base.text import one_line

Unit = Literal["steps", "seconds"]

_UNITS: dict[str, tuple[Unit, float]] = {
    "step": ("steps", 1),
    "steps": ("steps", 1),
    "s": ("seconds", 1),
    "ms": ("seconds", 1000),
}
"""What a unit counts, and how many make one of it."""


_MEASURED: dict[Any, Unit] = {"s": "seconds", "ms": "seconds", "us": "seconds", "steps": "steps"}
"""What the unit of a file's values makes of a delay."""


class Form(NamedTuple):
    """The numbers of a law."""

    required: Sequence[str]
    optional: Sequence[str] = ()
    unitless: Sequence[str] = ()
    """Those that are no times."""

    @property
    def numbers(self) -> list[str]:
        """All of them, in their order."""
        return [*self.required, *self.optional]


FORMS: dict[str, Form] = {
    "constant": Form(["value"]),
    "uniform": Form(["low", "high"]),
    "exponential": Form(["mean"]),
    "shifted-exponential": Form(["shift", "mean"]),
    "pareto": Form(["shape", "scale"], unitless=["shape"]),
    "log-normal": Form(["median", "sigma"], unitless=["sigma"]),
    "outage": Form(["mean_up", "mean_down"], ["delay"]),
}
"""By the law's name; ``tests/unit/schedule/test_law_text.py`` compares them with the laws themselves."""

_EXAMPLES = f"{', '.join(FORMS)} with their numbers, such as pareto(2, 0.1s) or 200ms"


class WrittenDelay(NamedTuple):
    """A delay as it was written."""

    delay: dict[str, Any]
    """The law's settings."""
    unit: Unit
    """steps or seconds."""


def parse_delay(text: str) -> WrittenDelay:
    """Return the law of ``NAME(number, ...)``, its settings in their order or by name, or of a bare number.

    >>> parse_delay("pareto(2, 100ms)")
    WrittenDelay(delay={'name': 'pareto', 'shape': 2, 'scale': 0.1}, unit='seconds')
    >>> parse_delay("20")
    WrittenDelay(delay={'name': 'constant', 'value': 20}, unit='steps')

    Raises:
        ValueError: it is no law, or not with such numbers.

    """
    plain = number(text.strip())
    try:
        law, unit = read_law(text) if plain is None else ({"name": "constant", "value": plain}, None)
    except ValueError as error:
        raise ValueError(f"law = {one_line(repr(text), 80)}: {error}") from None
    if not isinstance(law, Mapping):
        raise ValueError(f"law = {one_line(repr(text), 80)}: allowed are {_EXAMPLES}")
    return WrittenDelay(dict(law), unit or "steps")


def read_law(given: Any) -> tuple[Any, Unit | None]:
    """Return a law's settings with numbers in seconds or steps, and their unit where one is said.

    What is no text, and no mapping with texts in place of numbers, comes back as it is; a bare name, too.

    Raises:
        ValueError: a text is no law, or its numbers do not go together.

    """
    if isinstance(given, str):
        return _read_text(given)
    name = given.get("name") if isinstance(given, Mapping) else None
    if isinstance(name, str) and name in FORMS:
        return _read_mapping(given)
    return given, _MEASURED.get(str(given.get("unit"))) if name == "measured" else None


def _read_text(text: str) -> tuple[Any, Unit | None]:
    found = re.fullmatch(r"\s*([a-zA-Z][a-zA-Z_ -]*?)\s*(?:\((.*)\))?\s*", text, re.DOTALL)
    if not found:
        time = _time(text)
        if time is None:
            raise ValueError(f"allowed are {_EXAMPLES}")
        if time[1] is None:
            raise ValueError(f"is text; allowed is {text.strip()} without quotes, or with a unit")
        return {"name": "constant", "value": time[0]}, time[1]
    name, inner = _name(found[1]), found[2]
    if inner is None:
        return name, None
    if name == "measured":
        raise ValueError("allowed for measured values are settings, {name: measured, path: FILE}")
    if name == "trace":
        raise ValueError("allowed for a trace are settings, {name: trace, path: FILE}")
    if name not in FORMS:
        raise ValueError(f"allowed are {_EXAMPLES}")
    numbers = FORMS[name].numbers
    values: dict[str, Any] = {}
    for place, part in enumerate(inner.split(",") if inner.strip() else []):
        key, equals, value = part.partition("=")
        key = key.strip() if equals else (numbers[place] if place < len(numbers) else "")
        if key not in numbers or key in values:
            raise ValueError(_form(name))
        values[key] = (value if equals else part).strip()
    if not set(FORMS[name].required) <= set(values):
        raise ValueError(_form(name))
    return _read_mapping({"name": name, **values})


def _read_mapping(given: Mapping[str, Any]) -> tuple[dict[str, Any], Unit | None]:
    """Read the texts among a law's numbers."""
    form, law, units = FORMS[given["name"]], dict(given), dict[str, Unit | None]()
    for key in form.numbers:
        value = given.get(key)
        if isinstance(value, str):
            time = _time(value)
            if time is None:
                told = one_line(repr(value), 80)
                raise ValueError(f"{key} = {told} is no number; allowed are numbers, with s, ms or steps")
            law[key], unit = time
        else:
            unit = None
        if unit or law.get(key):  # 0 is 0 in any unit
            units[key] = unit
    for key in form.unitless:
        if units.pop(key, None):
            told = one_line(repr(given[key]), 80)
            raise ValueError(f"{key} = {told} has a unit; allowed is a plain number, since it is no time")
    said = set(units.values())
    if len(said) > 1:
        raise ValueError(f"allowed is one unit for all of its times: {_with_units(given['name'])}")
    return law, said.pop() if said else None


def _time(text: str) -> tuple[float, Unit | None] | None:
    """Return a number and its unit, each ``None`` where it is missing."""
    found = re.fullmatch(r"\s*(.*?)\s*(steps?|ms|s|)\s*", text, re.DOTALL)
    value = number(found[1]) if found else None
    if not found or value is None:
        return None
    unit, parts = _UNITS[found[2]] if found[2] else (None, 1)
    try:
        return (value / parts if parts > 1 else value), unit
    except OverflowError:  # a whole number beyond all floating-point ones
        return float("inf"), unit


def _name(text: str) -> str:
    """Return the law that a name means, however its words are joined."""
    plain = re.sub("[_ -]", "", text.lower())
    return next((name for name in FORMS if name.replace("-", "") == plain), text.strip())


def _form(name: str) -> str:
    form = FORMS[name]
    optional = "".join(f"[, {key}]" for key in form.optional)
    return f"allowed is {name}({', '.join(form.required)}{optional})"


def _with_units(name: str) -> str:
    form = FORMS[name]
    return f"{name}({', '.join('2' if key in form.unitless else f'{n}s' for n, key in enumerate(form.required, 1))})"


def said_unit(given: Any) -> Unit | None:
    """Return the unit that a law, or a part of one, says itself.

    >>> said_unit("pareto(2, 3s)"), said_unit({"scale": "3 steps"}), said_unit(3)
    ('seconds', 'steps', None)
    """
    if isinstance(given, Mapping):
        texts = [value for key, value in given.items() if isinstance(value, str) and key not in _TEXTS]
        return next((unit for text in texts if (unit := _MEASURED.get(text) or said_unit(text))), None)
    try:
        return read_law(given)[1]
    except ValueError:
        return None


_TEXTS = ("name", "path", "column")
"""Settings of laws that are texts."""
