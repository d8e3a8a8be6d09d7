"""Doors: how a class that is not the package's own stands in settings, wherever there are several kinds of something.

By its import path, ``{name: custom, rule: my_module:MyRule, settings: {...}}``; by its own name alone, where an
installed package offers it as a Python entry point; from Python as an object. Files have one of the first two forms.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    PydanticUserError,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    create_model,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from ray_pcasgd.base.imports import import_object, import_path
from ray_pcasgd.base.settings import Settings, refuse_of_strangers
from ray_pcasgd.base.text import one_line

CUSTOM = "custom"
"""The ``name`` of what is given by its import path."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,49}")
"""Names of classes: they become parts of folders' names."""

_LONGEST = 300
"""Characters of an error of the user's own code that are shown."""


class Inside(NamedTuple):
    """The settings of a class that is given by its import path, somewhere in a tree of settings."""

    depth: int
    """Parts of the location that lead to them."""
    owner: type[Settings]
    """The class."""
    settings: Any
    """As they were given."""


class Door:
    """One family's door: stands in the ``Annotated`` of the union of the family's kinds.

    What it lets in is an object of the user's own class, as if the union had it: no wrapper is around it.

    Args:
        key: The setting that has the import path, for example ``rule``.
        group: The group of entry points, for example ``ray_pcasgd.rules``.
        bases: The classes of which the user's own is derived.
        check: Raises ``ValueError`` where an object of such a class cannot be used.

    """

    def __init__(
        self,
        key: str,
        group: str,
        bases: tuple[type[Settings], ...],
        check: Callable[[Any], None] = lambda value: None,
    ) -> None:
        self.key, self.group, self.bases, self.check = key, group, bases, check
        self.own: tuple[type[Settings], ...] = ()
        """The package's own classes of the family."""
        self._is_shown = False
        """Whether the schema of an installed class is being made."""
        DOORS.append(self)

    @cached_property
    def custom(self) -> type[Any]:
        """The settings of what is given by its import path."""
        path = Annotated[
            Any,
            AfterValidator(self._named_class),
            PlainSerializer(import_path, return_type=str, when_used="json"),
        ]
        told = f"A class derived from {self.base_names}, or its import path ``module:attribute``."
        inner = "The settings of that class, by their names."
        fields: dict[str, Any] = {
            "name": (Literal["custom"], CUSTOM),
            self.key: (path, Field(description=told)),
            "settings": (Annotated[dict[str, Any], AfterValidator(self._made)], Field({}, description=inner)),
        }
        described = f"One of your own: a class derived from {self.base_names}."
        made: type[Settings] = create_model(
            f"Custom{self.key.capitalize()}", __base__=Settings, __doc__=described, __module__=__name__, **fields
        )
        return made

    @property
    def base_names(self) -> str:
        """The import paths of the bases, in words."""
        return " or ".join(f"``{import_path(base).replace(':', '.')}``" for base in self.bases)

    @cached_property
    def offers(self) -> dict[str, EntryPoint]:
        """What installed packages offer, by name; nothing of it is imported yet."""
        taken = {CUSTOM, *map(name_of, self.own)}
        found = sorted(entry_points(group=self.group), key=lambda entry: (entry.name, entry.value), reverse=True)
        return {entry.name: entry for entry in reversed(found) if entry.name not in taken}

    @cached_property
    def installed(self) -> dict[str, type[Settings]]:
        """The classes that installed packages offer, by name; those that cannot be used are left out."""
        # What is asked for meanwhile: a class may hold another one of its own family.
        found = self.__dict__["installed"] = {}
        for name in self.offers:
            try:
                found[name] = self.class_offered(name)
            except ValueError:  # said where the name is used
                continue
        return found

    def class_offered(self, name: str) -> type[Settings]:
        """Return the class that an installed package offers.

        Raises:
            ValueError: it cannot be imported, or is of no use here.

        """
        entry = self.offers[name]
        place = f"{entry.value!r} of the installed package {entry.dist.name if entry.dist else ''}".strip()
        try:
            found = entry.load()
        except (Exception, SystemExit) as error:  # whatever the module's own code raises
            raise ValueError(f"name = {name!r}: {place} cannot be imported ({_told(error)})") from error
        try:
            self._check_class(found)
        except ValueError as error:
            raise ValueError(f"name = {name!r}: {place} {error}") from None
        if name_of(found) != name:
            raise ValueError(f"name = {name!r}: {place} names itself {name_of(found)!r}; allowed is one name")
        return found  # type: ignore[no-any-return]

    def kinds(self) -> tuple[type[Settings], ...]:
        """Return what stands in the union in addition to the package's own classes."""
        return (*self.installed.values(), self.custom)

    def spelled_out(self, value: Settings, fields: Any) -> dict[str, Any]:
        """Return an object of another class as settings from which it can be made again.

        ``fields`` are its own settings, among them its name, by which reports know it without importing anything.
        """
        if self._is_offered(type(value)):
            return dict(fields)
        return {"name": CUSTOM, self.key: type(value), "settings": fields}

    def _is_offered(self, kind: type[Settings]) -> bool:
        entry = self.offers.get(name_of(kind) or "")
        return entry is not None and entry.value.replace(" ", "") == import_path(kind)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the union's schema, with what else comes in by this door."""
        self.own = classes_in(source)
        inner = handler.generate_schema(_named(source, self.custom))
        return core_schema.with_info_wrap_validator_function(
            self._validated,
            inner,
            serialization=core_schema.wrap_serializer_function_ser_schema(self._serialized, schema=inner),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the union's JSON schema, in which installed packages have their place, too."""
        result = handler(schema)
        if self._is_shown:
            return result  # within an installed class of its own family
        self._is_shown = True
        try:
            parts = [handler(kind.__pydantic_core_schema__) for kind in self.installed.values()]
        finally:
            self._is_shown = False
        result["oneOf"] = [*result["oneOf"], *parts]
        if "discriminator" in result:
            refs = (part.get("$ref", part) for part in parts)  # as pydantic has them in such a mapping
            result["discriminator"]["mapping"] |= dict(zip(self.installed, refs, strict=True))
        return result

    def _validated(self, value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        if isinstance(value, type):
            value = {"name": CUSTOM, self.key: value}
        if isinstance(value, str) and value in self.offers:
            value = {"name": value}
        if isinstance(value, Settings) and isinstance(value, self.bases) and type(value) not in self.own:
            kind = type(value)
            try:
                self._check_class(kind)
            except ValueError as error:
                told = f"an object of the class {kind.__module__}.{kind.__qualname__}, which {error}"
                raise ValueError(told) from None
            self.check(value)
            return value
        name = value.get("name") if isinstance(value, Mapping) else None
        if isinstance(name, str) and name in self.offers:
            kind = self.class_offered(name)
            # Together with another one, so that the location of an error has the name, as in the union itself.
            made = TypeAdapter[Any](_named(kind, self.custom)).validate_python(value, context=info.context)
            self.check(made)
            return made
        found: Any = handler(value)
        return found.settings if isinstance(found, self.custom) else found

    def _serialized(self, value: Any, handler: SerializerFunctionWrapHandler) -> Any:
        if type(value) in self.own or not isinstance(value, Settings):
            return handler(value)
        if self._is_offered(type(value)):
            return value
        tree = self.spelled_out(value, value)
        return {**tree, self.key: _path_of(tree[self.key])}

    def _named_class(self, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str):
            refuse_of_strangers(value, "it names code", info)
        try:
            self._check_class(import_object(value))
        except ValueError as error:
            text = str(error).removeprefix(f"{value!r}: ")
            raise ValueError(f"{value!r}: {text}" if isinstance(value, str) else text) from None
        return value

    def _made(self, settings: dict[str, Any], info: ValidationInfo) -> Any:
        """Return the object that is made of the settings; where the class was refused, there is none."""
        if self.key not in info.data:
            return settings
        value = info.data[self.key]
        try:
            made = import_object(value).model_validate(settings, context=info.context)
        except ValidationError:
            raise
        except Exception as error:  # the user's own validators
            raise ValueError(f"{_path_of(value)} cannot be made of them ({_told(error)})") from error
        self.check(made)
        return made

    def _check_class(self, kind: Any) -> None:
        if not (isinstance(kind, type) and issubclass(kind, self.bases)):
            what = "is a class" if isinstance(kind, type) else f"is of the type {type(kind).__name__}"
            raise ValueError(f"{what}; allowed is a class derived from {self.base_names.replace('``', '')}")
        if inspect.isabstract(kind):
            missing = ", ".join(sorted(kind.__abstractmethods__))
            raise ValueError(f"does not define {missing}; allowed is a class that does")
        name = name_of(kind)
        if kind in self.own:
            raise ValueError(f"is the package's own; write name: {name}")
        if name is None or not _NAME.fullmatch(name) or name in (CUSTOM, *map(name_of, self.own)):
            told = "has no name" if name is None else f"has the name {name!r}"
            example = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", kind.__name__).strip("_").lower()
            raise ValueError(
                f"{told}; allowed is one of its own, name: Literal[{example!r}] = {example!r}, up to 50 letters, "
                "digits and the signs . _ -"
            )
        try:
            _ = kind.__pydantic_core_schema__
            kind.model_json_schema()
        except PydanticUserError as error:
            raise ValueError(f"has settings that cannot be read from a file ({_told(error)})") from None


DOORS: list[Door] = []
"""One for each family."""


def _named(first: Any, second: Any) -> Any:
    """Return the union of two, told apart by ``name``."""
    union: Any = Union.__getitem__((first, second))
    return Annotated.__class_getitem__((union, Field(discriminator="name")))  # type: ignore[attr-defined]


def classes_in(annotation: Any) -> tuple[type[Settings], ...]:
    """Return the classes of settings in a union, also in one that is a part of it."""
    if isinstance(annotation, type):
        return (annotation,) if issubclass(annotation, Settings) else ()
    if get_origin(annotation) in (dict, tuple, list):
        return ()
    return tuple(dict.fromkeys(found for part in get_args(annotation) for found in classes_in(part)))


def name_of(kind: type[Settings]) -> str | None:
    """Return the ``name`` by which a union knows a class; ``None`` where it has none.

    >>> from ray_pcasgd.base.curves import Linear
    >>> name_of(Linear), name_of(Settings)
    ('linear', None)
    """
    field = kind.model_fields.get("name")
    options = get_args(field.annotation) if field is not None and get_origin(field.annotation) is Literal else ()
    return options[0] if len(options) == 1 and field is not None and field.default == options[0] else None


def more_kinds(annotation: Any) -> tuple[type[Settings], ...]:
    """Return the kinds that stand in a union by its door, in addition to those that the union names."""
    found = set(classes_in(annotation))
    return next((door.kinds() for door in DOORS if door.own and set(door.own) == found), ())


def spelled_out(value: Settings, fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return an object of a class that is not the package's own as settings; ``None`` where no door lets it in."""
    door = next((door for door in DOORS if isinstance(value, door.bases)), None)
    return None if door is None or type(value) in door.own else door.spelled_out(value, fields)


def is_others(value: Settings) -> bool:
    """Return whether an object is of a class that has a name of its own, not the package's, and that a door lets in."""
    name = name_of(type(value))
    return any(isinstance(value, door.bases) and name not in map(name_of, door.own) for door in DOORS)


def identity(tree: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what settings are of: their name, and where they are of a class by its import path, that class.

    >>> identity({"name": "custom", "rule": "my_module:MyRule", "settings": {}}), identity({"name": "ring"})
    (('custom', 'my_module:MyRule'), ('ring',))
    """
    keys = [door.key for door in DOORS if door.key in tree] if tree.get("name") == CUSTOM else []
    return (tree.get("name"), *(_path_of(tree[key]) for key in keys))


def names_others_code(tree: Mapping[str, Any]) -> bool:
    """Return whether settings are of a class that is not the package's own."""
    name = tree.get("name")
    return name == CUSTOM or any(name in door.offers for door in DOORS if isinstance(name, str))


def inside(location: tuple[int | str, ...], tree: Any) -> Inside | None:
    """Return the settings of a class by its import path that a location leads into; ``None`` where it does not.

    Nothing is imported: settings are looked at only after their class was, and not at all where it was refused.
    """
    for depth, part in enumerate(location):
        if isinstance(tree, Mapping) and tree.get("name") == CUSTOM and part == "settings":
            door = next((door for door in DOORS if door.key in tree), None)
            owner = None if door is None else _imported(tree[door.key])
            if door is not None and isinstance(owner, type) and issubclass(owner, door.bases):
                return Inside(depth + 1, owner, tree.get("settings", {}))
        is_item = isinstance(tree, list | tuple) and isinstance(part, int) and part < len(tree)
        if is_item or (isinstance(tree, Mapping) and part in tree):
            tree = tree[part]
    return None


def _imported(value: Any) -> Any:
    """Return what an import path names in a module that is imported already; ``None`` in any other."""
    if not isinstance(value, str):
        return value
    module, _, attribute = value.partition(":")
    found: Any = sys.modules.get(module)
    for name in attribute.split("."):
        found = getattr(found, name, None)
    return found


@contextmanager
def naming_own(value: Settings, setting: str = "") -> Iterator[None]:
    """Name the class of an object, and the setting where it stands, in whatever its own code raises."""
    try:
        yield
    except Exception as error:
        place = f"{setting}: " if setting else ""
        told = f": {one_line(error)}" if isinstance(error, ValueError) else f" fails ({_told(error)})"
        raise ValueError(f"{place}{_path_of(type(value))}{told}") from error


def _path_of(value: Any) -> Any:
    """Return the import path of a class, in angle brackets where nothing can be imported by it."""
    if not isinstance(value, type):
        return value
    path = import_path(value)
    try:
        return path if import_object(path) is value else f"<{path}>"
    except ValueError:
        return f"<{path}>"


def _told(error: BaseException) -> str:
    try:
        text = one_line(error, _LONGEST)
    except Exception:  # the user's own, too
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
