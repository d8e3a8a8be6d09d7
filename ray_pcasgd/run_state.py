"""The state of a run on its way, as a file: everything that the steps to come depend on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_structure, tree_unflatten

from ray_pcasgd.records import Event, Read, Row, Snapshot

State = dict[str, Any]
"""Tensors, numbers, texts and the package's records, in dicts and lists."""

_RARER = 20
"""States are kept so rarely that they take no more than one part in so many of the time."""

_RECORDS: list[Any] = [Event, Read, Row, Snapshot]


def pace(seconds: float, cost_seconds: float) -> float:
    """Return how long to wait for the next state: as was asked for, but longer where a state takes its time to keep.

    With 0 seconds, every opportunity is taken, whatever it costs.
    """
    return max(seconds, _RARER * cost_seconds) if seconds else 0.0


def save_state(path: Path, state: State) -> None:
    """Write a state to a file, which is there only once it is whole."""
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    unfinished.replace(path)


def load_state(path: Path) -> State:
    """Return a state that ``save_state`` wrote; nothing that the file names beside records is ever called."""
    with torch.serialization.safe_globals(_RECORDS):
        state: State = torch.load(path, map_location="cpu", weights_only=True)
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
        raise ValueError(f"a state of {len(leaves)} parts; allowed beside these settings are {structure.num_leaves}")
    devices = [leaf.device if isinstance(leaf, torch.Tensor) else None for leaf in tree_leaves(tree)]
    moved = [leaf if device is None else leaf.to(device) for leaf, device in zip(leaves, devices, strict=True)]
    return tree_unflatten(moved, structure)
