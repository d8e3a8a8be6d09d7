"""A network whose trained parameters and mixed buffers are views of flat vectors, whatever its own code puts there."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

MixedBuffers = Literal["statistics", "all", "none"] | tuple[str, ...]
"""Which floating-point buffers are averaged: see ``Config.mixed_buffers``."""

_STATISTICS = ("running_mean", "running_var")


class TensorsChangedError(ValueError):
    """The module's own code has changed its set of tensors, or the form of one, which no run can follow."""


class Slot(NamedTuple):
    """Where one named tensor lies in a flat vector."""

    name: str
    offset: int
    shape: torch.Size


class _Place(NamedTuple):
    """Where a module holds one of its tensors; a tied one has several places."""

    name: str
    holder: dict[str, Any]
    key: str

    @property
    def tensor(self) -> Any:
        """What the module has there now."""
        # Not by get, which the tables of TorchScript's modules do not have.
        return self.holder[self.key] if self.key in self.holder else None  # noqa: SIM401


class _Home(NamedTuple):
    """A tensor whose storage is a part of a flat vector, and the places where the module must have it."""

    tensor: Tensor
    view: Tensor
    places: list[_Place]

    def found(self, known: Mapping[int, "_Home"]) -> Tensor:
        """Return what the module has in the place of the tensor, which is none of the ``known`` others."""
        first: Tensor = self.places[0].tensor
        names = " and ".join(public_name(place.name) for place in self.places)
        for place in self.places:
            found = place.tensor
            if not isinstance(found, Tensor) or _form(found) != _form(self.view):
                raise TensorsChangedError(_changed(place.name, _form(self.view), found))
            if found is not first:
                raise TensorsChangedError(
                    f"task.model: {names} were one tensor and are two after a forward pass; allowed is what stays one"
                )
        other = known.get(id(first), self)
        if other is not self:
            raise TensorsChangedError(
                f"task.model: {names} is the tensor that was {public_name(other.places[0].name)}, after a forward pass; "
                "allowed are new values in the place of old ones"
            )
        return first

    def bind(self) -> None:
        """Make the module have the tensor again, where it lies."""
        for place in self.places:
            place.holder[place.key] = _with_data(self.tensor, self.view)


def unflatten(flat: Tensor, layout: tuple[Slot, ...]) -> dict[str, Tensor]:
    """Return the named views of a flat vector of shape (D,)."""
    return {name: flat[offset : offset + shape.numel()].view(shape) for name, offset, shape in layout}


