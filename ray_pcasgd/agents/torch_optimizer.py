"""Any optimizer of ``torch.optim``'s kind, run on tensors of the parameters' shapes."""

import copy
import inspect
import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from ray_pcasgd.agents.local_optimizer import Decay, LocalOptimizer, Parts, of_parts
from ray_pcasgd.base.imports import CallableOrPath, import_object, import_path
from ray_pcasgd.base.purity import is_same
from ray_pcasgd.base.text import one_line

_LONGEST = 200
"""Characters of an error of the optimizer's own code that are shown."""


class Running:
    """An optimizer at work: its own copy of the parameters, in their shapes, which it steps."""

    def __init__(self, settings: "TorchOptimizer", weights: Tensor, parts: Parts) -> None:
        self.flat = weights.clone()
        pieces = torch.split(self.flat, [part.size for part in parts])
        self.parameters = [
            torch.nn.Parameter(piece.view(part.shape)) for piece, part in zip(pieces, parts, strict=True)
        ]
        self.optimizer = settings.made(self.parameters)
        self.check_parameters()
        groups = self.optimizer.param_groups
        first = float(groups[0].get("lr", 0.0))
        self.rates = [float(group.get("lr", 0.0)) / first if first else 1.0 for group in groups]
        """Each group's step size, by that of the first one."""
        if any("lr" not in group for group in groups):
            raise ValueError("a group of parameters has no lr; allowed are optimizers with a step size")

    def check_parameters(self) -> None:
        """Raise ``ValueError`` where the optimizer's groups do not hold each parameter once."""
        held = [id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]]
        if sorted(held) != sorted(map(id, self.parameters)):
            raise ValueError(
                f"its groups have {len(held)} tensors, not the {len(self.parameters)} parameters that it was given; "
                "allowed are these, each once"
            )

    def step(self, weights: Tensor, gradient: Tensor, reached: Sequence[bool], step_size: float) -> Tensor:
        """Return where a step with ``lr = step_size`` leads from ``weights``, all of shape (D,)."""
        self.flat.copy_(weights)
        pieces = torch.split(gradient, [parameter.numel() for parameter in self.parameters])
        for parameter, piece, got in zip(self.parameters, pieces, reached, strict=True):
            parameter.grad = piece.view(parameter.shape).clone() if got else None
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * step_size)
            else:
                group["lr"] = rate * step_size
        self.optimizer.step()
        for parameter in self.parameters:
            parameter.grad = None
        return self.flat


