"""YellowFin: momentum SGD that tunes its own momentum and step size, also under asynchrony (Zhang, Mitliagkas 2019)."""

import math
from collections.abc import Container, Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ray_pcasgd.agents.local_optimizer import Decay, LocalOptimizer, Parts, Trail, decayed, where_moving
from ray_pcasgd.base import numerics

_FLOOR = 1e-6
"""Smallest variance, curvature and squared length that is divided by; added to what a logarithm is taken of."""
_PROTECTED = 100.0
"""How many times h_max a gradient's squared length may be in what is measured of it."""
_LARGEST = 0.999
"""Bound of the closed loop's momentum, on either side."""


class YellowFinState(NamedTuple):
    """What YellowFin remembers; numbers are float64, of shape ()."""

    steps: Tensor
    """Gradients so far."""
    squares: Tensor
    """Squared lengths of the last gradients, shape (window,), 0 where there was none yet."""
    log_smallest: Tensor
    """Moving average of the logarithm of the smallest of them."""
    log_largest: Tensor
    length: Tensor
    """Moving average of gradients' lengths."""
    square: Tensor
    """Moving average of their squares."""
    distance: Tensor
    """Moving average of the estimated distance to the minimum."""
    mean: Tensor
    """Moving average of gradients, shape (D,)."""
    velocity: Tensor
    """By which the weights move, shape (D,)."""
    momentum: Tensor
    """mu of the last step."""
    target: Tensor
    """mu* of the last step, which the total momentum is to have."""
    rate: Tensor
    """alpha of the last step."""
    total: Tensor
    """The total momentum as it was measured last; not a number before that."""
    pull: Tensor
    """By what the last gradient has moved the weights, ``eta alpha g``, shape (D,); without a closed loop (0,)."""
    weights: Tensor
    """The weights at the last step, shape (D,) or (0,)."""
    change: Tensor
    """By how much the weights had moved in the step before, shape (D,) or (0,)."""