def public_name(name: str) -> str:
    """Return a tensor's name without what ``torch.compile`` puts around modules.

    >>> public_name("_orig_mod.layers.0._orig_mod.weight")
    'layers.0.weight'
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


class Replica:
    """One agent's copy of the network.

    ``weights`` (D,) and ``buffers`` (F,) are the storage of the module's own tensors: writing to them in place changes
    the module. Frozen parameters are no part of ``weights``: they are neither decayed nor sent. Of the buffers, those
    are part of ``buffers`` that agents average (``mixed``); all others, of any type, are the agent's own: ``local``.

    The module is put into training mode, but for layers that its maker has put into evaluation mode. **Choice**: where
    the whole module is in that mode, nothing was singled out, and all of it trains.

    Raises:
        ValueError: a trained parameter or a mixed buffer is not float32, or ``mixed`` names no buffer.

    """

    def __init__(self, module: nn.Module, device: torch.device, mixed: MixedBuffers = "statistics") -> None:
        self.module = module.to(device)
        self.device = device
        _into_training(self.module)
        parameters = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        lazy = [name for name, tensor in _named_tensors(self.module).items() if is_lazy(tensor)]
        if lazy:
            raise ValueError(f"task.model: {lazy[0]} has no shape yet, after a first forward pass in evaluation mode")
        _require_float32(parameters)
        _require_apart(self.module)
        self.layout, self.weights = _flatten(parameters, device)
        places = _places(self.module)
        self._homes = [
            _Home(tensor, _view(self.weights, slot), places.pop(id(tensor)))
            for slot, tensor in zip(self.layout, parameters.values(), strict=True)
        ]
        self._trained = list(parameters.values())
        buffers = _mixed_buffers(self.module, mixed)
        _require_float32(buffers)
        self.buffer_layout, self.buffers = _flatten(buffers, device)
        self._homes += [
            _Home(tensor, _view(self.buffers, slot), places.pop(id(tensor)))
            for slot, tensor in zip(self.buffer_layout, buffers.values(), strict=True)
        ]
        for home in self._homes:
            home.bind()
        self.forget_gradients()
        left = [(place, place.tensor) for group in places.values() for place in group]
        for place, tensor in left:
            if tensor is not None and tensor.layout is not torch.strided:
                raise ValueError(f"task.model: {public_name(place.name)} is {tensor.layout}; allowed are dense tensors")
        self._frozen = [(place, tensor) for place, tensor in left if isinstance(tensor, nn.Parameter)]
        self._digests = {place.name: _digest(tensor) for place, tensor in self._frozen}
        self._first: dict[str, Tensor] = {}
        """Of frozen parameters that were loaded: what they were before."""
        self._own = [(place, tensor) for place, tensor in left if not isinstance(tensor, nn.Parameter)]
        self._forms = {place.name: _form(tensor) for place, tensor in left if tensor is not None}

    @property
    def forms(self) -> dict[str, tuple[torch.Size, torch.dtype] | None]:
        """Shape and type of each tensor that ``local`` may return; nothing for a buffer that has none yet."""
        places = [*self._own, *self._frozen]
        forms = {place.name: self._forms.get(place.name) for place, _ in places}
        return {name: None if form is None else form[:2] for name, form in forms.items()}

    @property
    def sizes(self) -> list[int]:
        """Numbers of each parameter tensor, in the order of the flat vector."""
        return [slot.shape.numel() for slot in self.layout]

    def load(self, weights: Tensor, buffers: Tensor) -> None:
        """Copy flat weights (D,) and buffers (F,) into the module."""
        self.weights.copy_(weights)
        self.buffers.copy_(buffers)

    def forget_gradients(self) -> None:
        """Make ready for a backward pass."""
        for parameter in self._trained:
            parameter.grad = None

    def take_gradient(self) -> tuple[Tensor, Tensor | None]:
        """Return what backward passes have left, shape (D,), and which parameter tensors (T,) got any, if not all."""
        gradients = [parameter.grad for parameter in self._trained]
        self.forget_gradients()
        parts = [
            torch.zeros(slot.shape.numel(), device=self.device) if gradient is None else _dense(gradient).reshape(-1)
            for gradient, slot in zip(gradients, self.layout, strict=True)
        ]
        flat = torch.cat(parts) if parts else torch.zeros_like(self.weights)
        if all(gradient is not None for gradient in gradients):
            return flat, None
        return flat, torch.tensor([gradient is not None for gradient in gradients], device=self.device)

    def take_in(self) -> None:
        """Take in the tensors that the module's code has put into the place of its own.

        To be called after each forward pass: what is not in the flat vectors is not sent, not saved and not restored.

        Raises:
            TensorsChangedError: a tensor is gone or another one has come, or shape, type or device have changed.

        """
        strangers = []
        for home in self._homes:
            for place in home.places:
                found = place.tensor
                if found is not home.tensor or not found.is_set_to(home.view):
                    strangers.append(home)
                    break
            if home.tensor.requires_grad and not home.tensor.is_leaf:
                home.tensor.detach_()  # a buffer that was changed in place by what depends on the weights
        if strangers:
            self._bring_home(strangers)
        for place, _ in self._own:
            found = place.tensor
            if isinstance(found, Tensor):
                form = self._forms.setdefault(place.name, _form(found))
                if _form(found) != form:
                    raise TensorsChangedError(_changed(place.name, form, found))
                if found.requires_grad:
                    place.holder[place.key] = found.detach()
            elif place.name in self._forms:
                raise TensorsChangedError(_changed(place.name, self._forms[place.name], found))
        for place, _ in self._frozen:
            found, form = place.tensor, self._forms[place.name]
            if not isinstance(found, Tensor) or _form(found) != form:
                raise TensorsChangedError(_changed(place.name, form, found))
            if found.requires_grad:
                raise TensorsChangedError(
                    f"task.model: {public_name(place.name)}, which was frozen at the start, is trained after a forward "
                    "pass; allowed is what stays frozen"
                )

    def check_names(self) -> None:
        """Raise ``TensorsChangedError`` where layers or tensors have come or gone since the start.

        It walks through the whole module, which ``take_in`` has no time for.
        """
        known = {place.name: place.holder for home in self._homes for place in home.places}
        known |= {place.name: place.holder for place, _ in [*self._frozen, *self._own]}
        now = {place.name: place.holder for group in _places(self.module).values() for place in group}
        for name in sorted(known.keys() | now.keys()):
            if name in known and name in now and known[name] is now[name]:
                continue
            what = "is in a new layer" if name in known and name in now else "has come" if name in now else "is gone"
            raise TensorsChangedError(
                f"task.model: {public_name(name)} {what} after a forward pass; allowed are the layers and tensors that "
                "it was made with, and buffers that were registered as None"
            )

    def local(self, all_frozen: bool = False) -> dict[str, Tensor]:
        """Return the agent's own tensors as they are: buffers that nobody averages, and frozen parameters that changed.

        Frozen parameters change where the model's own code moves them, as a momentum encoder's; on request all of them
        are returned.
        """
        buffers = {place.name: place.tensor for place, _ in self._own if place.tensor is not None}
        frozen = {place.name: place.tensor.detach() for place, _ in self._frozen}
        return buffers | {n: t for n, t in frozen.items() if all_frozen or _digest(t) != self._digests[n]}

    def copy_of_local(self) -> dict[str, Tensor]:
        """Return copies of ``local``."""
        return {name: tensor.clone() for name, tensor in self.local().items()}

    def load_local(self, tensors: Mapping[str, Tensor]) -> None:
        """Make the agent's own tensors those that ``local`` returned; what is not among them is as it was made.

        The module's first tensors get new storage: what it has put in their place may share that of its weights.
        """
        for place, tensor in self._own:
            value = tensors.get(place.name)
            if value is None:
                self._forms.pop(place.name, None)
                place.holder[place.key] = None
            else:
                value = value.to(self.device).clone()
                self._forms.setdefault(place.name, _form(value))
                place.holder[place.key] = value if tensor is None else _with_data(tensor, value)
        for place, tensor in self._frozen:
            if place.name in tensors:
                self._first.setdefault(place.name, tensor.detach().clone())
            value = tensors.get(place.name, self._first.get(place.name))
            if value is not None:
                place.holder[place.key] = _with_data(tensor, value.to(self.device).clone())

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Let the module run, and make it what it was before: neither evaluations nor probes leave a trace."""
        weights, buffers, local = self.weights.clone(), self.buffers.clone(), self.copy_of_local()
        try:
            yield
        finally:
            for home in self._homes:
                home.bind()
            self.load(weights, buffers)
            self.load_local(local)

    def named(self, weights: Tensor, buffers: Tensor) -> dict[str, Tensor]:
        """Return the named tensors of flat weights (D,) and buffers (F,), for ``torch.func.functional_call``."""
        return unflatten(weights, self.layout) | unflatten(buffers, self.buffer_layout)

    def state_dict(self, weights: Tensor, buffers: Tensor, local: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a state dict that plain PyTorch loads, with the given values in place of the module's own."""
        with self.undisturbed():
            self.load(weights, buffers)
            self.load_local(local)
            state = self.module.state_dict()
            return {public_name(name): tensor.detach().cpu().clone() for name, tensor in state.items()}

    def _bring_home(self, homes: Sequence[_Home]) -> None:
        """Copy what the module has in the place of some of its tensors to where these lie."""
        known = {id(home.tensor): home for home in self._homes}
        # All are copied before one is written: they may be each other's memory.
        values = [home.found(known).detach().clone() for home in homes]
        for home, value in zip(homes, values, strict=True):
            home.view.copy_(value)
            home.bind()


def _into_training(module: nn.Module) -> None:
    singled_out = [part for part in module.modules() if not part.training] if module.training else []
    module.train()  # the module's own, which may keep layers as they are
    for part in singled_out:
        part.training = False


def _places(module: nn.Module) -> dict[int, list[_Place]]:
    """Return where a module holds its tensors, by their ids; buffers that are None have an entry each."""
    places: dict[int, list[_Place]] = {}
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
                    _Place(name, holder, key)
                )
    return places


