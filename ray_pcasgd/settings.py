"""The base of every settings class: frozen, strict about names, documented where it is defined."""

from typing import Any

from pydantic import BaseModel, ConfigDict


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
