"""Where an error of pydantic's is in the tree of settings, and what an unknown setting there was meant to be."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from ray_pcasgd.base.doors import CUSTOM
from ray_pcasgd.base.settings import Settings
from ray_pcasgd.config import Config
from ray_pcasgd.runs.settings import hints
from ray_pcasgd.runs.settings.reference import describe, kind_of, kinds_in, places, settings_below

Location = Sequence[int | str]
"""Keys, items, and the tags of unions, from the top of the tree down."""

_FEW = 3
"""Up to this number of places of one name, all are named when it was set somewhere else."""

_NEAR = 0.8
"""From this similarity on, a word is taken for another one misspelled, rather than for another framework's."""


def as_written(location: Location, tree: Any) -> tuple[str, Any, str]:
    """Return a location as a dotted path without the tags of unions, the value there, and what lies below it."""
    parts, left = [], ""
    for part in location:
        is_item = isinstance(tree, list | tuple) and isinstance(part, int) and part < len(tree)
        if is_item or (
            isinstance(tree, Mapping) and part in tree
        ):  # else it is the tag of a union, which nobody writes, or a part of what was written in short form
            tree, left = tree[part], ""
            parts.append(str(part))
        else:
            left = str(part)
    return ".".join(parts), tree, left


def kinds_at(location: Location, root: type[Settings]) -> dict[str, type[Settings]]:
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
            models = [found for field in fields for found in settings_below(field.annotation)] or models
    return kinds


def allowed_at(location: Location, root: type[Settings]) -> str:
    """Return what a setting allows, in words."""
    for model in _models_at(location[:-1], root):
        field = model.model_fields.get(str(location[-1]))
        if field is not None:
            return describe(field.annotation, field.metadata)
    return ""


def allowed_for_item(location: Location, root: type[Settings]) -> str:
    """Return what an item of a list allows besides numbers and names, in words: pairs, such as a theta with a reach.

    ``location`` may go on with the tag of a union.
    """
    place = max((place for place, part in enumerate(location) if isinstance(part, int)), default=0)
    for model in _models_at(location[: max(place - 1, 0)], root) if place else ():
        field = model.model_fields.get(str(location[place - 1]))
        if field is not None and get_origin(field.annotation) is tuple:
            item = get_args(field.annotation)[0]
            return next((describe(kind) for kind in (item, *get_args(item)) if get_origin(kind) is tuple), "")
    return ""


def meant(location: Location, path: str, root: type[Settings]) -> str:
    """Return what was probably meant by an unknown setting, or all that there are at this place."""
    valid = sorted({name for model in _models_at(location[:-1], root) for name in model.model_fields})
    first, *rest = str(location[-1]).split(".")
    if rest and all(name.isidentifier() for name in (first, *rest)):
        return f"write {first}: {''.join(f'{{{name}: ' for name in rest)}...{'}' * len(rest)}"
    parent, _, given = path.rpartition(".")
    word = hints.plain(given)
    here = next((name for name in valid if hints.plain(name) == word), "") or _of_kind(word, valid)
    near = difflib.get_close_matches(given, valid, 1, _NEAR) if parent else []
    longer = [name for name in valid if name.startswith(f"{word}_")]
    if here or near or (parent and len(longer) == 1):
        return f"did you mean {f'{parent}.{here or (near or longer)[0]}'.lstrip('.')}?"
    if root is Config and (hint := _elsewhere(location, parent, given, valid)):
        return hint
    if any(kind_of(model) == CUSTOM and "settings" in valid for model in _models_at(location[:-1], root)):
        return f"a setting of your own class: write {parent}.settings.{given}"
    if len(location) == 1 and "config" in valid and word in Config.model_fields:
        return f"it is a setting of each run: write config.{word}"
    close = difflib.get_close_matches(given, valid, 1)
    return f"did you mean {f'{parent}.{close[0]}'.lstrip('.')}?" if close else f"allowed are {', '.join(valid)}"


def _of_kind(word: str, valid: Sequence[str]) -> str:
    """Return ``name`` for other frameworks' words for it, and ``delay`` for what a link's may be taken for."""
    if "name" in valid and word in ("type", "kind", "class", "class_path", "_target_", "target"):
        return "name"
    return (
        "delay" if "delay" in valid and word in ("law", "latency", "lag", "time", "value", "seconds", "steps") else ""
    )


def _elsewhere(location: Location, parent: str, given: str, valid: Sequence[str]) -> str:
    """Return where a setting stands, or what another framework's word for it means, if it is no near miss."""
    if hint := _of_other_kind(location, parent, given) or hints.for_setting(parent, given):
        return hint
    found = dict.fromkeys(place.path for place in places() if place.name == hints.plain(given))
    found.pop("name", None)
    is_near = difflib.get_close_matches(given, valid, 1, _NEAR)
    return f"write {' or '.join(found)}" if 0 < len(found) <= _FEW and not is_near else ""


def _of_other_kind(location: Location, parent: str, given: str) -> str:
    """Return which other kinds of thing at this place have the setting: ``engine.mode`` of ray, where it is local."""
    kinds = kinds_at(location[:-1], Config)
    own = next((kind for kind in kinds if kind in location), None)
    if own is None:
        return ""
    others = {kind: model.model_fields for kind, model in kinds.items() if kind != own}
    having = [repr(kind) for kind, fields in others.items() if given in fields]
    if not having:
        every = sorted({name for fields in others.values() for name in fields})
        near = difflib.get_close_matches(given, every, 1, _NEAR)
        having = [repr(kind) for kind, fields in others.items() if near and near[0] in fields]
        said = f"did you mean {near[0]}, a setting" if near else ""
        return f"{said} of {parent}.name = {' or '.join(having)}?" if near else ""
    return f"it is a setting of {parent}.name = {' or '.join(having)}, not of {own!r}"


def _models_at(location: Location, root: type[Settings]) -> list[type[Settings]]:
    """Return the classes of settings of which one stands at a location."""
    models = [root]
    for part in location:
        tagged = [model for model in models if kind_of(model) == part]
        inside = [field for model in models if (field := model.model_fields.get(str(part))) is not None]
        models = tagged or [found for field in inside for found in settings_below(field.annotation)] or models
    return models


def _named_in(annotation: Any) -> list[type[Settings]]:
    found = kinds_in(annotation)
    return found or [kind for inner in get_args(annotation) for kind in _named_in(inner)]