def _named_tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _mixed_buffers(module: nn.Module, mixed: MixedBuffers) -> dict[str, Tensor]:
    """Return the buffers that agents average, by their names.

    Raises:
        ValueError: a name or pattern matches no floating-point buffer.

    """
    floating = {name: buffer for name, buffer in module.named_buffers() if buffer.is_floating_point()}
    statistics = {
        id(getattr(part, name))
        for part in module.modules()
        # A layer in evaluation mode keeps its statistics, the same for all agents.
        if isinstance(part, _NormBase) and part.training
        for name in _STATISTICS
    }
    patterns = (mixed,) if isinstance(mixed, str) else mixed
    chosen = set()
    for pattern in patterns:
        matches = {
            name
            for name, buffer in floating.items()
            if pattern == "all"
            or (pattern == "statistics" and id(buffer) in statistics)
            or fnmatchcase(public_name(name), pattern)
        }
        if not matches and pattern not in ("statistics", "all", "none"):
            names = ", ".join(map(public_name, floating)) or "none"
            raise ValueError(
                f"mixed_buffers: {pattern!r} matches no floating-point buffer of the model; it has {names}"
            )
        chosen |= matches
    return {name: buffer for name, buffer in floating.items() if name in chosen}


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
            raise ValueError(
                f"task.model: parameter or buffer {public_name(name)} is {tensor.dtype}; allowed is torch.float32"
            )


