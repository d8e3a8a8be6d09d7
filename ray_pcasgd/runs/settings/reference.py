"""The settings as they document themselves: where each stands, what it allows, and what it means."""

import inspect
import re
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from ray_pcasgd.base.curves import Curve
from ray_pcasgd.base.doors import is_others, more_kinds
from ray_pcasgd.base.settings import Settings
from ray_pcasgd.config import Config
from ray_pcasgd.rules.bound import Bound
from ray_pcasgd.rules.compensation import Compensation
from ray_pcasgd.rules.reach import Reach
from ray_pcasgd.schedule.laws import Law


class Place(NamedTuple):
    """One setting at one place of the tree."""

    path: str
    """Dotted; ``links.0.delay`` for what a list holds, ``compute.agents.0`` for what a mapping holds."""
    owner: type[Settings]
    """The class that defines it."""
    name: str
    """Its field there."""
    given: tuple[str, ...]
    """What else must be set for it to be there, such as ``algorithm.name = pc-asgd``."""

    @property
    def field(self) -> FieldInfo:
        """What pydantic knows of it."""
        return self.owner.model_fields[self.name]

    @property
    def description(self) -> str:
        """Its docstring, in one line."""
        return " ".join(self.owner.help_of(self.name).split())

    @property
    def allowed(self) -> str:
        """What it allows, in words."""
        return describe(self.field.annotation, self.field.metadata)

    @property
    def default(self) -> str:
        """Its default as it would be written in YAML; empty where it is required."""
        field = self.field
        return "" if field.is_required() else short_form(field.get_default(call_default_factory=True))


@cache
def settings_classes() -> tuple[type[Settings], ...]:
    """Return all classes of settings that stand somewhere in a run's tree, ``Config`` first."""
    seen: dict[type[Settings], None] = {}
    _gather(Config, seen)
    return tuple(seen)


def _gather(annotation: Any, seen: dict[type[Settings], None]) -> None:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        if annotation in seen:
            return
        seen[annotation] = None
        for field in annotation.model_fields.values():
            _gather(field.annotation, seen)
    for inner in get_args(annotation):
        _gather(inner, seen)


@cache
def places() -> tuple[Place, ...]:
    """Return every setting of the tree, in the order in which they are defined."""
    return tuple(_places(Config, "", ()))


def _places(
    owner: type[Settings], path: str, given: tuple[str, ...], around: tuple[type[Settings], ...] = ()
) -> Iterator[Place]:
    around = (*around, owner)
    for name, field in owner.model_fields.items():
        if name == "name" and owner is not Config:
            continue  # the kind of thing that the settings around it are
        own = f"{path}{name}"
        yield Place(own, owner, name, given)
        for inside, suffix in _settings_in(field.annotation):
            if inside in around:
                continue  # a law of a law of a law ...
            kind = kind_of(inside)
            where = f"{own}{suffix}"
            tags = (*given, f"{where}.name = {kind}") if kind is not None else given
            yield from _places(inside, f"{where}.", tags, around)


def _settings_in(annotation: Any, suffix: str = "") -> Iterator[tuple[type[Settings], str]]:
    """Yield the classes of settings that an annotation holds, and what follows its path to come to them."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation, suffix
        yield from ((kind, suffix) for kind in more_kinds(annotation))
        return
    is_container = get_origin(annotation) in (tuple, dict)
    seen = set()
    for inner in get_args(annotation):
        for found in _settings_in(inner, f"{suffix}.0" if is_container else suffix):
            if found not in seen:
                seen.add(found)
                yield found
    if get_origin(annotation) in (Union, types.UnionType):
        yield from ((kind, suffix) for kind in more_kinds(annotation))


def settings_below(annotation: Any) -> list[type[Settings]]:
    """Return the classes of settings that an annotation holds, however deep in lists and unions."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation, *more_kinds(annotation)]
    inside = [found for inner in get_args(annotation) for found in settings_below(inner)]
    return list(dict.fromkeys([*inside, *more_kinds(annotation)]))


def kind_of(owner: type[Settings]) -> str | None:
    """Return the ``name`` by which a union knows a class; ``None`` where it has none."""
    field = owner.model_fields.get("name")
    options = get_args(field.annotation) if field is not None and owner is not Config else ()
    return str(options[0]) if options else None


def kinds_in(annotation: Any) -> list[type[Settings]]:
    """Return the classes that a union's ``name`` chooses among, in their order."""
    return [inside for inside, suffix in _settings_in(annotation) if not suffix and kind_of(inside)]


def describe(annotation: Any, metadata: Any = ()) -> str:
    """Return what a type allows, in words.

    >>> describe(bool), describe(float | None), describe(tuple[int, ...])
    ('true | false', 'a number, or null', 'a list of whole numbers')
    """
    return ", or ".join(dict.fromkeys(_alternatives(annotation, metadata)))


def _alternatives(annotation: Any, metadata: Any = ()) -> Iterator[str]:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *outer = get_args(annotation)
        yield from _alternatives(inner, [*outer, *metadata])
    elif origin in (Union, types.UnionType):
        kinds = list(dict.fromkeys(str(kind_of(kind)) for kind in kinds_in(annotation)))
        if kinds:
            yield from (["a number"] if _takes_numbers(annotation) else [])
            yield " | ".join(kinds)
        others = [member for member in get_args(annotation) if not kinds_in(member)]
        yield from (part for member in others for part in _alternatives(member, metadata))
    elif origin is Literal:
        yield " | ".join(map(str, get_args(annotation)))
    elif origin is tuple:
        yield _tuple(get_args(annotation))
    elif origin is dict:
        keys, values = get_args(annotation)
        yield f"a mapping from {'numbers' if keys is int else 'names'} to {_plural(values)}"
    else:
        yield _simple(annotation, metadata)


