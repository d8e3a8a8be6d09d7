"""Numbers that follow the step: step sizes and theta."""

import math
from bisect import bisect_right
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ray_pcasgd.settings import Settings, from_name


class Constant(Settings):
    """The same value at every step."""

    name: Literal["constant"] = "constant"
    value: float
    """The value."""

    def at(self, step: int) -> float:
        """Return the value at ``step``."""
        return self.value

    def extremes(self) -> tuple[float, ...]:
        """Return values that bound every value of the curve."""
        return (self.value,)


class Linear(Settings):
    """A straight line from ``start`` to ``end`` over ``steps`` steps, then ``end``."""

    name: Literal["linear"] = "linear"
    start: float
    """Value at step 0."""
    end: float
    """Value from step ``steps`` on."""
    steps: int = Field(ge=1)
    """Steps from ``start`` to ``end``."""

    def at(self, step: int) -> float:
        """Return the value at ``step``."""
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)

    def extremes(self) -> tuple[float, ...]:
        """Return values that bound every value of the curve."""
        return (self.start, self.end)


class Cosine(Settings):
    """Half a cosine wave from ``start`` to ``end`` over ``steps`` steps, then ``end`` (Loshchilov, Hutter, 2017)."""

    name: Literal["cosine"] = "cosine"
    start: float
    """Value at step 0."""
    end: float = 0.0
    """Value from step ``steps`` on."""
    steps: int = Field(ge=1)
    """Steps from ``start`` to ``end``."""

    def at(self, step: int) -> float:
        """Return the value at ``step``."""
        share = min(step / self.steps, 1.0)
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * share)) / 2

    def extremes(self) -> tuple[float, ...]:
        """Return values that bound every value of the curve."""
        return (self.start, self.end)


class MultiStep(Settings):
    """``start``, multiplied by ``factor`` at each of the given steps."""

    name: Literal["multi-step"] = "multi-step"
    start: float
    """Value at step 0."""
    factor: float = Field(0.1, gt=0)
    """What the value is multiplied by, above 0."""
    at_steps: tuple[int, ...]
    """Steps at which it is multiplied: rising, from 1 on."""

    @model_validator(mode="after")
    def _sorted(self) -> "MultiStep":
        if list(self.at_steps) != sorted(set(self.at_steps)) or any(step < 1 for step in self.at_steps):
            raise ValueError(f"at_steps = {list(self.at_steps)}: allowed are rising steps from 1 on")
        return self

    def at(self, step: int) -> float:
        """Return the value at ``step``."""
        return self.start * self.factor ** bisect_right(self.at_steps, step)

    def extremes(self) -> tuple[float, ...]:
        """Return values that bound every value of the curve."""
        return (self.start, self.at(max(self.at_steps, default=0)))


def _from_number(value: Any) -> Any:
    return {"name": "constant", "value": value} if isinstance(value, int | float) else from_name(value)


Curve = Annotated[
    Annotated[Constant | Linear | Cosine | MultiStep, Field(discriminator="name")], BeforeValidator(_from_number)
]
"""A number, or a curve over the agent's steps; a bare number is a constant."""
