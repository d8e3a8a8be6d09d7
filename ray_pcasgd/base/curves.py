"""Numbers that change with the step: step sizes and theta."""

import math
from bisect import bisect_left, bisect_right
from numbers import Real
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ray_pcasgd.base.settings import Settings, from_name


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


class PiecewiseConstant(Settings):
    """The first value, and from each of the given steps on the next one."""

    name: Literal["stairs"] = "stairs"
    values: tuple[float, ...] = Field(min_length=1)
    """The values, in their order."""
    at_steps: tuple[int, ...]
    """Steps from which each value but the first holds: rising, from 0 on."""

    @model_validator(mode="after")
    def _as_many(self) -> "PiecewiseConstant":
        if len(self.at_steps) != len(self.values) - 1:
            raise ValueError(
                f"at_steps = {list(self.at_steps)}: allowed is one less than values, {len(self.values) - 1}"
            )
        if list(self.at_steps) != sorted(set(self.at_steps)) or any(step < 0 for step in self.at_steps):
            raise ValueError(f"at_steps = {list(self.at_steps)}: allowed are rising steps from 0 on")
        return self

    def at(self, step: int) -> float:
        """Return the value at ``step``."""
        return self.values[bisect_right(self.at_steps, step)]

    def extremes(self) -> tuple[float, ...]:
        """Return values that bound every value of the curve."""
        return self.values


def continued(curve: Constant | PiecewiseConstant, step: int, value: float) -> Constant | PiecewiseConstant:
    """Return a curve that is ``curve`` before ``step``, and ``value`` from there on.

    >>> continued(Constant(value=0.1), 50, 0.2).values
    (0.1, 0.2)
    """
    if curve.at(step) == value and all(at <= step for at in getattr(curve, "at_steps", ())):
        return curve
    values, steps = ((curve.value,), ()) if isinstance(curve, Constant) else (curve.values, curve.at_steps)
    kept = bisect_left(steps, step)
    return PiecewiseConstant(values=(*values[: kept + 1], value), at_steps=(*steps[:kept], step))


def _from_number(value: Any) -> Any:
    return {"name": "constant", "value": value} if isinstance(value, Real) else from_name(value)


Curve = Annotated[
    Annotated[Constant | Linear | Cosine | MultiStep | PiecewiseConstant, Field(discriminator="name")],
    BeforeValidator(_from_number),
]
"""A number, or a curve over the agent's steps; a bare number is a constant."""
