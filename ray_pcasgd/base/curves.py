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


class WarmupStableDecay(Settings):
    """From ``start`` up to ``value`` in a straight line, there for a while, then down to ``end`` (Hu et al. 2024)."""

    name: Literal["warmup-stable-decay"] = "warmup-stable-decay"
    value: float
    """Value of the stable part."""
    warmup: int = Field(ge=0)
    """Steps from ``start`` to ``value``."""
    stable: int = Field(ge=0)
    """Steps at ``value``."""
    decay: int = Field(ge=1)
    """Steps from ``value`` to ``end``."""
    start: float = 0.0
    """Value at step 0, where there is a warm-up."""
    end: float = 0.0
    """Value from step ``warmup + stable + decay`` on."""
    shape: Literal["linear", "cosine", "1-sqrt"] = "linear"
    """How the value falls: in a straight line, by half a cosine wave, or as ``1 - sqrt(share)``, fast at first."""

    def at(self, step: int) -> float:
        """Return the value at ``step``."""
        if step < self.warmup:
            return self.start + (self.value - self.start) * step / self.warmup
        share = min(max(step - self.warmup - self.stable, 0) / self.decay, 1.0)
        fallen = {"linear": share, "cosine": (1 - math.cos(math.pi * share)) / 2, "1-sqrt": math.sqrt(share)}
        return self.value + (self.end - self.value) * fallen[self.shape]

    def extremes(self) -> tuple[float, ...]:
        """Return values that bound every value of the curve."""
        return (self.value, self.end, *((self.start,) if self.warmup else ()))


class OneCycle(Settings):
    """Up from ``peak / start_factor`` to ``peak``, then down to a tiny part of the start (Smith, Topin 2018).

    The values of ``torch.optim.lr_scheduler.OneCycleLR`` with two phases, by other names: ``peak`` is ``max_lr``,
    ``steps`` ``total_steps``, ``rising`` ``pct_start``, ``start_factor`` ``div_factor``, ``end_factor``
    ``final_div_factor``. After ``steps`` it stays.
    """

    name: Literal["one-cycle"] = "one-cycle"
    peak: float
    """Largest value."""
    steps: int = Field(ge=2)
    """Steps of the cycle: the last of them, ``steps - 1``, has the smallest value."""
    rising: float = Field(0.3, gt=0, lt=1)
    """Share of the steps in which the value rises, between 0 and 1."""
    start_factor: float = Field(25.0, gt=0)
    """By what ``peak`` is divided for the value at step 0, above 0."""
    end_factor: float = Field(1e4, gt=0)
    """By what the value at step 0 is divided for the last value, above 0."""
    shape: Literal["cosine", "linear"] = "cosine"
    """Half cosine waves, or straight lines."""

    def at(self, step: int) -> float:
        """Return the value at ``step``."""
        start = self.peak / self.start_factor
        top = self.rising * self.steps - 1
        if step < top:
            return self._between(start, self.peak, step / top)
        share = (min(step, self.steps - 1) - top) / (self.steps - 1 - top)
        return self._between(self.peak, start / self.end_factor, share)

    def _between(self, first: float, last: float, share: float) -> float:
        return last + (first - last) * (1 - share if self.shape == "linear" else (1 + math.cos(math.pi * share)) / 2)

    def extremes(self) -> tuple[float, ...]:
        """Return values that bound every value of the curve."""
        start = self.peak / self.start_factor
        return (start, self.peak, start / self.end_factor)


class InverseSqrt(Settings):
    """Up to ``peak`` in a straight line over ``warmup`` steps, then down as ``1 / sqrt(step)`` (Vaswani et al. 2017).

    ``peak * min((t + 1) / warmup, sqrt(warmup / (t + 1)))`` at step t.
    """

    name: Literal["inverse-sqrt"] = "inverse-sqrt"
    peak: float
    """Largest value, at step ``warmup - 1``."""
    warmup: int = Field(ge=1)
    """Steps up to the peak."""

    def at(self, step: int) -> float:
        """Return the value at ``step``."""
        share = (step + 1) / self.warmup
        return self.peak * min(share, 1 / math.sqrt(share))

    def extremes(self) -> tuple[float, ...]:
        """Return values that bound every value of the curve."""
        return (0.0, self.peak)


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
    Annotated[
        Constant | Linear | Cosine | MultiStep | PiecewiseConstant | WarmupStableDecay | OneCycle | InverseSqrt,
        Field(discriminator="name"),
    ],
    BeforeValidator(_from_number),
]
"""A number, or a curve over the agent's steps; a bare number is a constant."""
