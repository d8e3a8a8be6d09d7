"""A network whose parameters, gradients and floating-point buffers are views of flat vectors."""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Slot(NamedTuple):
    """Where one named tensor lies in a flat vector."""

    name: str
    offset: int
    shape: torch.Size


def unflatten(flat: Tensor, layout: tuple[Slot, ...]) -> dict[str, Tensor]:
    """Return the named views of a flat vector of shape (D,)."""
    return {name: flat[offset : offset + shape.numel()].view(shape) for name, offset, shape in layout}


class Replica:
    """One agent's copy of the network.

    ``weights`` (D,), ``gradient`` (D,) and ``buffers`` (F,) are the storage of the module's own tensors: writing to
    them in place changes the module, and a backward pass adds to ``gradient``. Frozen parameters are no part of
    ``weights``: they stay as they are, neither decayed nor sent.

    Raises:
        ValueError: a trained parameter or a floating-point buffer is not float32.

    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module = module.to(device)
        self.device = device
        parameters = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        _require_float32(parameters)
        self.layout, self.weights = _flatten(parameters, device)
        self.gradient = torch.zeros_like(self.weights)
        for slot in self.layout:
            parameter = parameters[slot.name]
            parameter.data = _view(self.weights, slot)
            parameter.grad = _view(self.gradient, slot)
        floating = {name: b for name, b in self.module.named_buffers() if b.is_floating_point()}
        _require_float32(floating)
        self.buffer_layout, self.buffers = _flatten(floating, device)
        for slot in self.buffer_layout:
            floating[slot.name].data = _view(self.buffers, slot)
        self.integer_buffers = {name: b for name, b in self.module.named_buffers() if not b.is_floating_point()}

    @property
    def sizes(self) -> list[int]:
        """Numbers of each parameter tensor, in the order of the flat vector."""
        return [slot.shape.numel() for slot in self.layout]

    def load(self, weights: Tensor, buffers: Tensor) -> None:
        """Copy flat weights (D,) and buffers (F,) into the module."""
        self.weights.copy_(weights)
        self.buffers.copy_(buffers)

    def named(self, weights: Tensor, buffers: Tensor) -> dict[str, Tensor]:
        """Return the named tensors of flat weights (D,) and buffers (F,), for ``torch.func.functional_call``."""
        return unflatten(weights, self.layout) | unflatten(buffers, self.buffer_layout)

    def state_dict(self, weights: Tensor, buffers: Tensor, integer_buffers: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return a state dict that plain PyTorch loads, with the given flat values in place of the module's own.

        What a module adds to it as extra state need not be a tensor.
        """
        named = self.named(weights, buffers) | dict(integer_buffers)
        own = [*self.module.named_parameters(), *self.module.named_buffers()]
        first_names = {t.data_ptr(): name for name, t in own if _has_memory(t)}

        def value(name: str, found: Any) -> Any:
            # Tied tensors are named once; frozen ones are the module's own.
            if name not in named and _has_memory(found):
                name = first_names.get(found.data_ptr(), name)
            found = named.get(name, found)
            return found.detach().cpu().clone() if isinstance(found, Tensor) else copy.deepcopy(found)

        return {name: value(name, found) for name, found in self.module.state_dict().items()}


def _has_memory(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and value.numel() > 0


def _view(flat: Tensor, slot: Slot) -> Tensor:
    return flat[slot.offset : slot.offset + slot.shape.numel()].view(slot.shape)


def _flatten(tensors: Mapping[str, Tensor], device: torch.device) -> tuple[tuple[Slot, ...], Tensor]:
    layout = []
    offset = 0
    for name, tensor in tensors.items():
        layout.append(Slot(name, offset, tensor.shape))
        offset += tensor.numel()
    flat = torch.empty(offset, device=device)
    for slot in layout:
        _view(flat, slot).copy_(tensors[slot.name].detach())
    return tuple(layout), flat


def _require_float32(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"task.model: parameter or buffer {name} is {tensor.dtype}; allowed is torch.float32")
