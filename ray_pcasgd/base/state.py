"""The state of a running run, as a file: everything that the steps to come depend on."""

import contextlib
import io
import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch.utils._pytree import tree_leaves, tree_structure, tree_unflatten

from ray_pcasgd.base.own_files import write_whole
from ray_pcasgd.records import Event, Read, Row, RowKind, Snapshot

State = dict[str, Any]
"""Tensors, numbers, texts and the package's records, in dicts and lists."""

FORMAT = 5
"""Of the states that are written. Version 1 named none: it had the local engine's states in another form. Version 2 had
agents' own paths in another form. Up to version 4, rows and metrics were records and mappings, one by one."""

_RARER = 50
"""States are kept so rarely that keeping them takes no more than this fraction of the time: one part in 50."""

_LONGEST_SECONDS = 1800.0
"""Between two states, whatever they cost, unless longer was asked for."""

_RECORDS: list[Any] = [Event, Read, Row, Snapshot]

_OWN = "local"
"""The part of a state that has a model's own tensors by name."""


def pace(seconds: float, cost_seconds: float) -> float:
    """Return how long to wait for the next state: as was asked for, but longer where a state takes its time to keep.

    With 0 seconds, every opportunity is taken, whatever it costs.
    """
    return max(seconds, min(_RARER * cost_seconds, _LONGEST_SECONDS)) if seconds else 0.0


class StateFormatError(ValueError):
    """A state in a format that this version does not read."""


def save_state(path: Path, state: State) -> None:
    """Write a state to a file, which is there only once it is whole."""
    write_whole(path, lambda unfinished: torch.save({"format": FORMAT, **state}, unfinished))


def load_state(path: Path) -> State:
    """Return a state that ``save_state`` wrote; of what the file names, only records are ever called.

    Raises:
        StateFormatError: an older or newer version wrote it.

    """
    state: State = _without_format(_loaded(path))
    return state


def require_format(path: Path) -> None:
    """Raise ``StateFormatError`` where an older or newer version wrote a state; its tensors are not read."""
    _without_format(_loaded(path, mmap=True))


def _loaded(path: Path, **options: Any) -> Any:
    with torch.serialization.safe_globals(_RECORDS):
        return unpickled(path, **options)


def unpickled(file: Path | io.BytesIO, **options: Any) -> Any:
    """Return what ``torch.save`` wrote, from whomever it comes; a file that is refused leaves nothing behind."""
    _forget_sparse_tensors()
    try:
        return torch.load(file, map_location="cpu", weights_only=True, **options)
    finally:
        _forget_sparse_tensors()


def _forget_sparse_tensors() -> None:
    """Let PyTorch check the sparse tensors that it has noted, whatever it finds.

    It notes them while it reads a file and checks them at the end: at the end of the next file if this one is refused.
    It also notes those of every plain pickle, such as a message of Ray, and never checks them there.
    """
    whole = io.BytesIO()
    torch.save({}, whole)
    whole.seek(0)
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        torch.load(whole, weights_only=True)


def _without_format(state: Any) -> Any:
    if not isinstance(state, dict):
        return state
    found = state.pop("format", 1)
    if found != FORMAT:
        advice = "go on with the version of ray-pcasgd that wrote it"
        raise StateFormatError(f"its state has format {found!r:.20}; allowed is {FORMAT}: {advice}")
    return state


def step_of(engine: State | None) -> int:
    """Return the step from which all agents go on with an engine's state."""
    agents = engine["agents"] if engine else []
    return min((int(one.get("progress", one["version"])) if one else 0 for one in agents), default=0)


def leaves_of(tree: Any) -> list[Any]:
    """Return the tensors and numbers of a tree, in its order."""
    return list(tree_leaves(tree))


def with_leaves(tree: Any, leaves: Sequence[Any]) -> Any:
    """Return a tree of the same form, with other leaves."""
    structure = tree_structure(tree)
    if structure.num_leaves != len(leaves):
        raise ValueError(f"a state of {len(leaves)} parts; allowed with these settings are {structure.num_leaves}")
    devices = [leaf.device if isinstance(leaf, torch.Tensor) else None for leaf in tree_leaves(tree)]
    moved = [leaf if device is None else leaf.to(device) for leaf, device in zip(leaves, devices, strict=True)]
    return tree_unflatten(moved, structure)


