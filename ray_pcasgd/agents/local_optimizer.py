"""What an agent asks of any local optimizer, whose update it is, and of which tensors a flat vector is made."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ray_pcasgd.base.settings import Settings
from ray_pcasgd.base.state import leaves_of, with_leaves

Decay = Literal["all", "matrices"]
"""What weight decay is for: all parameters, or only tensors of two or more dimensions: no biases, no norms' scales."""


class Part(NamedTuple):
    """One parameter tensor's place in a flat vector."""

    shape: torch.Size
    """Of the whole tensor."""
    size: int
    """How many of its numbers are in the vector: a server's part may begin or end within a tensor."""

    @property
    def is_matrix(self) -> bool:
        """Whether the tensor has two or more dimensions."""
        return len(self.shape) > 1


class Trail(NamedTuple):
    """How weights have moved around the version s at which a gradient was computed, each of shape (D,)."""

    after: Tensor
    """``x_{s+1} - x_s``."""
    before: Tensor
    """``x_s - x_{s-1}``; zeros where s is the first version."""


Parts = tuple[Part, ...]
"""What a flat vector is made of, in its order; none of them is empty."""


def parts_of(shapes: Sequence[torch.Size], within: slice = slice(None)) -> Parts:
    """Return the parts of the vector of tensors of these shapes, or of a slice of it.

    >>> parts_of([torch.Size([2, 3]), torch.Size([4])], slice(4, 7))
    (Part(shape=torch.Size([2, 3]), size=2), Part(shape=torch.Size([4]), size=1))
    """
    ends = torch.tensor([0, *(shape.numel() for shape in shapes)]).cumsum(0).tolist()
    start, stop, _ = within.indices(ends[-1])
    found = [
        Part(shape, min(end, stop) - max(begin, start))
        for shape, begin, end in zip(shapes, ends[:-1], ends[1:], strict=True)
    ]
    return tuple(part for part in found if part.size > 0)


def spread(values: Tensor, parts: Parts) -> Tensor:
    """Return one value for each number, shape (D,), of one for each part, shape (T,)."""
    return torch.cat([value.expand(part.size) for value, part in zip(values.unbind(-1), parts, strict=True)], -1)


def of_parts(values: Tensor, parts: Parts) -> Tensor:
    """Return each part's first value, shape (T,), of a vector of shape (D,)."""
    starts = [0]
    for part in parts[:-1]:
        starts.append(starts[-1] + part.size)
    return values[..., starts]


@lru_cache(maxsize=8)
def matrices(parts: Parts, device: torch.device) -> Tensor:
    """Return which numbers are a matrix's, shape (D,), bool."""
    sizes = torch.tensor([part.size for part in parts])
    return torch.tensor([part.is_matrix for part in parts]).repeat_interleave(sizes).to(device)


def decayed(weights: Tensor, decay: Decay, parts: Parts) -> Tensor:
    """Return the weights that decay, 0 in the place of others, shape (D,)."""
    return weights if decay == "all" else torch.where(matrices(parts, weights.device), weights, 0.0)


def where_moving(moving: Tensor | None, new: Tensor, old: Tensor | float) -> Tensor:
    """Return what is new where numbers got a gradient, and else what was there; shape (D,)."""
    return new if moving is None else torch.where(moving, new, old)


class LocalOptimizer(Settings, ABC):
    """From a mini-batch gradient to the direction ``u`` of ``x <- x - eta * u``.

    A parameter that got no gradient stays where it is, with its state, as under ``torch.optim``.
    """

    usual_step_size: ClassVar[float] = 0.1
    """eta where the settings give no ``step_size``."""
    elementwise: ClassVar[bool] = True
    """Whether a part of the parameters can be updated without the others, on a server of its own."""
    stackable: ClassVar[bool] = True
    """Whether ``direction`` is pure, so that several agents' run as one under ``torch.func.vmap``."""
    takes_leading_axes: ClassVar[bool] = False
    """Whether ``direction`` takes vectors of shape (B, D) as well, with states that have a leading axis of B."""
    has_feedback: ClassVar[bool] = True
    """Whether ``feedback`` is known: how sharp a loss is to those who follow the optimizer."""

    @property
    def state_vectors(self) -> int:
        """How many vectors of shape (D,) the state has at least, from step to step."""
        return 0

    @property
    def senses_momentum(self) -> bool:
        """Whether ``direction`` takes a ``trail``: how the weights have moved where its last gradient was computed."""
        return False

    def measures(self, state: Any) -> dict[str, float]:
        """Return what a step's report says of a state."""
        return {}

    @abstractmethod
    def start(self, weights: Tensor, parts: Parts = ()) -> Any:
        """Return the state before the first step, for weights of shape (D,)."""

    @abstractmethod
    def direction(
        self,
        state: Any,
        weights: Tensor,
        gradient: Tensor,
        parts: Parts = (),
        moving: Tensor | None = None,
        step_size: float = 0.0,
    ) -> tuple[Any, Tensor]:
        """Return the next state and the direction ``u``, shape (D,), at ``weights`` with ``gradient``, both (D,).

        Args:
            state: That of the step before.
            weights: Where the gradient was computed, shape (D,).
            gradient: The gradient, shape (D,).
            parts: What the vectors are made of; not given: one matrix.
            moving: Which numbers got a gradient, shape (D,), bool; not given: all.
            step_size: eta, by which the direction is going to be multiplied.

        """

    def feedback(self, curvature: float, state: Any, direction: Tensor, parts: Parts = ()) -> float | None:
        """Return the h of ``r = eta h``, of a loss whose curvature along a direction of shape (D,) is given.

        ``r`` is by what a small step along the direction is multiplied when it comes back as the next direction's
        change; ``None`` where the optimizer has taken no step that it would follow from.
        """
        return curvature

    def check(self, weights: Tensor, parts: Parts) -> None:
        """Raise ``ValueError`` where it cannot train tensors such as these; nothing that is given is changed."""
        return

    def saved(self, state: Any) -> Any:
        """Return a state as files have it: lists and mappings of tensors, numbers and texts."""
        return leaves_of(state)

    def restored(self, state: Any, saved: Any) -> Any:
        """Return the state that was saved, where ``state`` is one of the same form."""
        return with_leaves(state, saved)
