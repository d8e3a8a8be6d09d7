"""Many agents' losses as one: by batched products of matrices where a network consists of them, else under vmap."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from ray_pcasgd.agents.curvature import twice_differentiable
from ray_pcasgd.agents.replica import Replica
from ray_pcasgd.base import numerics
from ray_pcasgd.tasks.measures import CrossEntropy
from ray_pcasgd.tasks.objective import Loss

Losses = Callable[[Sequence[Tensor], Tensor, Tensor], Tensor]
"""The losses, shape (B,), of B networks: their parameter tensors, each of shape (B, ...), inputs and targets."""

_ELEMENTWISE = (nn.ReLU, nn.Tanh, nn.GELU)
_KNOWN = (nn.Flatten, nn.Linear, *_ELEMENTWISE)


class StackedNetworks:
    """The networks of many agents, all made like one replica, which has parameters alone and no buffers.

    Every agent's numbers depend on its own alone, so gradients and curvatures of all are those of the losses' sum.
    """

    def __init__(self, replica: Replica, loss: Loss) -> None:
        self._replica = replica
        self._loss = loss
        self._shapes = [slot.shape for slot in replica.layout]
        self._losses: Losses = self._multiplied if _is_known(replica) else self._mapped

    def gradients(self, weights: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses (B,) at weights (B, D), of inputs (B, n, ...), and their gradients (B, D)."""
        leaves = self._leaves(weights)
        with torch.enable_grad():
            losses = self._losses(leaves, inputs, targets)
            found = torch.autograd.grad(losses.sum(), leaves, allow_unused=True)
        return losses.detach(), _flat(found, leaves)

    def curvatures(self, weights: Tensor, inputs: Tensor, targets: Tensor, directions: Tensor) -> list[float | None]:
        """Return ``v' H v / v' v`` of each agent along its direction v, of shape (B, D); see ``curvature_along``."""
        lengths = numerics.norms(directions)
        units = directions / lengths[:, None]
        leaves = self._leaves(weights)
        with torch.enable_grad(), twice_differentiable():
            losses = self._losses(leaves, inputs, targets)
            gradients = torch.autograd.grad(losses.sum(), leaves, create_graph=True, allow_unused=True)
            along = [part.view_as(leaf) for part, leaf in zip(self._parts(units), leaves, strict=True)]
            known = [(g, part) for g, part in zip(gradients, along, strict=True) if g is not None and g.requires_grad]
            images: Sequence[Tensor | None] = [None] * len(leaves)
            if known:
                images = _products(known, leaves)
        found = torch.func.vmap(numerics.inner)(units, _flat(images, leaves))
        is_known = found.isfinite() & (lengths > 0) & lengths.isfinite()
        return [value if known else None for value, known in zip(found.tolist(), is_known.tolist(), strict=True)]

    def _parts(self, flat: Tensor) -> tuple[Tensor, ...]:
        return torch.split(flat, [shape.numel() for shape in self._shapes], 1)

    def _leaves(self, weights: Tensor) -> list[Tensor]:
        """Return the parameter tensors of shapes (B, ...): views, to which gradients are taken one by one.

        Taken to the flat vectors, each tensor's gradient would be filled up with zeros to the length of them all.
        """
        return [
            part.view(-1, *shape).detach().requires_grad_()
            for part, shape in zip(self._parts(weights), self._shapes, strict=True)
        ]

    def _mapped(self, tensors: Sequence[Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses of any network that runs under vmap."""
        names = [slot.name for slot in self._replica.layout]

        def loss_of(tensors: Sequence[Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
            named = dict(zip(names, tensors, strict=True))
            return self._loss(torch.func.functional_call(self._replica.module, named, (inputs,)), targets)

        losses: Tensor = torch.func.vmap(loss_of)(tuple(tensors), inputs, targets)
        return losses

    def _multiplied(self, tensors: Sequence[Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses of perceptrons: each layer of all agents is one batched product.

        Samples come last between the layers, (B, width, n): so gradients come out in the order of the parameters.
        """
        module = self._replica.module
        assert isinstance(module, nn.Sequential)
        left, values = iter(tensors), inputs.flatten(2).mT
        for before, layer in pairwise(module):
            if isinstance(layer, nn.Linear):
                weights = next(left)
                has_bias = layer.bias is not None
                values = torch.baddbmm(next(left)[:, :, None], weights, values) if has_bias else weights.bmm(values)
            elif isinstance(layer, nn.ReLU) and isinstance(before, nn.Linear):
                values = values.relu_()  # in place: no backward pass asks for a product itself
            elif not isinstance(layer, nn.Flatten):
                values = layer(values)
        return _losses_of(self._loss, values, targets)


def _products(known: Sequence[tuple[Tensor, Tensor]], leaves: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Return the products of the Hessians with vectors; ``known`` pairs each gradient with its part of the vector."""
    gradients, along = zip(*known, strict=True)
    return torch.autograd.grad(gradients, leaves, along, allow_unused=True)


def _flat(parts: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> Tensor:
    """Return vectors (B, D) of parts like the leaves; zeros where there is none."""
    each = [torch.zeros_like(leaf) if part is None else part for part, leaf in zip(parts, leaves, strict=True)]
    return torch.cat([part.flatten(1) for part in each], 1)


def _losses_of(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return each agent's loss, shape (B,), for outputs (B, num_outputs, n) and targets (B, n, ...)."""
    if type(loss) is not CrossEntropy or targets.ndim != 2 or targets.is_floating_point():
        losses: Tensor = torch.func.vmap(loss)(outputs.mT, targets)
        return losses
    # It takes classes in the second place, too.
    terms = functional.cross_entropy(
        outputs, targets, ignore_index=loss.ignored, reduction="none", label_smoothing=loss.label_smoothing
    )
    return terms.sum(1) / (targets != loss.ignored).sum(1)


def _is_known(replica: Replica) -> bool:
    """Return whether a network is a plain sequence of linear layers and of what acts on each number by itself."""
    module = replica.module
    if type(module) is not nn.Sequential or any(type(layer) not in _KNOWN for layer in module):
        return False
    flattens = [layer for layer in module if isinstance(layer, nn.Flatten)]
    if not flattens or module[0] is not flattens[0]:
        return False
    if any((layer.start_dim, layer.end_dim) != (1, -1) for layer in flattens):
        return False
    linear = [f"{place}.{name}" for place, layer in enumerate(module) for name, _ in layer.named_parameters()]
    return [slot.name for slot in replica.layout] == linear and not any(map(_has_hooks, module.modules()))


def _has_hooks(module: nn.Module) -> bool:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in names)