class YellowFin(LocalOptimizer):
    """YellowFin: ``v <- mu v + alpha g``, ``x <- x - eta v``, with mu and alpha from what gradients show.

    From the last ``window`` gradients' squared lengths, which stand for curvatures, come h_min and h_max; from moving
    averages the variance C and the distance to the minimum D. ``mu* = max(x^2, ((sqrt k - 1)/(sqrt k + 1))^2)``, with
    ``k = h_max / h_min`` and x the minimum of ``x^2 D^2 + (1 - x)^4 C / h_min^2``; ``alpha = (1 - sqrt mu*)^2 /
    h_min``, which rises linearly over the first ``10 window`` steps. Gradients are cut to the length ``sqrt(h_max)``
    (arXiv 1706.03471, algorithms 1 to 4 and section 3.3).

    Asynchrony adds momentum. With the ``closed_loop`` mu is not mu*, but follows it by ``mu <- mu + gain (mu* - mu_T)``
    (algorithm 5), with the total momentum ``mu_T`` as it is measured: the median over parameters of
    ``(x_{s+1} - x_s + alpha g(x_s)) / (x_s - x_{s-1})``, s the version at which the last gradient was computed; mu may
    be negative. Of a server's update over several gradients, numerator and denominator are means over these.

    **Choice**: mu and alpha are not smoothed once more; weight decay is outside of what is measured; h_max is smoothed
    in logarithms as h_min is, and both of a squared length plus 1e-6, so that a gradient of 0 has one; the variance is
    1e-6 at least. A gradient whose squared length is above ``100 h_max`` is cut to that where it is measured, so that
    one outlier does not take the averages with it. The closed loop's mu stays within 0.999 on either side, and
    parameters that have not moved do not count in the median. A run's measures are ``momentum``, ``total_momentum``,
    its ``target_momentum`` and the ``rate`` alpha.
    """

    elementwise: ClassVar[bool] = False
    stackable: ClassVar[bool] = False
    usual_step_size: ClassVar[float] = 1.0

    name: Literal["yellowfin"] = "yellowfin"
    closed_loop: bool = True
    """Whether the total momentum is measured, and steered to what it should be; else the momentum itself is that."""
    gain: float = Field(0.01, gt=0, le=1)
    """By how much of its distance from the target the total momentum changes mu at a step, in (0, 1]."""
    smoothing: float = Field(0.999, ge=0, lt=1)
    """Share of the moving averages that is kept from step to step, in [0, 1)."""
    window: int = Field(20, ge=1, le=10_000)
    """Number of gradients of which the smallest and the largest count."""
    weight_decay: float = Field(0.0, ge=0)
    """Factor of the L2 penalty's gradient, 0 or more."""
    decay: Decay = "all"
    """What decays: ``all``, or ``matrices`` alone: tensors of two or more dimensions, no biases and no norms."""

    @property
    def state_vectors(self) -> int:
        """Mean gradient and velocity, and with the closed loop the last pull, weights and change."""
        return 5 if self.closed_loop else 2

    @property
    def senses_momentum(self) -> bool:
        """Whether it asks how the weights have moved where its last gradient was computed."""
        return self.closed_loop

    def start(self, weights: Tensor, parts: Parts = ()) -> YellowFinState:
        """Return the state before the first step, of momentum 0."""
        zero = torch.zeros((), dtype=torch.float64, device=weights.device)
        zeros = torch.zeros_like(weights)
        kept = zeros if self.closed_loop else zeros.new_zeros(0)
        return YellowFinState(
            steps=zero,
            squares=zero.new_zeros(self.window),
            log_smallest=zero,
            log_largest=zero,
            length=zero,
            square=zero,
            distance=zero,
            mean=zeros,
            velocity=zeros,
            momentum=zero,
            target=zero,
            rate=zero,
            total=zero + math.nan,
            pull=kept,
            weights=weights if self.closed_loop else kept,
            change=kept,
        )

    def direction(
        self,
        state: YellowFinState,
        weights: Tensor,
        gradient: Tensor,
        parts: Parts = (),
        moving: Tensor | None = None,
        step_size: float = 0.0,
        trail: Trail | None = None,
    ) -> tuple[YellowFinState, Tensor]:
        """Return the next state and the direction, as ``LocalOptimizer.direction`` says.

        ``trail`` is how the weights have moved where the last gradient was computed; not given: it was computed where
        they were at the last step.
        """
        largest = self._debiased(state.log_largest, state.steps).exp()
        # The first gradient has nothing to be compared with.
        cap = torch.where(state.steps > 0, largest, math.inf)
        following = self._measured(state, _cut(gradient, _PROTECTED * cap))
        target, rate = self._tuned(following)
        following = following._replace(target=target, rate=rate, momentum=target)
        if self.closed_loop:
            own = Trail(weights - state.weights, state.change)
            following = self._steered(state, following, trail or own)
            following = following._replace(weights=weights, change=own.after)
        pulled = _cut(gradient, cap)
        if self.weight_decay:
            pulled = pulled.add(decayed(weights, self.decay, parts), alpha=self.weight_decay)
        dtype = gradient.dtype
        velocity = following.momentum.to(dtype) * state.velocity + following.rate.to(dtype) * pulled
        velocity = where_moving(moving, velocity, state.velocity)
        if self.closed_loop:
            following = following._replace(pull=step_size * following.rate.to(dtype) * pulled)
        following = following._replace(velocity=velocity)
        if moving is not None:  # a step in which nothing got a gradient shows nothing
            pairs = zip(following, state, strict=True)
            following = YellowFinState(*(torch.where(moving.any(), new, old) for new, old in pairs))
        return following, where_moving(moving, velocity, 0.0)

    def _debiased(self, average: Tensor, steps: Tensor) -> Tensor:
        """Return a moving average of so many numbers without its start from 0."""
        return average / (1 - self.smoothing**steps).clamp(min=_FLOOR**2)

    def _measured(self, state: YellowFinState, gradient: Tensor) -> YellowFinState:
        """Return the state with the averages of one gradient more (algorithms 2, 3 and 4)."""
        keep, take = self.smoothing, 1 - self.smoothing
        steps, square = state.steps + 1, numerics.inner(gradient, gradient).double()
        places = torch.arange(self.window, device=gradient.device)
        squares = torch.where(places == state.steps % self.window, square, state.squares)
        known = places < steps
        smallest = torch.where(known, squares, math.inf).min()
        largest = torch.where(known, squares, 0.0).max()
        length = keep * state.length + take * square.sqrt()
        squared = keep * state.square + take * square
        return state._replace(
            steps=steps,
            squares=squares,
            log_smallest=keep * state.log_smallest + take * (smallest + _FLOOR).log(),
            log_largest=keep * state.log_largest + take * (largest + _FLOOR).log(),
            length=length,
            square=squared,
            distance=keep * state.distance + take * length / squared.clamp(min=_FLOOR * take),
            mean=keep * state.mean + take * gradient,
        )

    def _tuned(self, state: YellowFinState) -> tuple[Tensor, Tensor]:
        """Return mu* and alpha (algorithm 1)."""
        smallest, largest = (
            self._debiased(average, state.steps).exp() for average in (state.log_smallest, state.log_largest)
        )
        mean = self._debiased(state.mean.double(), state.steps)
        variance = (self._debiased(state.square, state.steps) - numerics.inner(mean, mean)).clamp(min=_FLOOR)
        root = single_step(self._debiased(state.distance, state.steps), smallest, variance)
        ratio = (largest / smallest).clamp(min=1.0).sqrt()
        momentum = torch.maximum(root**2, ((ratio - 1) / (ratio + 1)) ** 2)
        slow_start = (state.steps / (10 * self.window)).clamp(max=1.0)
        return momentum, slow_start * (1 - momentum.sqrt()) ** 2 / smallest

    def _steered(self, state: YellowFinState, following: YellowFinState, trail: Trail) -> YellowFinState:
        """Return the following state with the momentum that the total one asks for."""
        found = total_momentum(trail, state.pull).double()
        is_found = found.isfinite()
        change = torch.where(is_found, self.gain * (following.target - found), 0.0)
        return following._replace(
            momentum=(state.momentum + change).clamp(-_LARGEST, _LARGEST),
            total=torch.where(is_found, found, state.total),
        )

    def feedback(self, curvature: float, state: YellowFinState, direction: Tensor, parts: Parts = ()) -> float | None:
        """Return ``alpha (h + weight_decay) / (1 - mu)``; ``None`` before the first step."""
        momentum, rate = float(state.momentum), float(state.rate)
        return rate * (curvature + self.weight_decay) / (1 - momentum) if float(state.steps) else None

    def measures(self, state: YellowFinState) -> dict[str, float]:
        """Return what a step's report says of the state."""
        found = {"momentum": float(state.momentum), "rate": float(state.rate)}
        if self.closed_loop:
            found["target_momentum"] = float(state.target)
            if math.isfinite(total := float(state.total)):
                found["total_momentum"] = total
        return found


