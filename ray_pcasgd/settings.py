"""The base of every settings class: frozen, strict about names, documented where it is defined."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo


class Settings(BaseModel):
    """Immutable settings whose fields are read from YAML, the command line and Python under one name.

    The docstring below a field is its help text. Unknown names are refused.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )


def from_name(value: Any) -> Any:
    """Return a bare string as settings of that name, so that ``model: resnet-20`` stands for ``{name: resnet-20}``."""
    return {"name": value} if isinstance(value, str) else value


FROM_STRANGERS = {"from_strangers": True}
"""The context in which settings are validated that come with a folder that may be anybody's."""


def refuse_of_strangers(value: Any, reason: str, info: ValidationInfo) -> None:
    """Raise ``ValueError`` where a setting that gives others power here comes from a folder that may be anybody's."""
    if (info.context or {}).get("from_strangers"):
        raise ValueError(
            f"{value!r}: {reason}, and these settings are not known as this user's; allowed with --trust (trust=True)"
        )
