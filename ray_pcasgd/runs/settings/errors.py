"""Pydantic's errors in one line each: the setting as the user writes it, its value, and what is allowed."""

import difflib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from ray_pcasgd.base.doors import inside
from ray_pcasgd.base.settings import Settings
from ray_pcasgd.base.text import one_line as one_line
from ray_pcasgd.config import Config
from ray_pcasgd.runs.settings import hints
from ray_pcasgd.runs.settings.misspelling import allowed_at, allowed_for_item, as_written, kinds_at, meant
from ray_pcasgd.schedule.law_text import FORMS

_ALLOWED = {
    "greater_than_equal": "allowed are values from {ge} on",
    "greater_than": "allowed are values above {gt}",
    "less_than_equal": "allowed are values up to {le}",
    "less_than": "allowed are values below {lt}",
    "finite_number": "allowed are finite numbers",
    "int_type": "allowed is a whole number",
    "int_parsing": "allowed is a whole number",
    "int_from_float": "allowed is a whole number",
    "int_parsing_size": "allowed is a whole number of fewer digits",
    "float_type": "allowed is a number",
    "bool_type": "allowed are true and false",
    "string_type": "allowed is text",
    "string_pattern_mismatch": "allowed is text of the form {pattern}",
    "string_too_long": "allowed is text of up to {max_length} characters",
    "path_type": "allowed is a path",
    "literal_error": "allowed are {expected}",
    "tuple_type": "allowed is a list",
    "too_short": "allowed are {min_length} items or more",
    "too_long": "allowed are up to {max_length} items",
    "dict_type": "allowed is a mapping",
    "model_type": "allowed is a mapping of settings",
    "invalid_key": "no such setting",
}
"""By pydantic's type of error; its own words stand where a type is not here."""

_LONGEST = 80
"""Characters of a value that are shown."""

_NUMBERS_OF_LAWS = {number for form in FORMS.values() for number in form.numbers}
"""What an error in a law that was written in one word may be about."""


class _Finding(NamedTuple):
    path: str
    subject: str
    allowed: str
    hint: str = ""
    """What to write."""


def explain(error: ValidationError, tree: Any, root: type[Settings] = Config) -> list[str]:
    """Return one line for each wrong setting of ``tree``, the settings of the class ``root`` as they were given."""
    findings = [_finding(dict(item), tree, root) for item in error.errors(include_url=False)]
    # Where one of several types may stand, there is an error for each: what is said of the inner parts says more.
    telling = [f for f in findings if not any(_is_inside(other.path, f.path) for other in findings)]
    lines: dict[str, list[_Finding]] = {}
    for finding in telling:
        lines.setdefault(finding.subject, []).append(finding)
    return [one_line(f"{subject}: {_joined(found)}") for subject, found in lines.items()]


