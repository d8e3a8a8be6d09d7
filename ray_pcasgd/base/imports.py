"""Import paths: how settings name the user's own Python objects."""

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, PlainSerializer, ValidationInfo

from ray_pcasgd.base.settings import refuse_of_strangers
from ray_pcasgd.base.text import one_line

_LONGEST = 300
"""Characters of an error of a module's own code that are shown."""


def import_object(value: Any) -> Any:
    """Return the object that ``module:attribute`` names, or ``value`` itself where it is no string.

    An import path is code: resolving it imports the module.

    Raises:
        ValueError: The path has another form, or the module or the attribute does not exist.

    >>> import_object("math:pi")
    3.141592653589793
    >>> import_object(3)
    3

    """
    if not isinstance(value, str):
        return value
    module_name, colon, attribute = value.partition(":")
    if not (module_name and colon and attribute):
        colons = with_colon(value)
        hint = f"; write {colons}" if colons != value else ""
        raise ValueError(f"{value!r}: allowed are import paths of the form module:attribute{hint}")
    sys.path[:0] = [place for place in _places if place not in sys.path]
    try:
        result: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the module's own code raises, or a name such as `.module`
        told = one_line(error if isinstance(error, ImportError) else f"{type(error).__name__}: {error}", _LONGEST)
        raise ValueError(f"{value!r}: the module {module_name!r} cannot be imported ({told})") from error
    for name in attribute.split("."):
        try:
            result = getattr(result, name)
        except AttributeError as error:
            raise ValueError(f"{value!r}: the module {module_name!r} has no attribute {attribute!r}") from error
    return result


def with_colon(path: str) -> str:
    """Return a path that is all dots, as in an import, with a colon before the last name; others as they are.

    >>> with_colon("torch.optim.RMSprop"), with_colon("torch.optim:RMSprop"), with_colon("math")
    ('torch.optim:RMSprop', 'torch.optim:RMSprop', 'math')
    """
    *module, name = path.split(".")
    is_dotted = bool(module) and all(part.isidentifier() for part in (*module, name))
    return f"{'.'.join(module)}:{name}" if is_dotted else path


_places: list[str] = []


def look_also_in(folder: Path) -> None:
    """Look for modules in a folder, too, from the first setting on that names one.

    Not before: the folder in which a user looks at a run may hold modules from others.
    """
    _places.append(str(folder))


def import_path(value: Any) -> str:
    """Return ``module:attribute`` of a function or class; of any other object, that of its class in angle brackets.

    >>> import_path(import_object)
    'ray_pcasgd.base.imports:import_object'
    """
    if isinstance(value, str):
        return value
    named = value if hasattr(value, "__qualname__") else type(value)
    path = f"{named.__module__}:{named.__qualname__}"
    return path if named is value else f"<{path}>"


def is_metric(value: Any) -> bool:
    """Return whether an object, or a class, takes in batches by itself."""
    return all(callable(getattr(value, name, None)) for name in ("update", "compute", "reset"))


def _checked(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str):
        refuse_of_strangers(value, "it names code", info)
    import_object(value)
    return value


def _checked_callable(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str):
        refuse_of_strangers(value, "it names code", info)
    if not (callable(found := import_object(value)) or is_metric(found)):
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
