"""The base of every settings class: frozen, strict about names, documented where it is defined."""

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