def yaml_value(value: Any) -> str:
    """Return a value much as it would be written in YAML, cut where it is long.

    >>> yaml_value((1, 2)), yaml_value(None), yaml_value("two")
    ('[1, 2]', 'null', "'two'")
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = one_line(repr(list(value) if isinstance(value, tuple) else value))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _is_inside(path: str, outer: str) -> bool:
    return path.startswith(f"{outer}.") if outer else bool(path)


def _joined(findings: list[_Finding]) -> str:
    first, *others = dict.fromkeys(finding.allowed for finding in findings)
    allowed = " or ".join([first, *(re.sub("^allowed (is|are) ", "", other) for other in others)])
    hint = next((finding.hint for finding in findings if finding.hint), "")
    return f"{allowed}; {hint}" if hint else allowed


def _finding(item: dict[str, Any], tree: Any, root: type[Settings], outer: str = "") -> _Finding:
    """Return what an error says; ``outer`` is the path that leads to the tree, with a dot behind it."""
    location, kind = item["loc"], item["type"]
    found = inside(location, tree)
    if found is not None and location[found.depth :]:
        path = as_written(location[: found.depth], tree)[0]
        return _finding({**item, "loc": location[found.depth :]}, found.settings, found.owner, f"{outer}{path}.")
    context = {key: f"{part:g}" if isinstance(part, float) else part for key, part in item.get("ctx", {}).items()}
    path, value, left = as_written(location, tree)
    path = (outer + path).rstrip(".")
    subject = f"{path} = {yaml_value(value)}"
    if kind == "extra_forbidden":
        return _Finding(path, subject, "no such setting", meant(location, path, root))
    if kind == "missing":
        pair = allowed_at(location[:-1], root) or allowed_for_item(location[:-1], root)
        if isinstance(location[-1], int) and pair:
            return _Finding(path, subject, f"allowed is {pair}")
        allowed = allowed_at(location, root)
        hint = f"allowed is {allowed}" if allowed else hints.for_value(path, str(value))
        path = f"{path}.{location[-1]}".lstrip(".")
        return _Finding(path, path, "is required", hint)
    if kind == "union_tag_not_found" and isinstance(value, Mapping):
        return _Finding(path, f"{path}.name", f"is required; allowed are {', '.join(kinds_at(location, root))}")
    if kind in ("union_tag_not_found", "union_tag_invalid", "model_attributes_type"):
        return _wrong_name(path, value, kinds_at(location, root))
    if kind == "value_error":
        return _named_by_message(path, value, one_line(item["msg"].removeprefix("Value error, ")))
    allowed = _ALLOWED[kind].format(**context) if kind in _ALLOWED else item["msg"]
    within = f"{left}: " if left in _NUMBERS_OF_LAWS and isinstance(value, str) else ""
    hint = _hint(kind, path, value, context, "null" in allowed_at(location, root))
    return _Finding(path, subject, within + allowed[0].lower() + allowed[1:], hint)


def _wrong_name(path: str, value: Any, kinds: Mapping[str, type[Settings]]) -> _Finding:
    """Return the finding of a name that no kind of thing has at this place, or of a value that is not a name."""
    given, names = value, list(kinds)
    place = path
    if isinstance(given, Mapping):
        place, given = f"{path}.name", given.get("name")
    # What has constants among its kinds takes a bare number for one.
    takes_numbers = not isinstance(value, Mapping) and "constant" in kinds and "value" in kinds["constant"].model_fields
    allowed = ", ".join((["numbers"] if takes_numbers else []) + names)
    hint = hints.for_number(given) if takes_numbers else ""
    if isinstance(given, str) and not hint:
        near = difflib.get_close_matches(given, names, 1)
        name = hints.for_name(path, given, names) or next(iter(near), "")
        hint = f"did you mean {name}?" if name and ":" not in given else ""
    return _Finding(
        path, f"{place} = {yaml_value(given)}", f"allowed are {allowed}", hint or hints.for_value(path, value)
    )


def _hint(kind: str, path: str, value: Any, context: Mapping[str, Any], takes_null: bool) -> str:
    """Return what to write in place of a value of the wrong kind."""
    if kind == "string_pattern_mismatch":
        return hints.for_pattern(path)
    if kind == "literal_error":
        names = re.findall("'([^']*)'", str(context["expected"]))
        name = hints.for_name(path, value, names) or next(iter(difflib.get_close_matches(str(value), names, 1)), "")
        return f"did you mean {name}?" if name else hints.for_value(path, value)
    if kind in ("int_type", "float_type"):
        return "write null" if takes_null and hints.is_null(value) else hints.for_number(value)
    return hints.for_boolean(value) if kind == "bool_type" else hints.for_value(path, value)


def _named_by_message(path: str, value: Any, message: str) -> _Finding:
    """Return the finding of one of our own validators, whose messages may begin with a setting and its value."""
    message = message.removeprefix(f"{one_line(repr(value))}: ")
    named = re.match(r"([a-z_0-9.]+)( = .*?)?: (?=\S)", message)
    if not named:
        hint = hints.for_value(path, value) if isinstance(value, type) else ""
        return _Finding(path, f"{path} = {yaml_value(value)}", message, hint)
    parent, _, last = path.rpartition(".")
    place = parent if named[1] == last else path
    return _Finding(path, f"{place}.{named[1]}{named[2] or ''}".lstrip("."), message[named.end() :])