def _cut(gradient: Tensor, squared: Tensor) -> Tensor:
    """Return a gradient of at most that squared length."""
    own = numerics.inner(gradient, gradient).double()
    factor = torch.where(own > squared, (squared / own.clamp(min=_FLOOR**2)).sqrt(), 1.0)
    return gradient * factor.to(gradient.dtype)


def single_step(distance: Tensor, curvature: Tensor, variance: Tensor) -> Tensor:
    """Return the x in [0, 1] that minimizes ``x^2 D^2 + (1 - x)^4 C / h^2``, by Cardano's formula, shape ().

    With ``x = 1 + y`` its derivative is 0 where ``y^3 + p y + p = 0``, ``p = D^2 h^2 / (2 C)``: one real root.
    """
    p = ((distance * curvature) ** 2 / (2 * variance)).clamp(1e-30, 1e30)
    cubed = (-(p**2 + 4 / 27 * p**3).sqrt() - p) / 2
    w = -((-cubed) ** (1 / 3))
    x = (1 + w - p / (3 * w)).clamp(0.0, 1.0)
    # The formula is a difference of large numbers where p is large; one step of Newton's method makes it exact.
    return (x - ((x - 1) ** 3 + p * x) / (3 * (x - 1) ** 2 + p)).clamp(0.0, 1.0)


def total_momentum(trail: Trail, pull: Tensor) -> Tensor:
    """Return the median of ``(x_{s+1} - x_s + alpha g(x_s)) / (x_s - x_{s-1})`` over what has moved, shape ().

    It is not a number where nothing has.
    """
    has_moved = trail.before != 0
    ratios = torch.where(has_moved, (trail.after + pull) / torch.where(has_moved, trail.before, 1.0), math.nan)
    return torch.nanmedian(ratios)


def steps_around(version: int, held: Container[int]) -> tuple[int, int]:
    """Return the versions at which the steps before and after one begin; -1 where there is none before.

    The weights have not moved from the versions that are ``held`` to the next ones.
    """
    before, after = version - 1, version
    while before in held:
        before -= 1
    while after in held:
        after += 1
    return before, after


def mean_trail(history: Mapping[int, Tensor], versions: Sequence[int], held: Container[int] = ()) -> Trail:
    """Return how weights have moved around some versions, as a mean over these, of a history of them by version."""
    around = [steps_around(version, held) for version in versions]
    after = [history[last + 1] - history[last] for _, last in around]
    before = [history[max(0, first + 1)] - history[max(0, first)] for first, _ in around]
    count = len(after)
    return Trail(sum(after[1:], after[0]) / count, sum(before[1:], before[0]) / count)
