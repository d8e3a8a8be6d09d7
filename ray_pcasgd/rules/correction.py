"""How a server applies a gradient that was computed at weights it no longer has."""

from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from ray_pcasgd.base import numerics
from ray_pcasgd.base.doors import Door, naming_own
from ray_pcasgd.base.purity import check_pair, check_state, check_vector, pure_result
from ray_pcasgd.base.randomness import generator
from ray_pcasgd.base.settings import from_name
from ray_pcasgd.rules.correction_base import Correction as Correction
from ray_pcasgd.rules.correction_base import Late as Late
from ray_pcasgd.rules.correction_base import State as State
from ray_pcasgd.rules.kardam import Kardam
from ray_pcasgd.rules.lateness import LatenessWeight, PolynomialWeight


class NoCorrection(Correction):
    """The gradient as it is."""

    name: Literal["none"] = "none"

    def apply(self, state: State, worker: int, late: Late) -> tuple[State, Tensor]:
        """Return ``g``."""
        return state, late.gradient


class StalenessAware(Correction):
    """The step size divided by the staleness (Zhang, Gupta, Lian, Liu, IJCAI 2016, eq. 5 for one gradient)."""

    name: Literal["staleness-aware"] = "staleness-aware"

    def apply(self, state: State, worker: int, late: Late) -> tuple[State, Tensor]:
        """Return ``g / max(1, tau)``."""
        return state, late.gradient / late.staleness.clamp(min=1)


class ConstantDelayCompensation(Correction):
    """DC-ASGD-c: a first-order Taylor step to the present weights, its Hessian ``lambda_0 g .* g`` on the diagonal.

    Zheng, Meng, Wang, Chen, Yu, Ma, Liu, ICML 2017, eq. 10.
    """

    needs_gap: ClassVar[bool] = True

    name: Literal["dc-asgd-c"] = "dc-asgd-c"
    lambda_0: float = Field(0.04, ge=0)
    """Factor of the Hessian's approximation, 0 or more; the paper's setting is 0.04. 0 is no correction."""

    def apply(self, state: State, worker: int, late: Late) -> tuple[State, Tensor]:
        """Return ``g + lambda_0 g .* g .* (w - w_bak)``."""
        g = late.gradient
        return state, g + self.lambda_0 * g * g * late.gap


class AdaptiveDelayCompensation(Correction):
    """DC-ASGD-a: delay compensation with ``lambda = lambda_0 / sqrt(MS + 1e-7)``, element by element.

    ``MS <- m MS + (1 - m) g .* g`` from 0, updated before it is used, without bias correction (Zheng et al., ICML
    2017, eq. 14 and the authors' code).
    """

    needs_gap: ClassVar[bool] = True

    name: Literal["dc-asgd-a"] = "dc-asgd-a"
    lambda_0: float = Field(2.0, ge=0)
    """Factor of the Hessian's approximation, 0 or more; the paper's setting for CIFAR-10 is 2. 0 is no correction."""
    decay: float = Field(0.95, ge=0, lt=1)
    """m: share of the mean square that is kept, in [0, 1)."""
    shared: bool = False
    """One mean square for all workers, instead of one for each (as in the authors' code)."""

    def init(self, weights: Tensor, num_workers: int) -> State:
        """Return mean squares of zeros, one of shape (D,) for each worker, or one for all."""
        return tuple(torch.zeros_like(weights) for _ in range(1 if self.shared else num_workers))

    def apply(self, state: State, worker: int, late: Late) -> tuple[State, Tensor]:
        """Return ``g + lambda g .* g .* (w - w_bak)``."""
        g, place = late.gradient, 0 if self.shared else worker
        square = self.decay * state[place] + (1 - self.decay) * g * g
        state = (*state[:place], square, *state[place + 1 :])
        return state, g + self.lambda_0 / torch.sqrt(square + 1e-7) * g * g * late.gap


class GapBounded(Correction):
    """The step size ``min(C / |w - w_bak|^2, eta)``, eta where the gap is 0 (Dutta et al. 2021, eq. 13)."""

    needs_gap: ClassVar[bool] = True
    elementwise: ClassVar[bool] = False

    name: Literal["gap-bounded"] = "gap-bounded"
    bound: float = Field(gt=0)
    """C, above 0: the step size is below the run's own where the squared gap is above ``C / eta``."""

    def apply(self, state: State, worker: int, late: Late) -> tuple[State, Tensor]:
        """Return ``g min(1, C / (eta |w - w_bak|^2))``, the norm over all parameters."""
        scaled_gap = late.step_size * numerics.inner(late.gap, late.gap)
        bounded = scaled_gap > self.bound
        factor = torch.where(bounded, self.bound / torch.where(bounded, scaled_gap, 1.0), 1.0)
        return state, factor * late.gradient


