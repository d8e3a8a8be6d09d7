"""Pydantic's errors in one line each: the setting as the user writes it, its value, and what is allowed."""

import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from ray_pcasgd.config import Config
from ray_pcasgd.settings import Settings
from ray_pcasgd.wording import one_line as one_line

_ALLOWED = {
    "greater_than_equal": "allowed are values from {ge:g} on",
    "greater_than": "allowed are values above {gt:g}",
    "less_than_equal": "allowed are values up to {le:g}",
    "less_than": "allowed are values below {lt:g}",
    "finite_number": "allowed are finite numbers",
    "int_type": "allowed is a whole number",
    "int_parsing": "allowed is a whole number",
    "int_from_float": "allowed is a whole number",
    "float_type": "allowed is a number",
    "float_parsing": "allowed is a number",
    "bool_type": "allowed are true and false",
    "bool_parsing": "allowed are true and false",
    "string_type": "allowed is text",
    "string_pattern_mismatch": "allowed is text of the form {pattern}",
    "path_type": "allowed is a path",
    "literal_error": "allowed are {expected}",
    "tuple_type": "allowed is a list",
    "too_short": "allowed are {min_length} items or more",
    "too_long": "allowed are up to {max_length} items",
    "dict_type": "allowed is a mapping",
    "model_type": "allowed is a mapping of settings",
    "model_attributes_type": "allowed is a mapping with a name",
    "invalid_key": "no such setting",
    "missing": "is required",
    "union_tag_not_found": "is required",
}
"""By pydantic's type of error; its own words stand where a type is not here."""

_LONGEST = 80
"""Characters of a value that are shown."""


class _Finding(NamedTuple):
    path: str
    subject: str
    allowed: str


def explain(error: ValidationError, tree: Any) -> list[str]:
    """Return one line for each wrong setting of ``tree``, the settings as they were given."""
    findings = [_finding(dict(item), tree) for item in error.errors(include_url=False)]
    # Where one of several types may stand, there is an error for each: what is said of the inner parts says more.
    telling = [f for f in findings if not any(_is_inside(other.path, f.path) for other in findings)]
    lines: dict[str, list[str]] = {}
    for finding in telling:
        allowed = lines.setdefault(finding.subject, [])
        if finding.allowed not in allowed:
            allowed.append(finding.allowed)
    return [one_line(f"{subject}: {_joined(allowed)}") for subject, allowed in lines.items()]


def written(value: Any) -> str:
    """Return a value much as it would be written in YAML, cut where it is long.

    >>> written((1, 2)), written(None), written("two")
    ('[1, 2]', 'null', "'two'")
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = one_line(repr(list(value) if isinstance(value, tuple) else value))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _is_inside(path: str, outer: str) -> bool:
    return path.startswith(f"{outer}.") if outer else bool(path)


def _joined(allowed: list[str]) -> str:
    first, *others = allowed
    return " or ".join([first, *(re.sub("^allowed (is|are) ", "", other) for other in others)])


def _finding(item: dict[str, Any], tree: Any) -> _Finding:
    location, kind, context = item["loc"], item["type"], item.get("ctx", {})
    path, value = _path(location, tree)
    subject = f"{path} = {written(value)}"
    if kind == "extra_forbidden":
        return _Finding(path, subject, f"no such setting{_nearest(location, path)}")
    if kind == "missing":
        path = f"{path}.{location[-1]}".lstrip(".")
        return _Finding(path, path, _ALLOWED[kind])
    if kind == "union_tag_not_found":
        return _Finding(path, f"{path}.name", _ALLOWED[kind])
    if kind == "union_tag_invalid":
        given = value
        if isinstance(given, Mapping):
            path, value = f"{path}.name", given.get("name")
        expected = context["expected_tags"].replace("'", "")
        if not isinstance(given, Mapping) and "constant" in expected.split(", "):
            expected = f"numbers, {expected}"  # what has constants among its kinds takes a bare number for one
        return _Finding(path, f"{path} = {written(value)}", f"allowed are {expected}{_meant(value, expected)}")
    if kind == "value_error":
        return _named_by_message(path, value, one_line(item["msg"].removeprefix("Value error, ")))
    allowed = _ALLOWED[kind].format(**context) if kind in _ALLOWED else item["msg"]
    return _Finding(path, subject, allowed[0].lower() + allowed[1:])


def _named_by_message(path: str, value: Any, message: str) -> _Finding:
    """Return the finding of one of our own validators, whose messages may begin with a setting and its value."""
    named = re.match(r"([a-z_0-9.]+)( = .*?)?: (?=\S)", message)
    if not named:
        return _Finding(path, f"{path} = {written(value)}", message.removeprefix(f"{value!r}: "))
    parent, _, last = path.rpartition(".")
    place = parent if named[1] == last else path
    return _Finding(path, f"{place}.{named[1]}{named[2] or ''}".lstrip("."), message[named.end() :])


def _path(location: Sequence[int | str], tree: Any) -> tuple[str, Any]:
    """Return a pydantic location as a dotted path without the tags of unions, and the value that stands there."""
    parts = []
    for part in location:
        holds = part in tree if isinstance(tree, Mapping) else isinstance(tree, list | tuple) and isinstance(part, int)
        if holds:  # else it is the tag of a union, which nobody writes
            tree = tree[part]
            parts.append(str(part))
    return ".".join(parts), tree


def _nearest(location: Sequence[int | str], path: str) -> str:
    """Return the setting that was probably meant, or all that there are at this place."""
    models: list[type[Settings]] = [Config]
    for part in location[:-1]:
        tagged = [m for m in models if "name" in m.model_fields and m.model_fields["name"].default == part]
        inside = [field for m in models if (field := m.model_fields.get(str(part))) is not None]
        models = tagged or [s for field in inside for s in _settings_in(field.annotation)] or models
    valid = sorted({name for model in models for name in model.model_fields})
    parent, _, given = path.rpartition(".")
    close = difflib.get_close_matches(given, valid, 1)
    meant = f"{parent}.{close[0]}".lstrip(".") if close else ""
    return f"; did you mean {meant}?" if meant else f"; allowed are {', '.join(valid)}"


def _meant(given: Any, expected: str) -> str:
    close = difflib.get_close_matches(str(given), expected.split(", "), 1)
    return f"; did you mean {close[0]}?" if close else ""


def _settings_in(annotation: Any) -> list[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [found for inner in typing.get_args(annotation) for found in _settings_in(inner)]