def difference(example: Any, value: Any, place: str = "state") -> str | None:
    """Return how a value differs from an example of its kind, if it does: types, keys, sizes of tensors.

    Lists and mappings that are empty in the example may hold anything, and so may a value that is ``None`` there. A
    list of numbers may be of any length. In a mapping by numbers, values that the example does not have must be like
    its first one. Of a model's own tensors, some may have come or gone.
    """
    if example is None:
        return None
    if isinstance(example, torch.Tensor):
        return _tensor_difference(example, value, place)
    if isinstance(example, int | float):
        allowed = (int, float) if type(example) is float else type(example)
        return None if isinstance(value, allowed) else f"{place} is of type {type(value).__name__}"
    if type(value) is not type(example):
        return f"{place} is of type {type(value).__name__}; allowed is {type(example).__name__}"
    pairs: list[tuple[Any, Any, Any]] = []
    if isinstance(example, dict) and example:
        if all(isinstance(key, str) for key in example):
            if value.keys() != example.keys():
                return f"{place} has the parts {sorted(map(str, value))[:9]}; allowed are {sorted(example)}"
            pairs = [(key, example[key], value[key]) for key in example]
        else:
            key, first = next(iter(example.items()))
            if strange := [one for one in value if type(one) is not type(key)]:
                return f"{place} has the key {strange[0]!r:.80}"
            pairs = [(one, example.get(one, first), item) for one, item in value.items()]
    elif isinstance(example, list) and example and all(isinstance(item, int | float) for item in example):
        strange = [item for item in value if not isinstance(item, int | float)]
        return f"{place} has {strange[0]!r:.80} among its numbers" if strange else None
    elif isinstance(example, list | tuple) and example:
        if len(value) != len(example):
            return f"{place} has {len(value)} parts; allowed are {len(example)}"
        pairs = [(number, *both) for number, both in enumerate(zip(example, value, strict=True))]
    found = (
        (_own_difference if key == _OWN else difference)(first, second, f"{place}.{key}")
        for key, first, second in pairs
    )
    return next((text for text in found if text is not None), None)


def _own_difference(example: dict[str, torch.Tensor], value: Any, place: str) -> str | None:
    if not isinstance(value, dict):
        return f"{place} is of type {type(value).__name__}; allowed is dict"
    for name, tensor in value.items():
        if found := difference(example.get(name), tensor, f"{place}.{name}"):
            return found
    return None


def _tensor_difference(example: torch.Tensor, value: Any, place: str) -> str | None:
    if not isinstance(value, torch.Tensor):
        return f"{place} is of type {type(value).__name__}; allowed is a tensor"
    if value.shape != example.shape or value.dtype != example.dtype or value.layout != example.layout:
        mine, its = (f"{one.dtype} of shape {tuple(one.shape)}" for one in (value, example))
        return f"{place} is {mine}; allowed is {its}"
    return None


def check_rows(rows: Any, num_agents: int) -> None:
    """Raise ``ValueError`` where something is not a list of rows of ``num_agents`` agents."""
    if not isinstance(rows, list):
        raise ValueError(f"rows are of type {type(rows).__name__}")
    for row in rows:
        if not isinstance(row, Row) or not isinstance(row.reads, tuple) or row.kind not in get_args(RowKind):
            raise ValueError(f"{row!r:.80} is no row")
        if not all(isinstance(read, Read) for read in row.reads):
            raise ValueError(f"{row!r:.80} has reads that are not reads")
        numbers = [row.agent, row.step, *(number for read in row.reads for number in read)]
        is_whole = all(type(number) is int and number >= 0 for number in numbers)
        agents = [row.agent, *(read.neighbor for read in row.reads)]
        if not is_whole or max(agents) >= num_agents or not _are_finite((row.start, row.ready, row.end)):
            raise ValueError(f"{row!r:.80} is no row of {num_agents} agents")


def _are_finite(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)
