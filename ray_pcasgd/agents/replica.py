"""A network whose trained parameters and mixed buffers are views of flat vectors, whatever its own code puts there."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from ray_pcasgd.agents.local_optimizer import Parts, parts_of
from ray_pcasgd.agents.module_tensors import (
    Home,
    TensorsChangedError,
    changed,
    dense,
    digest,
    form_of,
    into_training,
    named_tensors,
    places_of,
    public_name,
    require_apart,
    with_data,
)
from ray_pcasgd.tasks.precision import require_trainable

MixedBuffers = Literal["statistics", "all", "none"] | tuple[str, ...]
"""Which floating-point buffers are averaged: see ``Config.mixed_buffers``."""

_STATISTICS = ("running_mean", "running_var")

_GROUP = 1 << 18
"""Numbers that are copied at once: as fast as all at once, and no more than a megabyte is there twice."""
_GROUP_ON_GPU = 1 << 24
"""The same on a GPU, where each copy that is started costs time of its own: no more than 64 MB are there twice."""


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

    ``weights`` (D,) and ``buffers`` (F,) are the storage of the module's own tensors: writing to them in place changes
    the module. Frozen parameters are no part of ``weights``: they are neither decayed nor sent. Of the buffers, those
    are part of ``buffers`` that agents average (``mixed``); all others, of any type, are the agent's own: ``local``.

    The module is put into training mode, but for layers that its maker has put into evaluation mode. **Choice**: where
    the whole module is in that mode, no layer was singled out, and all of it trains.

    Raises:
        ValueError: a trained parameter or a mixed buffer is not float32 or not dense, or ``mixed`` names no buffer.

    """

    def __init__(self, module: nn.Module, device: torch.device, mixed: MixedBuffers = "statistics") -> None:
        self.module = module.to(device)
        self.device = device
        into_training(self.module)
        parameters = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        lazy = [name for name, tensor in named_tensors(self.module).items() if is_lazy(tensor)]
        if lazy:
            raise ValueError(f"task.model: {lazy[0]} has no shape yet, after a first forward pass in evaluation mode")
        require_trainable({public_name(name): tensor for name, tensor in parameters.items()})
        require_apart(self.module)
        self.layout, self.weights = _flatten(parameters, device)
        self.sizes = [slot.shape.numel() for slot in self.layout]
        """Numbers of each parameter tensor, in the order of the flat vector."""
        self.parts: Parts = parts_of([slot.shape for slot in self.layout])
        """What of ``weights`` is which tensor's, for optimizers."""
        places = places_of(self.module)
        self._homes = [
            Home(tensor, _view(self.weights, slot), places.pop(id(tensor)))
            for slot, tensor in zip(self.layout, parameters.values(), strict=True)
        ]
        self._trained = list(parameters.values())
        self._groups = _groups_of(self._trained, _GROUP if device.type == "cpu" else _GROUP_ON_GPU)
        buffers = _mixed_buffers(self.module, mixed)
        require_trainable({public_name(name): tensor for name, tensor in buffers.items()})
        self.buffer_layout, self.buffers = _flatten(buffers, device)
        self._homes += [
            Home(tensor, _view(self.buffers, slot), places.pop(id(tensor)))
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
        self._digests = {place.name: digest(tensor) for place, tensor in self._frozen}
        self._first: dict[str, Tensor] = {}
        """Of frozen parameters that were loaded: what they were before."""
        self._own = [(place, tensor) for place, tensor in left if not isinstance(tensor, nn.Parameter)]
        self._forms = {place.name: form_of(tensor) for place, tensor in left if tensor is not None}

    @property
    def forms(self) -> dict[str, tuple[torch.Size, torch.dtype] | None]:
        """Shape and type of each tensor that ``local`` may return; ``None`` for a buffer that has none yet."""
        places = [*self._own, *self._frozen]
        forms = {place.name: self._forms.get(place.name) for place, _ in places}
        return {name: None if form is None else form[:2] for name, form in forms.items()}

    def load(self, weights: Tensor, buffers: Tensor) -> None:
        """Copy flat weights (D,) and buffers (F,) into the module."""
        self.weights.copy_(weights)
        self.buffers.copy_(buffers)

    @property
    def has_frozen(self) -> bool:
        """Whether the module has parameters that are not trained."""
        return bool(self._frozen)

    def forget_weights(self) -> None:
        """Let the trained parameters be zeros that take up no memory; only a copy of the module is of use then."""
        for parameter in self._trained:
            parameter.data = parameter.new_zeros(()).expand(parameter.shape)

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters, in the order of the flat vector."""
        return list(self._trained)

    def forget_gradients(self) -> None:
        """Make ready for a backward pass."""
        for parameter in self._trained:
            parameter.grad = None

    def take_gradient(self) -> tuple[Tensor, Tensor | None]:
        """Return what backward passes have left, shape (D,), and which parameter tensors (T,) got any, if not all."""
        reached = [parameter.grad is not None for parameter in self._trained]
        flat = torch.empty_like(self.weights)
        # Group by group: gradients are free as soon as they are copied, and both are never there as a whole.
        for group, place in self._groups:
            torch.cat([_taken_gradient(parameter) for parameter in group], out=flat[place])
        return flat, None if all(reached) else torch.tensor(reached, device=self.device)

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
                form = self._forms.setdefault(place.name, form_of(found))
                if form_of(found) != form:
                    raise TensorsChangedError(changed(place.name, form, found))
                if found.requires_grad:
                    place.holder[place.key] = found.detach()
            elif place.name in self._forms:
                raise TensorsChangedError(changed(place.name, self._forms[place.name], found))
        for place, _ in self._frozen:
            found, form = place.tensor, self._forms[place.name]
            if not isinstance(found, Tensor) or form_of(found) != form:
                raise TensorsChangedError(changed(place.name, form, found))
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
        now = {place.name: place.holder for group in places_of(self.module).values() for place in group}
        for name in sorted(known.keys() | now.keys()):
            if name in known and name in now and known[name] is now[name]:
                continue
            what = "is in a new layer" if name in known and name in now else "has come" if name in now else "is gone"
            raise TensorsChangedError(
                f"task.model: {public_name(name)} {what} after a forward pass; allowed are the layers and tensors that "
                "it was made with, and buffers that were registered as None"
            )

    def local(self, all_frozen: bool = False) -> dict[str, Tensor]:
        """Return the agent's own tensors as they are: buffers not averaged, and frozen parameters that changed.

        Frozen parameters change where the model's own code moves them, as a momentum encoder's; on request all of them
        are returned.
        """
        buffers = {place.name: place.tensor for place, _ in self._own if place.tensor is not None}
        frozen = {place.name: place.tensor.detach() for place, _ in self._frozen}
        return buffers | {n: t for n, t in frozen.items() if all_frozen or digest(t) != self._digests[n]}

    def copy_of_local(self) -> dict[str, Tensor]:
        """Return copies of ``local``."""
        return {name: tensor.clone() for name, tensor in self.local().items()}

    def load_local(self, tensors: Mapping[str, Tensor]) -> None:
        """Make the agent's own tensors those that ``local`` returned; others are as they were made.

        The module's first tensors get new storage: what it has put in their place may share that of its weights.
        """
        for place, tensor in self._own:
            value = tensors.get(place.name)
            if value is None:
                self._forms.pop(place.name, None)
                place.holder[place.key] = None
            else:
                value = value.to(self.device).clone()
                self._forms.setdefault(place.name, form_of(value))
                place.holder[place.key] = value if tensor is None else with_data(tensor, value)
        for place, tensor in self._frozen:
            if place.name in tensors:
                self._first.setdefault(place.name, tensor.detach().clone())
            value = tensors.get(place.name, self._first.get(place.name))
            if value is not None:
                place.holder[place.key] = with_data(tensor, value.to(self.device).clone())

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

    def state_dict(self, weights: Tensor, buffers: Tensor, local: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return a state dict that plain PyTorch loads, with the given values in place of the module's own.

        What a module adds to it as extra state need not be a tensor.
        """
        with self.undisturbed():
            self.load(weights, buffers)
            self.load_local(local)
            return {public_name(name): _kept(value) for name, value in self.module.state_dict().items()}

    def _bring_home(self, homes: Sequence[Home]) -> None:
        """Copy what the module has in the place of some of its tensors to where these lie."""
        known = {id(home.tensor): home for home in self._homes}
        # All are copied before one is written: they may be each other's memory.
        values = [home.found(known).detach().clone() for home in homes]
        for home, value in zip(homes, values, strict=True):
            home.view.copy_(value)
            home.bind()


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


def _groups_of(parameters: Sequence[nn.Parameter], most: int) -> list[tuple[list[nn.Parameter], slice]]:
    """Return consecutive parameters in groups of ``most`` numbers, or of one, each with its place in the vector."""
    groups: list[tuple[list[nn.Parameter], slice]] = []
    end = 0
    for parameter in parameters:
        size = parameter.numel()
        if groups and end + size - groups[-1][1].start <= most:
            group, place = groups.pop()
            groups.append(([*group, parameter], slice(place.start, end + size)))
        else:
            groups.append(([parameter], slice(end, end + size)))
        end += size
    return groups


def _taken_gradient(parameter: nn.Parameter) -> Tensor:
    """Return a parameter's gradient, flat, which the parameter then has no more; zeros where there is none."""
    gradient, parameter.grad = parameter.grad, None
    return parameter.new_zeros(parameter.numel()) if gradient is None else dense(gradient).reshape(-1)


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


def _kept(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