class DelayAdaptive(Correction):
    """A step size that falls with the staleness where that is above the number of workers P.

    ``scale``: ``eta P / max(P, tau)`` (Mishchenko, Bach, Even, Woodworth, NeurIPS 2022). ``shrink``: ``eta`` up to P
    and ``min(eta, 1 / (4 L tau))`` above it; ``drop``: gradients above it are not used (both Koloskova, Stich, Jaggi,
    NeurIPS 2022).
    """

    name: Literal["delay-adaptive"] = "delay-adaptive"
    above: Literal["scale", "shrink", "drop"] = "scale"
    """What happens above a staleness of P."""
    smoothness: float | None = Field(None, gt=0)
    """L, the gradient's Lipschitz constant; for ``shrink`` alone, which needs it."""

    @model_validator(mode="after")
    def _smoothness_where_needed(self) -> Self:
        if (self.above == "shrink") != (self.smoothness is not None):
            raise ValueError(
                f"smoothness = {self.smoothness or 'null'}: allowed is a number with above = 'shrink', null with "
                "the others"
            )
        return self

    def apply(self, state: State, worker: int, late: Late) -> tuple[State, Tensor]:
        """Return ``g`` times the step size's factor."""
        within, tau = late.staleness <= late.num_workers, late.staleness
        if self.above == "scale":
            factor = late.num_workers / torch.maximum(late.num_workers, tau)
        elif self.smoothness is not None:
            limit = 1 / (4 * self.smoothness * late.step_size * tau.clamp(min=1))
            factor = torch.where(within, 1.0, limit.clamp(max=1.0))
        else:
            factor = within.to(late.gradient.dtype)
        return state, factor * late.gradient


class Dampened(Correction):
    """A late gradient counts less: ``s(tau) g``, s one of the laws by which FedAsync and Kardam dampen what is late.

    s(0) = 1, so a gradient in time counts whole, and each one is dampened by its own staleness alone: late ones lower
    the step size of none that come after them. **Choice**: where an update takes K gradients, the divisor of their
    mean is K, not the sum of the s, as FedBuff has it.
    """

    name: Literal["dampened"] = "dampened"
    weighting: LatenessWeight = PolynomialWeight()
    """s(tau): polynomial, hinge, exponential; constant is no correction."""

    def apply(self, state: State, worker: int, late: Late) -> tuple[State, Tensor]:
        """Return ``s(tau) g``."""
        return state, self.weighting.of(late.staleness) * late.gradient


def check_correction(correction: Correction) -> None:
    """Raise ``ValueError`` where another correction than the package's does not keep to what ``Correction`` says."""
    draw = generator(0, "correction")
    weights, gradient, gap = (torch.from_numpy(draw.standard_normal(8, dtype=np.float32)) for _ in range(3))
    tau, eta, workers = (torch.tensor(value) for value in (2.0, 0.1, 2.0))
    nothing = torch.zeros(0)
    places = (gap, weights - gap) if correction.needs_gap else (nothing, nothing)
    late = Late(gradient, places[0], tau, eta, workers, weights, places[1])
    with naming_own(correction), torch.no_grad():
        state = correction.init(weights, 2)
        check_state("init", state, state)
        for worker in (0, 1, 0):
            inputs = (state, worker, late)
            following, corrected = check_pair("apply", pure_result("apply", correction.apply, inputs), "gradient")
            check_state("apply", following, state)
            check_vector("the gradient that apply returns", corrected, gradient, ())
            state = following


AnyCorrection = Annotated[
    Annotated[
        NoCorrection
        | StalenessAware
        | ConstantDelayCompensation
        | AdaptiveDelayCompensation
        | GapBounded
        | DelayAdaptive
        | Dampened
        | Kardam,
        Field(discriminator="name"),
        Door("correction", "ray_pcasgd.corrections", (Correction,), check_correction),
    ],
    BeforeValidator(from_name),
]
"""Any correction's settings, told apart by ``name``."""
