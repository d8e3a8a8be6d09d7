"""Where a module holds its tensors, and what its own code may do with them."""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class TensorsChangedError(ValueError):
    """The module's own code has changed its set of tensors, or the form of one, which no run can follow."""


def public_name(name: str) -> str:
    """Return a tensor's name without what ``torch.compile`` puts around modules.

    >>> public_name("_orig_mod.layers.0._orig_mod.weight")
    'layers.0.weight'
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


class Place(NamedTuple):
    """Where a module holds one of its tensors; a tied one has several places."""

    name: str
    holder: dict[str, Any]
    key: str

    @property
    def tensor(self) -> Any:
        """What the module has there now."""
        # Not by get, which the tables of TorchScript's modules do not have.
        return self.holder[self.key] if self.key in self.holder else None  # noqa: SIM401


class Home(NamedTuple):
    """A tensor whose storage is a part of a flat vector, and the places where the module must have it."""

    tensor: Tensor
    view: Tensor
    places: list[Place]

    def found(self, known: Mapping[int, "Home"]) -> Tensor:
        """Return what the module has in the place of the tensor, which must not be one of the ``known`` others."""
        first: Tensor = self.places[0].tensor
        names = " and ".join(public_name(place.name) for place in self.places)
        for place in self.places:
            found = place.tensor
            if not isinstance(found, Tensor) or form_of(found) != form_of(self.view):
                raise TensorsChangedError(changed(place.name, form_of(self.view), found))
            if found is not first:
                raise TensorsChangedError(
                    f"task.model: {names} were one tensor and are two after a forward pass; allowed is what stays one"
                )
        other = known.get(id(first), self)
        if other is not self:
            raise TensorsChangedError(
                f"task.model: {names} is the tensor that was {public_name(other.places[0].name)} before a forward "
                "pass; allowed are new values in the place of old ones"
            )
        return first

    def bind(self) -> None:
        """Make the module have the tensor again, where it lies."""
        for place in self.places:
            place.holder[place.key] = with_data(self.tensor, self.view)


def places_of(module: nn.Module) -> dict[int, list[Place]]:
    """Return where a module holds its tensors, by their ids; buffers that are None have an entry each."""
    places: dict[int, list[Place]] = {}
    seen: set[int] = set()
    for prefix, part in module.named_modules():
        for holder in (part._parameters, part._buffers):
            if id(holder) in seen:
                continue  # torch.compile's wrapper has the very tables of what it wraps
            seen.add(id(holder))
            for key, tensor in holder.items():
                name = f"{prefix}.{key}" if prefix else key
                if tensor is None and holder is part._parameters:
                    continue
                places.setdefault(id(tensor) if tensor is not None else -len(places) - 1, []).append(
                    Place(name, holder, key)
                )
    return places


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's parameters and buffers, each once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def into_training(module: nn.Module) -> None:
    """Put a module into training mode, but for what was singled out by being in evaluation mode alone."""
    singled_out = [part for part in module.modules() if not part.training] if module.training else []
    module.train()  # the module's own, which may keep layers as they are
    for part in singled_out:
        part.training = False


def require_apart(module: nn.Module) -> None:
    """Raise ``ValueError`` where a trained parameter shares memory with another tensor without being it."""
    tensors = {n: t for n, t in named_tensors(module).items() if t.numel() and t.layout is torch.strided}
    spans = sorted((t.data_ptr(), t.data_ptr() + t.nbytes, name, t.requires_grad) for name, t in tensors.items())
    for (_, end, name, trained), (start, _, other, other_trained) in itertools.pairwise(spans):
        if start < end and (trained or other_trained):
            raise ValueError(
                f"task.model: {public_name(name)} and {public_name(other)} share memory; allowed is one tensor in both "
                "places, or a copy"
            )


def form_of(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    """Return what of a tensor stays the same while a model trains."""
    return tensor.shape, tensor.dtype, tensor.device


def changed(name: str, form: Any, found: Any) -> str:
    """Say what has become of a tensor."""
    is_now = f"{found.dtype} of shape {tuple(found.shape)} on {found.device}" if isinstance(found, Tensor) else "gone"
    shape, dtype, device = form
    return (
        f"task.model: {public_name(name)} is {is_now} after a forward pass; allowed is what it was: {dtype} of shape "
        f"{tuple(shape)} on {device}"
    )


def with_data(tensor: Tensor, data: Tensor) -> Tensor:
    """Return a tensor, now with other memory."""
    tensor.data = data
    return tensor


def dense(gradient: Tensor) -> Tensor:
    """Return a gradient as a dense tensor: those of some embeddings are sparse."""
    return gradient if gradient.layout is torch.strided else gradient.to_dense()


def digest(tensor: Tensor) -> int:
    """Return a number that is another one where the tensor is."""
    data = tensor.detach()
    if not data.numel():
        return 0
    if data.is_complex():
        data = torch.view_as_real(data)
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[data.element_size()]
    return int(data.contiguous().view(integers).sum(dtype=torch.int64))