def _takes_numbers(annotation: Any) -> bool:
    """Return whether a union is, or holds, one of those in which a bare number stands for settings."""
    found = set(kinds_in(annotation))
    return any(found.issuperset(kinds_in(union)) for union in (Curve, Law, Compensation, Bound, Reach))


def _tuple(arguments: tuple[Any, ...]) -> str:
    if arguments[-1] is Ellipsis:
        return f"a list of {_plural(arguments[0])}"
    return f"a {'pair' if len(arguments) == 2 else 'tuple'} of {_plural(arguments[0])}"


def _plural(annotation: Any) -> str:
    text = describe(annotation)
    known = {"a whole number": "whole numbers", "a number": "numbers", "text": "texts", "any value": "any values"}
    for one, many in known.items():
        if text.startswith(one):
            return many + text.removeprefix(one)
    return re.sub("^an? (list|pair|tuple|mapping)", r"\1s", text)


def _simple(annotation: Any, metadata: Any) -> str:
    if annotation in (int, float):
        return ("a whole number" if annotation is int else "a number") + _limits(metadata)
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return "a mapping of settings"
    words = {bool: "true | false", str: "text", Path: "a path", type(None): "null"}
    # What is checked as an import path is of any type, but not without a check.
    others = "a Python object, or the import path module:attribute of one" if metadata else "any value"
    return words.get(annotation, others)


def _limits(metadata: Any) -> str:
    """Return the limits of a number, in words."""
    constraints = [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
    found = {
        name: getattr(part, name) for part in constraints for name in ("ge", "gt", "le", "lt") if hasattr(part, name)
    }
    low = f"from {_round(found['ge'])}" if "ge" in found else f"above {_round(found['gt'])}" if "gt" in found else ""
    high = f"up to {_round(found['le'])}" if "le" in found else f"below {_round(found['lt'])}" if "lt" in found else ""
    return "".join(f" {part}" for part in (low, high or ("on" if "ge" in found else "")) if part)


def _round(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def short_form(value: Any) -> str:
    """Return a default as it would be written in YAML, in short form."""
    if isinstance(value, Settings):
        given = [key for key in type(value).model_fields if key in value.model_fields_set - {"name"}]
        inner = {key: part for key in given if (part := getattr(value, key)) is not None}
        kind = kind_of(type(value))
        if list(inner) == ["value"] and kind == "constant":
            return short_form(inner["value"])
        if kind is not None and not inner:
            return kind
        parts = [f"name: {kind}"] if kind is not None else []
        return "{" + ", ".join([*parts, *(f"{key}: {short_form(part)}" for key, part in inner.items())]) + "}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(short_form, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {short_form(part)}" for key, part in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def takes_whole_numbers_alone(path: str, config: Config) -> bool:
    """Return whether a setting takes whole numbers, and no others, in settings of these kinds.

    >>> [takes_whole_numbers_alone(path, Config()) for path in ("num_agents", "algorithm.oldest_age", "step_size")]
    [True, True, False]
    """
    wanted = re.sub(r"\.[0-9]+(?=\.|$)", ".0", path)
    found = [place for place in places() if place.path == wanted] or _own_place(path, config)
    # Where the kind of thing varies, too, all that it may be are asked.
    there = [place for place in found if all(_holds(tag, config) for tag in place.given)] or found
    allowed = [part for place in there for part in _alternatives(place.field.annotation, place.field.metadata)]
    whole = [part for part in allowed if part.startswith("a whole number")]
    return bool(whole) and not any(part.startswith("a number") for part in allowed)


def _own_place(path: str, config: Config) -> list[Place]:
    """Return the place of a setting of a class that is given by its import path; no place where it is none."""
    *parts, name = path.split(".")
    value: Any = config
    for part in parts:
        if part == "settings" and isinstance(value, Settings) and is_others(value):
            continue
        is_item = part.isdecimal() and isinstance(value, tuple) and int(part) < len(value)
        value = value[int(part)] if is_item else getattr(value, part, None)
    has_it = isinstance(value, Settings) and name in type(value).model_fields
    return [Place(path, type(value), name, ())] if has_it else []


def _holds(tag: str, config: Config) -> bool:
    path, kind = tag.rsplit(" = ", 1)
    value: Any = config
    for part in path.split("."):
        value = value[0] if part == "0" and isinstance(value, tuple) and value else getattr(value, part, None)
    return str(value) == kind


def usual(place: Place) -> str:
    """Return what the default settings have at a place, where that is not the setting's own default."""
    value: Any = Config()
    for part in place.path.split("."):
        owner, value = value, getattr(value, part, None)
    is_there = isinstance(value, Settings) and type(owner) is place.owner
    return short_form(value) if is_there and short_form(value) != place.default else ""


def documentation(owner: type[Settings]) -> list[str]:
    """Return the paragraphs of a class's docstring, each in one line, but for indented ones; the first says what it is.

    >>> from ray_pcasgd.schedule.laws import LogNormal
    >>> documentation(LogNormal)
    ['Log-normal.']
    """
    paragraphs = inspect.cleandoc(owner.__doc__ or "").split("\n\n")
    return [part if part.startswith("    ") else " ".join(part.split()) for part in paragraphs]