class TorchOptimizer(LocalOptimizer):
    """Any optimizer of ``torch.optim``'s kind: Adafactor, Muon, RAdam, one of a package or of your own.

    It steps tensors of the parameters' shapes with ``lr = eta``, so that ``step_size`` has the say over its own ``lr``
    (groups of other rates keep their ratio to the first group's); where no ``step_size`` is given, it is that ``lr``.
    The direction is ``u = (x - x_after) / eta``, and 0 where eta is 0, also
    of those that go on then (ASGD, Rprop). Its ``state_dict`` is a part of states. Agents'
    steps are not stacked. It takes a copy of the parameters in memory, besides its own state.
    """

    elementwise: ClassVar[bool] = False
    stackable: ClassVar[bool] = False
    has_feedback: ClassVar[bool] = False
    """Of an optimizer of unknown arithmetic no curvature says how it feeds back."""

    name: Literal["torch"] = "torch"
    optimizer: CallableOrPath
    """The class, such as ``torch.optim:Adafactor``, or a function that takes a list of parameters and returns such an
    optimizer, by import path or as a Python object. Muon takes matrices alone, so it needs a function."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Its further arguments, by their names. An lr among them counts where no step_size is given."""
    decay: Decay = "all"
    """What decays: ``all``, or ``matrices`` alone: of a class with weight_decay, the others get a group without."""

    @property
    def state_vectors(self) -> int:
        """The copy of the parameters; what the optimizer itself keeps is not known beforehand."""
        return 1

    def own_step_size(self) -> float:
        """Return the lr among the settings, or else the class's default.

        Raises:
            ValueError: it has none, or it is no number.

        """
        if "lr" in self.settings:
            return self._number(self.settings["lr"])
        try:
            kind = import_object(self.optimizer)
            parameter = inspect.signature(kind).parameters.get("lr")
        except (TypeError, ValueError):  # of what is written in C
            parameter = None
        if parameter is None or not isinstance(parameter.default, Real):
            raise ValueError(
                f"step_size: is required with optimizer.optimizer = {import_path(self.optimizer)!r}, which has no "
                "default lr; allowed is a number, or a curve over steps"
            )
        return float(parameter.default)

    @staticmethod
    def _number(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"optimizer.settings.lr = {value!r}: allowed is a number, or none and a step_size")
        return float(value)

    def start(self, weights: Tensor, parts: Parts = ()) -> Running:
        """Return the optimizer, made for tensors of these shapes."""
        return Running(self, weights, parts)

    def made(self, parameters: list[torch.nn.Parameter]) -> Optimizer:
        """Return the optimizer of these parameters.

        Raises:
            ValueError: it is none.

        """
        kind = import_object(self.optimizer)
        given: Any = parameters
        if self.decay == "matrices":
            if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
                raise ValueError("decay = 'matrices': allowed with a function is all; it makes its own groups")
            groups = [[p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim < 2]]
            more: list[dict[str, Any]] = [{}, {"weight_decay": 0.0}]
            given = [{"params": group, **own} for group, own in zip(groups, more, strict=True) if group]
        found = kind(given, **self.settings)
        if not isinstance(found, Optimizer):
            raise ValueError(f"makes a {type(found).__name__}; allowed is a torch.optim.Optimizer")
        if self.decay == "matrices" and "weight_decay" not in found.defaults:
            raise ValueError("decay = 'matrices': allowed without a weight_decay is all")
        return found

    def direction(
        self,
        state: Running,
        weights: Tensor,
        gradient: Tensor,
        parts: Parts = (),
        moving: Tensor | None = None,
        step_size: float = 0.0,
    ) -> tuple[Running, Tensor]:
        """Return the state, which goes on, and the direction, as ``LocalOptimizer.direction`` says."""
        reached = [True] * len(parts) if moving is None else of_parts(moving, parts).tolist()
        after = state.step(weights, gradient, reached, step_size)
        return state, (weights - after) / step_size if step_size else torch.zeros_like(weights)

    def check(self, weights: Tensor, parts: Parts) -> None:
        """Raise ``ValueError`` where the optimizer cannot be made of these tensors, or cannot step them."""
        place = f"optimizer.optimizer = {import_path(self.optimizer)!r}"
        try:
            running = self.start(weights, parts)
            if _needs_closure(running.optimizer):
                raise ValueError("its step needs a closure, to compute losses anew; allowed are optimizers without")
            for sign in (1.0, -1.0):
                after = running.step(weights, torch.full_like(weights, sign * 1e-3), [True] * len(parts), 1e-3)
                running.check_parameters()
            if not after.isfinite().all():
                raise ValueError("a step leads to weights that are not finite, for finite gradients")
            saved = self.saved(running)
            if strange := _strange(saved):
                raise ValueError(
                    f"its state_dict has a {strange}; allowed are tensors, numbers and texts, in lists and mappings"
                )
            if not is_same(self.saved(self.restored(self.start(weights, parts), saved)), saved):
                raise ValueError("its load_state_dict does not give back what its state_dict had")
        except ValueError as error:
            raise ValueError(f"{place}: {one_line(error, _LONGEST)}") from error
        except Exception as error:  # the optimizer's own code
            told = f"{type(error).__name__}: {one_line(error, _LONGEST)}"
            raise ValueError(f"{place}: cannot step the model's parameters ({told})") from error

    def saved(self, state: Running) -> dict[str, Any]:
        """Return the optimizer's ``state_dict``, of which steps to come change nothing."""
        return copy.deepcopy(state.optimizer.state_dict())

    def restored(self, state: Running, saved: dict[str, Any]) -> Running:
        """Return the running optimizer, with what was saved."""
        state.optimizer.load_state_dict(copy.deepcopy(saved))
        return state


def _needs_closure(optimizer: Optimizer) -> bool:
    parameter = inspect.signature(optimizer.step).parameters.get("closure")
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _strange(tree: Any) -> str:
    """Return the type of something in a tree that no file of states has; empty where there is none."""
    if isinstance(tree, dict):
        return next((found for pair in tree.items() for part in pair if (found := _strange(part))), "")
    if isinstance(tree, list | tuple):
        return next((found for part in tree if (found := _strange(part))), "")
    is_plain = tree is None or isinstance(tree, Tensor | int | float | str)
    return "" if is_plain else type(tree).__name__
