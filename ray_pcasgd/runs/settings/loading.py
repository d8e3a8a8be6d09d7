"""From YAML, the command line and Python to checked settings, with errors that name the setting and what is allowed."""

import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ray_pcasgd.base import doors
from ray_pcasgd.base.errors import SettingsError as SettingsError
from ray_pcasgd.base.foreign_files import read_text
from ray_pcasgd.base.locations import refuse_key
from ray_pcasgd.base.settings import FROM_STRANGERS, Settings
from ray_pcasgd.base.yaml_text import DEEPEST, YAMLTextError, depth_of, parse_yaml
from ray_pcasgd.config import Config
from ray_pcasgd.runs.settings import hints
from ray_pcasgd.runs.settings.errors import explain, one_line, yaml_value
from ray_pcasgd.runs.settings.keys import refuse_keys_in
from ray_pcasgd.runs.settings.reference import kind_of, kinds_in, settings_classes
from ray_pcasgd.schedule.law_text import Unit, said_unit


def load_config(
    source: str | Path | Mapping[str, Any] | Config | None = None,
    assignments: Sequence[str] = (),
    changes: Mapping[str, Any] | None = None,
    from_strangers: bool = False,
) -> Config:
    """Return checked settings.

    ``source`` is a YAML file, a mapping or settings; the defaults where it is not given. Then come ``changes`` (a
    nested mapping), then ``assignments`` of the command line such as ``algorithm.theta=0.3`` or
    ``links.0.delay.value=20``; a changed ``name`` drops the other settings of what had the old name. Where they come
    ``from_strangers``, what would run code or join a cluster is refused.

    Raises:
        SettingsError: a setting is unknown or has a value that is not allowed.

    """
    context = FROM_STRANGERS if from_strangers else None
    layers: list[list[Mapping[str, Any]]] = [[changes or {}], _names_first(list(map(parse_assignment, assignments)))]
    if isinstance(source, str | Path) and (hint := hints.for_file(Path(source), _algorithms())):
        raise SettingsError(f"{source}: is no file of settings; {hint}")
    given = read_yaml(Path(source), pipes=True) if isinstance(source, str | Path) else source
    _check_depth(given, layers)
    _check_keys(given)
    check_classes(given)
    if given is None or isinstance(given, Config):
        tree = _settings_tree(given or Config())
    else:
        tree = _consistent(dict(merge(_as_tree(Config()), given)), given)
    for layer in layers:
        for change in layer:
            check_classes(change)
            tree = merge(_spelled_out(tree, context), change)
        tree = _consistent(tree, _together(layer))
    _check_units([given if isinstance(given, Mapping) else {}, *map(_together, layers)])
    refuse_keys_in(tree)
    try:
        return Config.model_validate(tree, context=context)
    except ValidationError as error:
        raise SettingsError("\n".join(explain(error, tree))) from None


def _check_keys(tree: Any, path: str = "settings") -> None:
    """Raise ``SettingsError`` where a key is null: it has no name to be told by."""
    for key, value in tree.items() if isinstance(tree, Mapping) else ():
        if key is None:
            raise SettingsError(f"{path}: has the key null; allowed are names of settings")
        _check_keys(value, str(key) if path == "settings" else f"{path}.{key}")


def _check_depth(source: Any, layers: Sequence[Sequence[Any]]) -> None:
    """Raise ``SettingsError`` where settings are nested too deeply, or in themselves."""
    for given in (source, *(change for layer in layers for change in layer)):
        if depth_of(given) > DEEPEST:
            raise SettingsError(f"settings: nested deeper than {DEEPEST} levels")


def _algorithms() -> list[str]:
    return [str(kind_of(kind)) for kind in kinds_in(Config.model_fields["algorithm"].annotation)]


