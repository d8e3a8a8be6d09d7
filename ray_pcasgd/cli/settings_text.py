"""The documentation of one setting, and of the settings below it, as text for a terminal."""

import difflib
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from ray_pcasgd.base.settings import Settings
from ray_pcasgd.runs.settings import hints
from ray_pcasgd.runs.settings.loading import SettingsError
from ray_pcasgd.runs.settings.reference import Place, documentation, kind_of, kinds_in, places, usual

_WIDTH = 100
_INDENT = "    "


def told(path: str = "") -> str:
    """Return the documentation of a setting, or of all at the top of the tree where no path is given.

    >>> print(told("batch_size"))
    batch_size: Samples of one agent's mini-batch.
        allowed: a whole number from 1 up to 100000
        default: 16

    Raises:
        SettingsError: there is no such setting.

    """
    if not path:
        lines = [_short(place) for place in places() if "." not in place.path]
        return "\n".join([*lines, "", "ray-pcasgd settings PATH tells more, for example ray-pcasgd settings algorithm"])
    found = find(path)
    if not found:
        named = _of_kind(path)
        if not named:
            raise SettingsError(f"settings {path}: no such setting; {_nearest(path)}")
        return "\n\n".join("\n".join([f"{place.path} = {kind_of(kind)}", *_kind(kind, place)]) for kind, place in named)
    return "\n\n".join(map(_entry, _alike(found)))


def find(path: str) -> list[Place]:
    """Return the places that a path names: ``algorithm.theta``, ``links.0.delay``, ``algorithm.pc-asgd.theta``."""
    wanted = [hints.plain(part) for part in path.split(".") if not part.isdecimal()]
    found = [place for place in places() if _is_at(place, wanted)]
    if not found and wanted[-1:] == ["name"]:
        return find(path.rsplit(".", 1)[0]) if "." in path else []
    return found


def _is_at(place: Place, wanted: Sequence[str]) -> bool:
    own = [part for part in place.path.split(".") if part != "0"]
    kinds = [hints.plain(tag.rsplit(" = ", 1)[1]) for tag in place.given]
    left = list(wanted)
    for part in own:
        while left and left[0] != part and left[0] in kinds:
            kinds.remove(left.pop(0))
        if not left or left.pop(0) != part:
            return False
    return not left


def _of_kind(path: str) -> list[tuple[type[Settings], Place]]:
    """Return the kinds of thing of a name, each at the first place where it may stand, or at the one that is named."""
    at, _, name = path.rpartition(".")
    return _kinds_at(places(), path) or (_kinds_at(find(at), name) if at else [])


def _kinds_at(where: Iterable[Place], name: str) -> list[tuple[type[Settings], Place]]:
    named: dict[type[Settings], Place] = {}
    for place in where:
        for kind in kinds_in(place.field.annotation):
            if hints.plain(kind_of(kind)) == hints.plain(name):
                named.setdefault(kind, place)
    return list(named.items())


def _nearest(path: str) -> str:
    word = path.rsplit(".", 1)[-1]
    everywhere = list(dict.fromkeys(place.path for place in places()))
    same = [known for known in everywhere if known.rsplit(".", 1)[-1] == hints.plain(word)]
    close = same or difflib.get_close_matches(path, everywhere, 1)
    if hint := "" if same else hints.for_word(word):
        return hint
    return f"did you mean {' or '.join(close[:3])}?" if close else "ray-pcasgd settings lists those at the top"


def _alike(found: Iterable[Place]) -> list[Place]:
    """Return places of which those that say the same are one, there where any of them is."""
    groups: dict[tuple[str, ...], list[Place]] = {}
    for place in found:
        groups.setdefault((place.path, place.description, place.allowed, place.default), []).append(place)
    return [alike[0]._replace(given=_conditions(alike)) for alike in groups.values()]


def _conditions(alike: Sequence[Place]) -> tuple[str, ...]:
    if not all(place.given for place in alike):
        return ()
    kinds: dict[str, list[str]] = {}
    for place in alike:
        name, kind = place.given[-1].rsplit(" = ", 1)
        kinds.setdefault(name, []).append(kind)
    return tuple(f"{name} = {' | '.join(dict.fromkeys(found))}" for name, found in kinds.items())


def _entry(place: Place) -> str:
    lines = [*_wrapped(f"{place.path}: {place.description}"), *_wrapped(f"allowed: {place.allowed}", 1)]
    default = f"; {usual(place)} in the default settings" if usual(place) else ""
    lines += _wrapped("required" if place.field.is_required() else f"default: {place.default}{default}", 1)
    if place.given:
        lines += _wrapped(f"where {', '.join(place.given)}", 1)
    # Those that no kind of thing has alone.
    below = [inner for inner in _below(place) if inner.given == place.given]
    lines += [*([""] if below else []), *(_short(inner, 1) for inner in below)]
    for kind in kinds_in(place.field.annotation):
        lines += ["", *_kind(kind, place)]
    return "\n".join(lines)


def _kind(kind: type[Settings], place: Place) -> Iterator[str]:
    """Yield what a kind of thing is, and its settings."""
    yield from _wrapped(f"{kind_of(kind)}: {documentation(kind)[0]}", 1)
    for name in kind.model_fields:
        if name != "name":
            yield _short(Place(f"{place.path}.{name}", kind, name, ()), 2)


def _below(place: Place) -> list[Place]:
    """Return the settings directly below one that is no choice among kinds."""
    inside = [inner for inner in places() if inner.path.startswith(f"{place.path}.")]
    depth = place.path.count(".") + 1
    return [inner for inner in inside if inner.path.replace(f"{place.path}.0.", f"{place.path}.").count(".") == depth]


def _short(place: Place, depth: int = 0) -> str:
    """Return a setting, its default and the first sentence about it."""
    name = f"{place.path} (required)" if place.field.is_required() else f"{place.path} = {place.default}"
    return "\n".join(_wrapped(f"{name}: {re.split(r'(?<=[.]) ', place.description, maxsplit=1)[0]}", depth))


def _wrapped(text: str, depth: int = 0) -> list[str]:
    first, others = _INDENT * depth, _INDENT * (depth + 1)
    return textwrap.wrap(
        text, _WIDTH, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )
