"""The base of every settings class: frozen, strict about names and kinds of values, documented where it is defined."""

from typing import Any, Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationInfo,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from ray_pcasgd.base.docstrings import docstring_of


def from_name(value: Any) -> Any:
    """Return a bare string as settings of that name, so that ``model: resnet-20`` stands for ``{name: resnet-20}``."""
    return {"name": value} if isinstance(value, str) else value


FROM_STRANGERS = {"from_strangers": True}
"""The context for validating settings of a folder that may come from anybody."""


def refuse_of_strangers(value: Any, reason: str, info: ValidationInfo) -> None:
    """Raise ``ValueError`` where a setting that runs code or reaches out comes from a folder of unknown origin."""
    if (info.context or {}).get("from_strangers"):
        raise ValueError(
            f"{value!r}: {reason}, and these settings are not known as this user's; allowed with --trust (trust=True)"
        )


_LARGEST = 2**63 - 1
"""The largest whole number, and how far negative ones go: those of 64 bits, which arithmetic and files take."""


def _number(value: Any) -> Any:
    if isinstance(value, str | bytes | bool | np.bool_):
        raise PydanticKnownError("float_type")
    return value


def _whole_number(value: Any) -> Any:
    if isinstance(value, str | bytes | bool | np.bool_):
        raise PydanticKnownError("int_type")
    if isinstance(value, int) and not -_LARGEST <= value <= _LARGEST:
        raise PydanticKnownError("less_than_equal", {"le": _LARGEST})
    return value


def _boolean(value: Any) -> Any:
    if not isinstance(value, bool | np.bool_):
        raise PydanticKnownError("bool_type")
    return value


_KINDS = {"float": _number, "int": _whole_number, "bool": _boolean}
_MARK = "ray_pcasgd_of_one_kind"
"""In the metadata of schemas that are strict already: a model's schema is part of those around it."""
_KEPT = {"metadata", "serialization", "cls", "config", "default", "keys_schema"}
"""Parts of a schema that stay as they are; the keys of a mapping are texts on the command line and in JSON."""


def _of_one_kind(schema: Any) -> Any:
    """Return a schema whose numbers and booleans, however deep, are made of numbers and booleans only."""
    if isinstance(schema, list | tuple):
        return type(schema)(_of_one_kind(inner) for inner in schema)
    if not isinstance(schema, dict) or schema.get("metadata", {}).get(_MARK):
        return schema
    if schema.get("type") in _KINDS:
        check = _KINDS[schema["type"]]
        return core_schema.no_info_before_validator_function(check, schema, metadata={_MARK: True})
    return {key: inner if key in _KEPT else _of_one_kind(inner) for key, inner in schema.items()}


class Settings(BaseModel):
    """Immutable settings whose fields are read from YAML, the command line and Python under one name.

    The docstring below a field is its help text. Unknown names are refused, and so is a value of another kind: where a
    number is asked for, a text such as ``'5'`` or a boolean is refused. A whole number has 64 bits, and may be written
    ``5.0``.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return pydantic's schema, but without conversion to numbers and booleans."""
        schema: CoreSchema = _of_one_kind(handler(source))
        return schema

    @classmethod
    def help_of(cls, name: str) -> str:
        """Return what a field means: its docstring."""
        return cls.model_fields[name].description or docstring_of(cls, name)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return pydantic's JSON schema, with what each field means."""
        result = handler(schema)
        for name, found in handler.resolve_ref_schema(result).get("properties", {}).items():
            if "description" not in found and (text := cls.help_of(name)):
                found["description"] = text
        return result

    @model_validator(mode="wrap")
    @classmethod
    def _recorded_as_what_it_is(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Refuse other classes' objects: a run's files would name this class, whatever a subclass does otherwise."""
        if isinstance(value, Settings) and type(value) is not cls:
            given, allowed = (f"{kind.__module__}.{kind.__qualname__}" for kind in (type(value), cls))
            raise ValueError(f"an object of the class {given}, as which no run could be recorded; allowed is {allowed}")
        return handler(value)
