"""From YAML, the command line and Python to checked settings, with errors that name the setting and what is allowed."""

import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ray_pcasgd.config import Config
from ray_pcasgd.settings import Settings


class SettingsError(ValueError):
    """Settings that cannot be run; the message has one line for each."""


def load_config(
    source: str | Path | Mapping[str, Any] | Config | None = None,
    assignments: Sequence[str] = (),
    changes: Mapping[str, Any] | None = None,
) -> Config:
    """Return checked settings.

    ``source`` is a YAML file, a mapping or settings; the defaults where it is not given. Then come ``changes`` (a
    nested mapping), then ``assignments`` of the command line such as ``algorithm.theta=0.3`` or
    ``links.0.delay.value=20``; a changed ``name`` drops the other settings of what had the old name.

    Raises:
        SettingsError: a setting is unknown or has a value that is not allowed.

    """
    tree = _tree(source)
    if changes:
        tree = merge(tree, changes)
    for assignment in assignments:
        tree = merge(tree, parse_assignment(assignment))
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise SettingsError("\n".join(dict.fromkeys(explain(error, tree)))) from None


def _tree(source: str | Path | Mapping[str, Any] | Config | None) -> dict[str, Any]:
    if source is None:
        return Config().model_dump()
    if isinstance(source, Config):
        return dict(source.model_dump())
    given = read_yaml(Path(source)) if isinstance(source, str | Path) else source
    return dict(merge(Config().model_dump(), given))


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML file's mapping; nothing in it is executed.

    Raises:
        SettingsError: there is no such file, or it holds no mapping.

    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read ({error}); allowed is a YAML file of settings") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: is not YAML ({str(error).replace(chr(10), ' ')})") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: holds a {type(content).__name__}; allowed is a mapping of settings")
    return content


def parse_assignment(text: str) -> dict[str, Any]:
    """Return the nested mapping of ``key.subkey=value``; the value is read as YAML.

    >>> parse_assignment("algorithm.theta=0.3")
    {'algorithm': {'theta': 0.3}}
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise SettingsError(f"--set {text}: allowed is key=value, for example algorithm.theta=0.3")
    try:
        result = yaml.safe_load(value)
    except yaml.YAMLError:
        raise SettingsError(f"--set {text}: the value is not YAML") from None
    for part in reversed(key.strip().split(".")):
        result = {part: result}
    return typing.cast(dict[str, Any], result)


def merge(base: Any, changes: Mapping[str, Any]) -> Any:
    """Return ``base`` with nested changes; numbers as keys address the items of a list.

    >>> merge({"engine": {"name": "ray", "mode": "live"}, "seed": 1}, {"engine": {"name": "local"}})
    {'engine': {'name': 'local'}, 'seed': 1}
    """
    if isinstance(base, list | tuple) and changes and all(str(key).isdigit() for key in changes):
        items = list(base)
        for key, change in changes.items():
            if int(key) >= len(items):
                raise SettingsError(f"item {key} of a list of {len(items)}: allowed are 0 to {len(items) - 1}")
            items[int(key)] = merge(items[int(key)], change) if isinstance(change, Mapping) else change
        return items
    if isinstance(base, str) and "name" not in changes:
        base = {"name": base}
    if not isinstance(base, Mapping):
        return dict(changes)
    is_run = "num_agents" in base
    if not is_run and changes.get("name", base.get("name")) != base.get("name"):
        # Another name is another kind of thing: the old one's settings mean nothing to it. A run's name is only a name.
        return dict(changes)
    result = dict(base)
    for key, change in changes.items():
        old = result.get(key)
        keeps = isinstance(change, Mapping) and isinstance(old, Mapping | list | tuple | str)
        if isinstance(change, str) and isinstance(old, Mapping) and "name" in old:
            result[key] = merge(old, {"name": change})
        else:
            result[key] = merge(old, change) if keeps else change
    return result


def explain(error: ValidationError, tree: Any) -> list[str]:
    """Return one line for each error: the setting, its value, and what is allowed."""
    return [_explain_one(dict(item), tree) for item in error.errors(include_url=False)]


def _explain_one(item: dict[str, Any], tree: Any) -> str:
    location = item["loc"]
    path, value = _path(location, tree)
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        return f"{path} = {value!r}: no such setting{_nearest(location, path.rpartition('.')[2])}"
    if item["type"] == "missing":
        parent, _ = _path(location[:-1], tree)
        return f"{parent + '.' if parent else ''}{location[-1]}: is required"
    if item["type"] == "union_tag_invalid":
        expected = item["ctx"]["expected_tags"].replace("'", "")
        given = str(item["ctx"]["tag"])
        close = difflib.get_close_matches(given, expected.split(", "), 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        return f"{path}.name = {given!r}: allowed are {expected}{hint}"
    if item["type"] == "value_error":
        named = re.match(r"([a-z_0-9.]+) = ", message)
        if named:
            last = path.rpartition(".")
            parent = last[0] if named[1].split(".")[-1] == last[2] or named[1] == path else path
            return message if named[1].startswith(path + ".") or named[1] == path else f"{parent}.{message}".lstrip(".")
    return f"{path} = {value!r}: {message[0].lower()}{message[1:]}"


def _path(location: Sequence[int | str], tree: Any) -> tuple[str, Any]:
    """Return a pydantic location as a dotted path without the tags of unions, and the value that stands there."""
    parts = []
    for part in location:
        if isinstance(tree, Mapping) and part in tree:
            tree = tree[part]
        elif isinstance(part, int):
            if not isinstance(tree, list | tuple) or part >= len(tree):
                continue
            tree = tree[part]
        elif isinstance(tree, Settings) and isinstance(part, str) and hasattr(tree, part):
            tree = getattr(tree, part)
        else:
            continue  # the tag of a union, which nobody writes
        parts.append(str(part))
    return ".".join(parts), tree


def _nearest(location: Sequence[int | str], given: str) -> str:
    models: list[type[Settings]] = [Config]
    for part in location[:-1]:
        tagged = [m for m in models if "name" in m.model_fields and m.model_fields["name"].default == part]
        inside = [field for m in models if (field := m.model_fields.get(str(part))) is not None]
        models = tagged or [s for field in inside for s in _settings_in(field.annotation)] or models
    valid = sorted({name for model in models for name in model.model_fields})
    close = difflib.get_close_matches(given, valid, 1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; allowed are {', '.join(valid)}"


def _settings_in(annotation: Any) -> list[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [found for inner in typing.get_args(annotation) for found in _settings_in(inner)]
