"""Import paths: how settings name the user's own Python objects."""

import importlib
from typing import Annotated, Any

from pydantic import AfterValidator, PlainSerializer


def resolve(value: Any) -> Any:
    """Return the object that ``module:attribute`` names, or ``value`` itself where it is no string.

    An import path is code: resolving it imports the module.

    Raises:
        ValueError: The path has another form, or the module or the attribute does not exist.

    >>> resolve("math:pi")
    3.141592653589793
    >>> resolve(3)
    3

    """
    if not isinstance(value, str):
        return value
    module_name, colon, attribute = value.partition(":")
    if not (module_name and colon and attribute):
        raise ValueError(f"{value!r}: allowed are import paths of the form module:attribute")
    try:
        result: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"{value!r}: the module {module_name!r} cannot be imported ({error})") from error
    for name in attribute.split("."):
        try:
            result = getattr(result, name)
        except AttributeError as error:
            raise ValueError(f"{value!r}: the module {module_name!r} has no attribute {attribute!r}") from error
    return result


def import_path(value: Any) -> str:
    """Return ``module:attribute`` of a function or class; of any other object, that of its class in angle brackets.

    >>> import_path(resolve)
    'ray_pcasgd.tasks.imports:resolve'
    """
    if isinstance(value, str):
        return value
    named = value if hasattr(value, "__qualname__") else type(value)
    path = f"{named.__module__}:{named.__qualname__}"
    return path if named is value else f"<{path}>"


def _checked(value: Any) -> Any:
    resolve(value)
    return value


def _checked_callable(value: Any) -> Any:
    if not callable(resolve(value)):
        raise ValueError(f"{value!r}: allowed is something callable, or the import path of it")
    return value


ObjectOrPath = Annotated[Any, AfterValidator(_checked), PlainSerializer(import_path, return_type=str, when_used="json")]
"""Any Python object or the import path of one; written to files as an import path."""

CallableOrPath = Annotated[
    Any, AfterValidator(_checked_callable), PlainSerializer(import_path, return_type=str, when_used="json")
]
"""A callable or the import path of one; written to files as an import path."""


def unreadable(tree: Any) -> list[str]:
    """Return the places of settings from a file whose values stand for objects that no file names.

    >>> unreadable({"task": {"data": {"train": "<torch:Dataset>"}, "model": {"factory": "__main__:network"}}})
    ["task.data.train = '<torch:Dataset>'", "task.model.factory = '__main__:network'"]
    """
    found: list[str] = []
    waiting = [("", tree)]
    seen: set[int] = set()
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, str):
            module, colon, attribute = value.partition(":")
            if colon and (module == "__main__" or "<" in module or "<" in attribute):
                found.append(f"{place} = {value!r}")
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))  # a file may name one part of it in many places
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += reversed([(f"{place}.{key}".lstrip("."), item) for key, item in pairs])
    return found
