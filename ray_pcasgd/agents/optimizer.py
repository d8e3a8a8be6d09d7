"""The local optimizer: from a mini-batch gradient to the direction ``u`` of ``x <- x - eta * u``."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from ray_pcasgd.agents.adam import Adam, AdamW
from ray_pcasgd.agents.lion import Lion
from ray_pcasgd.agents.local_optimizer import Decay, LocalOptimizer, Parts, decayed, where_moving
from ray_pcasgd.agents.torch_optimizer import TorchOptimizer
from ray_pcasgd.agents.yellowfin import YellowFin
from ray_pcasgd.base import numerics
from ray_pcasgd.base.doors import Door, naming_own
from ray_pcasgd.base.purity import check_pair, check_state, check_vector, mapped, pure_result
from ray_pcasgd.base.randomness import generator
from ray_pcasgd.base.settings import from_name
from ray_pcasgd.base.text import one_line

_SMALLEST = 1e-8
"""Smallest product of two norms by which an inner product is divided."""


class OwnOptimizer(LocalOptimizer, ABC):
    """Base class of local optimizers that are not the package's own: pure, without an ``if`` on a tensor.

    A parameter that got no gradient stays where it is, with its state.
    """

    elementwise: ClassVar[bool] = True
    """Whether a part of the parameters can be updated without the others, on a server of its own."""

    def init(self, weights: Tensor) -> tuple[Tensor, ...]:
        """Return the state before the first step for weights of shape (D,): tensors of shape (D,)."""
        return ()

    @abstractmethod
    def update(self, state: tuple[Tensor, ...], weights: Tensor, gradient: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the next state and the direction ``u`` of ``x <- x - eta * u``; all of shape (D,)."""

    def start(self, weights: Tensor, parts: Parts = ()) -> tuple[Tensor, ...]:
        """Return what ``init`` does."""
        return self.init(weights)

    def direction(
        self,
        state: tuple[Tensor, ...],
        weights: Tensor,
        gradient: Tensor,
        parts: Parts = (),
        moving: Tensor | None = None,
        step_size: float = 0.0,
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return what ``update`` does, but 0 where ``moving`` says that a number got no gradient."""
        following, direction = self.update(state, weights, gradient)
        return _where_moving(moving, following, state), where_moving(moving, direction, 0.0)


def _where_moving(moving: Tensor | None, following: tuple[Tensor, ...], state: tuple[Tensor, ...]) -> tuple[Any, ...]:
    return tuple(where_moving(moving, new, old) for new, old in zip(following, state, strict=True))


class SGD(LocalOptimizer):
    """SGD with momentum, Nesterov's momentum and weight decay: the arithmetic of ``torch.optim.SGD``, to the bit.

    ``g = gradient + weight_decay * x``; ``v <- momentum * v + g`` from ``v = 0``; ``u = v``, or with Nesterov's
    momentum ``u = g + momentum * v``. Pure: it may run under ``torch.func.vmap``.

    With adaptive braking (Venigalla et al. 2020) each parameter tensor's gradient is first scaled by
    ``alpha = 1 - rho * <gradient, v> / max(|gradient| |v|, 1e-8)``, v the velocity so far: less where it points along
    the velocity, more where it points against it. **Choice**: weight decay is added after, so it is not braked.

    A parameter that got no gradient stays where it is, with its velocity, as under ``torch.optim.SGD``: neither decayed
    nor moved by its momentum.
    """

    name: Literal["sgd"] = "sgd"
    momentum: float = Field(0.0, ge=0, lt=1)
    """Share of the velocity that is kept from step to step, in [0, 1)."""
    nesterov: bool = False
    """Look ahead along the velocity; requires momentum above 0."""
    weight_decay: float = Field(0.0, ge=0)
    """Factor of the L2 penalty's gradient, 0 or more."""
    decay: Decay = "all"
    """What decays: ``all``, or ``matrices`` alone: tensors of two or more dimensions, no biases and no norms."""
    braking: float | None = Field(None, ge=0)
    """rho of adaptive braking, 0 or more (the paper's is 2); requires momentum above 0. Not given: no braking."""

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov = true: allowed is false where momentum is 0")
        return self

    @model_validator(mode="after")
    def _braking_has_momentum(self) -> Self:
        if self.braking is not None and self.momentum == 0:
            raise ValueError(f"braking = {self.braking:g}: allowed is null where momentum is 0")
        return self

    @property
    def state_vectors(self) -> int:
        """The velocity, where there is momentum."""
        return 1 if self.momentum else 0

    @property
    def takes_leading_axes(self) -> bool:  # type: ignore[override]
        """Whether every number is computed by itself: not so with adaptive braking."""
        return self.braking is None

    def init(self, weights: Tensor) -> tuple[Tensor, ...]:
        """Return the state before the first step for weights of shape (D,): the velocity, where there is momentum."""
        return (torch.zeros_like(weights),) if self.momentum else ()

    def start(self, weights: Tensor, parts: Parts = ()) -> tuple[Tensor, ...]:
        """Return what ``init`` does."""
        return self.init(weights)

    def direction(
        self,
        state: tuple[Tensor, ...],
        weights: Tensor,
        gradient: Tensor,
        parts: Parts = (),
        moving: Tensor | None = None,
        step_size: float = 0.0,
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the next state and the direction, as ``LocalOptimizer.direction`` says."""
        following, direction = self._direction(state, weights, gradient, parts)
        return _where_moving(moving, following, state), where_moving(moving, direction, 0.0)

    def _direction(
        self, state: tuple[Tensor, ...], weights: Tensor, gradient: Tensor, parts: Parts
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        if self.braking is not None:
            gradient = self._braked(gradient, state[0], parts)
        if self.weight_decay:
            gradient = gradient.add(decayed(weights, self.decay, parts), alpha=self.weight_decay)
        if not self.momentum:
            return state, gradient
        velocity = state[0] * self.momentum + gradient
        return (velocity,), gradient.add(velocity, alpha=self.momentum) if self.nesterov else velocity

    def feedback(
        self, curvature: float, state: tuple[Tensor, ...], direction: Tensor, parts: Parts = ()
    ) -> float | None:
        """Return ``(h + weight_decay) / (1 - momentum)``: of gradients that stay, momentum makes longer steps."""
        return self.steepened(curvature)

    def steepened(self, curvature: float) -> float:
        """Return the curvature that a steady step of this optimizer follows, of a loss of a given one.

        ``(h + weight_decay) / (1 - momentum)``: of gradients that stay, momentum makes steps that much longer.
        """
        return (curvature + self.weight_decay) / (1 - self.momentum)

    def _braked(self, gradient: Tensor, velocity: Tensor, parts: Parts) -> Tensor:
        assert self.braking is not None
        sizes, braked = [part.size for part in parts], []
        for g, v in zip(torch.split(gradient, sizes, -1), torch.split(velocity, sizes, -1), strict=True):
            length = (numerics.norm(g) * numerics.norm(v)).clamp(min=_SMALLEST)
            braked.append((1 - self.braking * numerics.inner(g, v) / length) * g)
        return torch.cat(braked, -1)


def _check_stacked(optimizer: OwnOptimizer, inputs: tuple[Any, ...]) -> None:
    try:
        torch.func.vmap(optimizer.update)(*inputs)
    except Exception as error:  # the user's own code, or torch's where it has an ``if`` on a tensor
        raise ValueError(
            f"update cannot run for several agents at once ({one_line(error, 200)}); allowed is torch.where in place "
            "of an if on a tensor"
        ) from error


def check_optimizer(optimizer: OwnOptimizer) -> None:
    """Raise ``ValueError`` where an optimizer does not keep to what ``OwnOptimizer`` says."""
    draw = generator(0, "optimizer")
    weights, gradient = (torch.from_numpy(draw.standard_normal(8, dtype=np.float32)) for _ in range(2))
    with naming_own(optimizer), torch.no_grad():
        state = optimizer.init(weights)
        check_state("init", state, state)
        if any(tensor.shape != weights.shape for tensor in state):
            raise ValueError("init returns tensors of other shapes; allowed are those of the weights, (D,)")
        for _ in range(3):
            inputs = (state, weights, gradient)
            following, direction = check_pair("update", pure_result("update", optimizer.update, inputs), "direction")
            check_state("update", following, state)
            check_vector("the direction that update returns", direction, weights, ())
            _check_stacked(optimizer, mapped(lambda tensor: torch.stack([tensor, tensor]), inputs))
            state = following


def _from_shorthand(value: Any) -> Any:
    """Return settings with their name: without one they are SGD's."""
    if isinstance(value, Mapping) and "name" not in value:
        return {"name": "sgd", **value}
    return from_name(value)


Optimizer = Annotated[
    Annotated[
        SGD | AdamW | Adam | Lion | YellowFin | TorchOptimizer,
        Field(discriminator="name"),
        Door("optimizer", "ray_pcasgd.optimizers", (OwnOptimizer,), check_optimizer),
    ],
    BeforeValidator(_from_shorthand),
]
"""Any optimizer's settings, told apart by ``name``; SGD's where there is none."""