def _require_apart(module: nn.Module) -> None:
    """Raise ``ValueError`` where a trained parameter shares memory with another tensor without being it."""
    tensors = {n: t for n, t in _named_tensors(module).items() if t.numel() and t.layout is torch.strided}
    spans = sorted((t.data_ptr(), t.data_ptr() + t.nbytes, name, t.requires_grad) for name, t in tensors.items())
    for (_, end, name, trained), (start, _, other, other_trained) in itertools.pairwise(spans):
        if start < end and (trained or other_trained):
            raise ValueError(
                f"task.model: {public_name(name)} and {public_name(other)} share memory; allowed is one tensor in both "
                "places, or a copy"
            )


def _form(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def _changed(name: str, form: Any, found: Any) -> str:
    """Say what has become of a tensor."""
    is_now = f"{found.dtype} of shape {tuple(found.shape)} on {found.device}" if isinstance(found, Tensor) else "gone"
    shape, dtype, device = form
    return (
        f"task.model: {public_name(name)} is {is_now} after a forward pass; allowed is what it was: {dtype} of shape "
        f"{tuple(shape)} on {device}"
    )


def _dense(gradient: Tensor) -> Tensor:
    return gradient if gradient.layout is torch.strided else gradient.to_dense()


def _with_data(tensor: Tensor, data: Tensor) -> Tensor:
    tensor.data = data
    return tensor


def _digest(tensor: Tensor) -> int:
    """Return a number that is another one where the tensor is."""
    data = tensor.detach()
    if not data.numel():
        return 0
    if data.is_complex():
        data = torch.view_as_real(data)
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[data.element_size()]
    return int(data.contiguous().view(integers).sum(dtype=torch.int64))
