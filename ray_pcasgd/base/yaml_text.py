"""YAML as settings are written in it: read in bounded time and memory; nothing in it is executed.

Its scalars are those of ``scalars.KINDS``. Keys that are given twice are refused.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import yaml

from ray_pcasgd.base.scalars import KINDS, LONGEST_NUMBER, number
from ray_pcasgd.base.text import one_line

DEEPEST = 50
"""Levels of nesting; a run's settings have fewer than ten."""
_MOST_VALUES = 2_000_000
"""Values, aliases written out: the mixing matrix of 1000 agents has a million."""
_LONGEST_REASON = 200
_LONGEST_LIST = 10_000


_BaseDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # as below


class _Dumper(_BaseDumper):  # type: ignore[misc]
    """Puts in quotes what other readers of YAML, or ours, would not take for a text."""


class YAMLTextError(ValueError):
    """A text that is not YAML, or not YAML of settings."""


_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where libyaml is there


class _Loader(_Base):  # type: ignore[misc]
    """Makes plain values alone: mappings, lists, texts, numbers, booleans and null."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}
    yaml_constructors: ClassVar[dict[Any, Any]] = {
        tag: method
        for tag, method in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq", "map")
    }


def _constructed(loader: Any, node: yaml.ScalarNode) -> int | float:
    text = loader.construct_scalar(node)
    value = number(text)
    is_whole = node.tag.endswith(":int")
    if value is None or (is_whole and isinstance(value, float)):
        # An explicit tag such as `!!int x`, or a number of very many digits.
        kind = "whole number" if is_whole else "number"
        told = f"{text!r} is no {kind}" if len(text) < LONGEST_NUMBER else f"a number of {len(text)} digits"
        raise yaml.constructor.ConstructorError(None, None, told, node.start_mark)
    return value


for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _constructed)
for _kind in KINDS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_kind.tag, _kind.form, list(_kind.first))


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # Between single quotes these would be read as a line's end, and become a space.
    style = '"' if set(text) & set("\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _text)


def write_yaml(tree: Any) -> str:
    """Return a tree as the text of which ``parse_yaml`` makes it again.

    >>> write_yaml({"name": "1e5"}).strip()
    "name: '1e5'"
    """
    return str(yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def parse_yaml(text: str) -> Any:
    """Return what a YAML text holds: mappings, lists, texts, numbers, booleans and null.

    >>> parse_yaml("step_size: 1.5e1")
    {'step_size': 15.0}

    Raises:
        YAMLTextError: it is not YAML, is too large or nested too deeply, has a key twice, or tags of other things.

    """
    try:
        _check_size(text)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            for key in _keys_given_twice(loader, node):
                raise YAMLTextError(f"{key} is given twice; allowed is once")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except UnicodeEncodeError:
        raise YAMLTextError("is not YAML (it has bytes that are no characters)") from None
    except yaml.YAMLError as error:
        raise YAMLTextError(f"is not YAML ({one_line(_told(error), _LONGEST_REASON)})") from None


def _told(error: yaml.YAMLError) -> str:
    """Return the problem and its place, without the lines around it."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error)
    place = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
    return f"{', '.join(filter(None, (error.context, error.problem)))}{place}"


def _check_size(text: str) -> None:
    """Raise ``YAMLTextError`` where a text is nested too deeply, or holds too many values, aliases written out.

    An alias costs a word and may stand for all that was written before it, in which there may be aliases, too.
    """
    total = 0
    open_parts: list[tuple[str | None, int]] = []
    """The anchors of the lists and mappings around, and how many values there were before each."""
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_parts.pop()
            if anchor is not None:
                sizes[anchor] = total - before
        elif isinstance(event, yaml.AliasEvent):
            if any(event.anchor == anchor for anchor, _ in open_parts):
                raise YAMLTextError(f"the alias *{one_line(event.anchor, 40)} stands inside of itself")
            total += sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.NodeEvent):
            if isinstance(event, yaml.CollectionStartEvent):
                open_parts.append((event.anchor, total))
            elif event.anchor is not None:
                sizes[event.anchor] = 1
            total += 1
        if len(open_parts) > DEEPEST:
            raise YAMLTextError(f"is nested deeper than {DEEPEST} levels")
        if total > _MOST_VALUES:
            raise YAMLTextError(f"holds more than {_MOST_VALUES:,} values, aliases written out")


def _keys_given_twice(loader: Any, root: yaml.Node) -> Iterator[str]:
    """Yield the dotted names of keys that stand twice in one mapping."""
    seen: set[int] = set()
    left: list[tuple[str, yaml.Node]] = [("", root)]
    while left:
        path, node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            left += [(f"{path}{place}.", item) for place, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            known: set[Any] = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    name = f"{path}{one_line(key.value, 100)}"
                    own = "<<" if key.tag.endswith(":merge") else loader.construct_object(key)
                    if own in known:
                        yield name
                    known.add(own)
                    left.append((f"{name}.", value))


def depth_of(tree: Any) -> int:
    """Return how many levels of mappings and lists a tree has; one more than ``DEEPEST`` stands for any more.

    Lists that are as long as data sets are not looked into.
    """
    level, depth = [tree], 0
    seen: set[int] = set()
    while level and depth <= DEEPEST:
        inner = [part for part in level if _has_parts(part) and id(part) not in seen]
        seen |= {id(part) for part in inner}
        level = [value for part in inner for value in (part.values() if isinstance(part, Mapping) else part)]
        depth += bool(inner)
    return depth


def _has_parts(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list | tuple) and len(value) <= _LONGEST_LIST)
