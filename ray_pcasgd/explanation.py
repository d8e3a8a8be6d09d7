"""Pydantic's errors in one line each: the setting as the user writes it, its value, and what is allowed."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

from pydantic import ValidationError

from ray_pcasgd import hints
from ray_pcasgd.config import Config
from ray_pcasgd.law_text import FORMS
from ray_pcasgd.settings import Settings
from ray_pcasgd.settings_reference import describe, kind_of, kinds_in, places

_ALLOWED = {
    "greater_than_equal": "allowed are values from {ge:g} on",
    "greater_than": "allowed are values above {gt:g}",
    "less_than_equal": "allowed are values up to {le:g}",
    "less_than": "allowed are values below {lt:g}",
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
    "model_attributes_type": "allowed is a mapping with a name",
    "invalid_key": "no such setting",
    "missing": "is required",
    "union_tag_not_found": "is required",
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


def explain(error: ValidationError, tree: Any, root: type[Settings] = Config) -> list[str]:
    """Return one line for each wrong setting of ``tree``, the settings of the class ``root`` as they were given."""
    findings = [_finding(dict(item), tree, root) for item in error.errors(include_url=False)]
    # Where one of several types may stand, there is an error for each: what is said of the inner parts says more.
    telling = [f for f in findings if not any(_is_inside(other.path, f.path) for other in findings)]
    lines: dict[str, list[str]] = {}
    for finding in telling:
        allowed = lines.setdefault(finding.subject, [])
        if finding.allowed not in allowed:
            allowed.append(finding.allowed)
    return [f"{subject}: {_joined(allowed)}" for subject, allowed in lines.items()]


def one_line(message: object) -> str:
    """Return a message without its line breaks."""
    return " ".join(str(message).split())


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


def _finding(item: dict[str, Any], tree: Any, root: type[Settings]) -> _Finding:
    location, kind, context = item["loc"], item["type"], item.get("ctx", {})
    path, value, left = _path(location, tree)
    subject = f"{path} = {written(value)}"
    if kind == "extra_forbidden":
        return _Finding(path, subject, f"no such setting{_unknown(location, path, tree, root)}")
    if kind == "missing":
        path = f"{path}.{location[-1]}".lstrip(".")
        return _Finding(path, path, f"is required{_required(location, root)}")
    if kind == "union_tag_not_found":
        return _Finding(path, f"{path}.name", f"is required; allowed are {', '.join(_kinds_at(location, root))}")
    if kind == "union_tag_invalid":
        return _wrong_name(path, value, context["expected_tags"].replace("'", "").split(", "))
    if kind == "value_error":
        return _named_by_message(path, value, one_line(item["msg"].removeprefix("Value error, ")))
    allowed = _ALLOWED[kind].format(**context) if kind in _ALLOWED else item["msg"]
    within = f"{left}: " if left in _NUMBERS_OF_LAWS and isinstance(value, str) else ""
    return _Finding(path, subject, within + allowed[0].lower() + allowed[1:] + _hint(kind, path, value))


def _wrong_name(path: str, value: Any, names: list[str]) -> _Finding:
    """Return the finding of a name that no kind of thing has at this place."""
    given = value
    place = path
    if isinstance(given, Mapping):
        place, given = f"{path}.name", given.get("name")
    # What has constants among its kinds takes a bare number for one.
    takes_numbers = not isinstance(value, Mapping) and "constant" in names
    allowed = ", ".join((["numbers"] if takes_numbers else []) + names)
    meant = hints.for_name(path, given, names) or next(iter(difflib.get_close_matches(str(given), names, 1)), "")
    hint = f"did you mean {meant}?" if meant else hints.for_value(path, value)
    hint = (hints.for_number(given) if takes_numbers else "") or hint
    return _Finding(path, f"{place} = {written(given)}", f"allowed are {allowed}" + (f"; {hint}" if hint else ""))


def _hint(kind: str, path: str, value: Any) -> str:
    """Return what to write in place of a value of the wrong kind, after a semicolon."""
    hint = hints.for_pattern(path) if kind == "string_pattern_mismatch" else hints.for_value(path, value)
    if kind in ("int_type", "float_type"):
        hint = hints.for_number(value)
    if kind == "bool_type":
        hint = hints.for_boolean(value)
    return f"; {hint}" if hint else ""


def _named_by_message(path: str, value: Any, message: str) -> _Finding:
    """Return the finding of one of our own validators, whose messages may begin with a setting and its value."""
    named = re.match(r"([a-z_0-9.]+)( = .*?)?: (?=\S)", message)
    if not named:
        return _Finding(path, f"{path} = {written(value)}", message.removeprefix(f"{value!r}: "))
    parent, _, last = path.rpartition(".")
    place = parent if named[1] == last else path
    return _Finding(path, f"{place}.{named[1]}{named[2] or ''}".lstrip("."), message[named.end() :])


def _path(location: Sequence[int | str], tree: Any) -> tuple[str, Any, str]:
    """Return a pydantic location as a dotted path without the tags of unions, the value there, and what lies below."""
    parts, left = [], ""
    for part in location:
        holds = part in tree if isinstance(tree, Mapping) else isinstance(tree, list | tuple) and isinstance(part, int)
        if holds:  # else it is the tag of a union, which nobody writes, or a part of what was written in short form
            tree, left = tree[part], ""
            parts.append(str(part))
        else:
            left = str(part)
    return ".".join(parts), tree, left


def _models_at(location: Sequence[int | str], root: type[Settings]) -> list[type[Settings]]:
    """Return the classes of settings of which one stands at a location."""
    models = [root]
    for part in location:
        tagged = [model for model in models if kind_of(model) == part]
        inside = [field for model in models if (field := model.model_fields.get(str(part))) is not None]
        models = tagged or [found for field in inside for found in _settings_in(field.annotation)] or models
    return models


def _unknown(location: Sequence[int | str], path: str, tree: Any, root: type[Settings]) -> str:
    """Return what was probably meant by an unknown setting, or all that there are at this place."""
    models = _models_at(location[:-1], root)
    valid = sorted({name for model in models for name in model.model_fields})
    parent, _, given = path.rpartition(".")
    here = {hints.plain(name): name for name in valid}
    if (same := here.get(hints.plain(given))) is not None:
        return f"; did you mean {parent}.{same}?".replace(" .", " ")
    if root is Config:
        other = _of_other_kind(location, parent, given, tree)
        hint = other or hints.for_word(given)
        elsewhere = list(dict.fromkeys(place.path for place in places() if place.name == hints.plain(given)))
        if not hint and 0 < len(elsewhere) <= _FEW and not difflib.get_close_matches(given, valid, 1, 0.8):
            hint = f"write {' or '.join(elsewhere)}"
        if hint:
            return f"; {hint}"
    close = difflib.get_close_matches(given, valid, 1)
    meant = f"{parent}.{close[0]}".lstrip(".") if close else ""
    return f"; did you mean {meant}?" if meant else f"; allowed are {', '.join(valid)}"


_FEW = 3
"""Places of one name that are all named to whoever has set it somewhere else."""


def _of_other_kind(location: Sequence[int | str], parent: str, given: str, tree: Any) -> str:
    """Return which other kinds of thing at this place have the setting: ``engine.mode`` of ray, where it is local."""
    kinds = _kinds_at(location[:-1], Config)
    own = next((kind for kind in kinds if kind in location), None)
    having = [kind for kind, model in kinds.items() if kind != own and given in model.model_fields]
    if own is None or not having:
        return ""
    names = f"'{having[0]}'" if len(having) == 1 else "one of " + ", ".join(having)
    return f"it is a setting of {parent}.name = {names}, not of {own!r}"


def _kinds_at(location: Sequence[int | str], root: type[Settings]) -> dict[str, type[Settings]]:
    """Return the kinds of thing that may stand at a location, by name."""
    models = [root]
    kinds: dict[str, type[Settings]] = {}
    for part in location:
        if part in kinds:
            models = [kinds[str(part)]]
            continue
        fields = [field for model in models if (field := model.model_fields.get(str(part))) is not None]
        if fields:
            kinds = {str(kind_of(kind)): kind for field in fields for kind in _named_in(field.annotation)}
            models = [found for field in fields for found in _settings_in(field.annotation)] or models
    return kinds


def _named_in(annotation: Any) -> list[type[Settings]]:
    found = kinds_in(annotation)
    return found or [kind for inner in get_args(annotation) for kind in _named_in(inner)]


def _required(location: Sequence[int | str], root: type[Settings]) -> str:
    """Return what a setting that is missing allows."""
    for model in _models_at(location[:-1], root):
        field = model.model_fields.get(str(location[-1]))
        if field is not None:
            return f"; allowed is {describe(field.annotation, field.metadata)}"
    return ""


def _settings_in(annotation: Any) -> list[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [found for inner in get_args(annotation) for found in _settings_in(inner)]