def _names_first(assignments: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return assignments with each name before other settings of what it names, which a new name would drop.

    >>> _names_first([{"engine": {"transport": "auto"}}, {"seed": 1}, {"engine": {"name": "ray"}}])
    [{'engine': {'name': 'ray'}}, {'engine': {'transport': 'auto'}}, {'seed': 1}]
    """
    result: list[Mapping[str, Any]] = []
    for assignment in assignments:
        *named, last = path = _path(assignment)
        place = len(result)
        # Not before what is assigned as a whole, which the name is then one of.
        while last == "name" and named and place and path[: len(p := _path(result[place - 1]))] != p:
            place -= 1
        ahead = [n for n in range(place, len(result)) if _path(result[n])[: len(named)] == named]
        result.insert(ahead[0] if ahead else len(result), assignment)
    return result


def _path(assignment: Mapping[str, Any]) -> list[str]:
    """Return the names that lead to what is assigned."""
    path: list[str] = []
    value: Any = assignment
    while isinstance(value, Mapping) and len(value) == 1:
        ((key, value),) = value.items()
        path.append(str(key))
    return path


def _together(layer: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what changes that are given together say, the later ones over the earlier ones."""
    result: dict[str, Any] = {}
    for change in layer:
        for key, value in change.items():
            inner = result.get(key)
            is_deeper = isinstance(inner, Mapping) and isinstance(value, Mapping)
            result[key] = _together([dict(inner or {}), value]) if is_deeper else value
    return result


def _settings_tree(config: Config) -> dict[str, Any]:
    tree = dict(_as_tree(config))
    return tree if config.num_epochs is None else {key: tree[key] for key in tree if key != "num_steps"}


def _consistent(tree: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree without what other settings that were given take the place of.

    The later one of ``num_steps`` and ``num_epochs`` counts; given together, both stay. Regions say how late links are,
    and so take the place of the example's links.
    """
    if given.get("regions") and "links" not in given and tree["links"] == _as_tree(Config())["links"]:
        tree = tree | {"links": ()}
    steps, epochs = (given.get(key) is not None for key in ("num_steps", "num_epochs"))
    if epochs and not steps:
        return {key: value for key, value in tree.items() if key != "num_steps"}
    return tree | {"num_epochs": None} if steps and not epochs else tree


def _check_units(layers: Sequence[Mapping[str, Any]]) -> None:
    """Raise ``SettingsError`` where a link's ``unit`` is not the one that its delay says itself.

    A later layer may give another delay, whose unit counts; one that gives the unit alone leaves the delay as it is.
    """
    said: dict[str, tuple[Unit | None, Any]] = {}
    for layer in layers:
        links = layer.get("links")
        if isinstance(links, list | tuple):
            said.clear()
        for key, entry in _items(links):
            place, changes = str(key), entry if isinstance(entry, Mapping) else {}
            if "delay" in changes:
                said[place] = said_unit(changes["delay"]), changes["delay"]
            unit, delay = said.get(place, (None, None))
            if unit is not None and changes.get("unit") not in (None, unit):
                raise SettingsError(
                    f"links.{place}.unit = {yaml_value(changes['unit'])}: the delay, {yaml_value(delay)}, "
                    f"is in {unit}; allowed is {unit}, or a delay without a unit"
                )


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return value.items()
    return enumerate(value) if isinstance(value, list | tuple) else ()


def check_classes(tree: Any, path: str = "") -> None:
    """Raise ``SettingsError`` where an object in a tree of settings is of a class that no run could be recorded as."""
    if isinstance(tree, Settings):
        if type(tree) not in settings_classes() and not doors.is_others(tree):
            told = f"{path or 'settings'} = {yaml_value(tree)}"
            raise SettingsError(
                f"{told}: of a class that config.yaml cannot name; allowed are the package's own, and rules, laws and "
                "others with a name of their own"
            )
        items: Iterable[Any] = ((name, getattr(tree, name)) for name in type(tree).model_fields)
    elif isinstance(tree, Mapping):
        items = tree.items()
    elif isinstance(tree, list | tuple) and tree and isinstance(tree[0], Settings | Mapping):
        items = enumerate(tree)  # not of a data set, which may be a list, too
    else:
        return
    for key, inner in items:
        check_classes(inner, f"{path}.{key}" if path else str(key))


def _as_tree(value: Any) -> Any:
    """Return settings as nested mappings; the user's own objects stay what they are, unlike in ``model_dump``."""
    if isinstance(value, Settings):
        fields = {name: _as_tree(getattr(value, name)) for name in type(value).model_fields}
        return doors.spelled_out(value, fields) or fields
    if isinstance(value, tuple) and value and all(isinstance(item, Settings) for item in value):
        return [_as_tree(item) for item in value]
    if isinstance(value, dict) and value and all(isinstance(item, Settings) for item in value.values()):
        return {key: _as_tree(item) for key, item in value.items()}
    return value


def _spelled_out(tree: dict[str, Any], context: dict[str, Any] | None) -> dict[str, Any]:
    """Return settings without short forms, whose parts could not be addressed, if they are valid already."""
    try:
        return _settings_tree(Config.model_validate(tree, context=context))
    except ValidationError:
        return tree


def read_yaml(path: Path, pipes: bool = False) -> dict[str, Any]:
    """Return a YAML file's mapping; nothing in it is executed. ``pipes``: whether it may be a pipe too.

    Raises:
        SettingsError: there is no such file, or it holds no mapping.

    """
    refuse_key(path)
    try:
        content = parse_yaml(read_text(path, pipes=pipes))
    except YAMLTextError as error:
        raise SettingsError(f"{path}: {error}") from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: cannot be read ({error}); allowed is a YAML file of settings") from None
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
    parts = key.strip().split(".")
    if not equals or not all(parts) or not key.isprintable() or len(parts) > DEEPEST:
        raise SettingsError(f"--set {one_line(text, 200)}: allowed is key=value, for example algorithm.theta=0.3")
    try:
        result = parse_yaml(value)
    except YAMLTextError as error:
        raise SettingsError(f"--set {one_line(text, 200)}: the value {error}") from None
    for part in reversed(parts):
        result = {part: result}
    return typing.cast(dict[str, Any], result)


def merge(base: Any, changes: Mapping[str, Any], path: str = "") -> Any:
    """Return ``base`` with nested changes; numbers as keys address the items of a list.

    >>> merge({"engine": {"name": "ray", "mode": "live"}, "seed": 1}, {"engine": {"name": "local"}})
    {'engine': {'name': 'local'}, 'seed': 1}
    """
    base = _as_tree(base)
    if isinstance(base, list | tuple) and changes and all(_is_number(key) for key in changes):
        return _merge_items(list(base), changes, path)
    if isinstance(base, str) and "name" not in changes:
        base = {"name": base}
    if not isinstance(base, Mapping):
        return dict(changes)
    is_run = "num_agents" in base
    if not is_run and doors.identity({**base, **changes}) != doors.identity(base):
        # Another name is another kind of thing: the old one's settings mean nothing to it. A run's name is only a name.
        return {"name": base["name"], **changes} if "name" in base else dict(changes)
    result = dict(base)
    for key, change in changes.items():
        # The command line's keys are texts, those of a mapping by agent are numbers.
        place: Any = int(key) if key not in result and _is_number(key) and int(key) in result else key
        result[place] = _changed(result.get(place), change, f"{path}{key}.")
    if re.fullmatch(r"links\.[0-9]+\.", path) and "unit" not in changes and said_unit(changes.get("delay")):
        result["unit"] = None  # the new delay has its own
    return result


def _merge_items(items: list[Any], changes: Mapping[str, Any], path: str) -> list[Any]:
    for key, change in changes.items():
        if int(key) >= len(items):
            name = path.removesuffix(".")
            raise SettingsError(
                f"{path}{key}: no such item; allowed are numbers below {len(items)}, or another list, {name}=[...]"
            )
        items[int(key)] = _changed(items[int(key)], change, f"{path}{key}.")
    return items


def _is_number(key: Any) -> bool:
    """Return whether a key is a number, also where it was written as a text; short, as the places of lists are."""
    return bool(re.fullmatch("[0-9]{1,9}", str(key)))


def _changed(old: Any, change: Any, path: str) -> Any:
    if isinstance(change, Mapping):
        return merge(old, change, path)
    # The bare name of the kind that is there already has no effect.
    return old if isinstance(change, str) and isinstance(old, Mapping) and old.get("name") == change else change
