"""Batches of any form: tensors in tuples, lists and mappings, nested as deep as one likes."""

import copy
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.utils import _pytree as trees

Batch = Any
"""A tensor, or a tuple, list or mapping of batches. Whatever else is in it stays as it is."""


def is_pair(batch: Batch) -> TypeGuard[tuple[Tensor, Tensor]]:
    """Return whether a batch is inputs and targets, as losses and metrics take them."""
    return type(batch) in (tuple, list) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)


def mapped(function: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """Return a batch of the same form with ``function`` of each tensor.

    >>> mapped(lambda tensor: tensor + 1, {"ids": torch.tensor([1, 2]), "name": "first"})
    {'ids': tensor([2, 3]), 'name': 'first'}
    """
    if is_pair(batch):
        # By far the most frequent, at each step of the smallest networks: a tenth of the time.
        inputs, targets = batch
        changed = (function(inputs), function(targets))
        return changed if isinstance(batch, tuple) else list(changed)
    return trees.tree_map(lambda leaf: _within(function, leaf), batch, is_leaf=_is_foreign)


def tensors_of(batch: Batch) -> list[Tensor]:
    """Return all tensors of a batch."""
    found: list[Tensor] = []
    for leaf in trees.tree_leaves(batch, is_leaf=_is_foreign):
        if isinstance(leaf, Mapping):
            found += tensors_of(list(leaf.values()))
        elif isinstance(leaf, Tensor):
            found.append(leaf)
    return found


def moved(batch: Batch, device: torch.device) -> Batch:
    """Return a batch on a device."""
    # From pinned memory a GPU copies by itself. To the CPU, nothing would say when the numbers are there.
    return mapped(lambda tensor: tensor.to(device, non_blocking=device.type == "cuda"), batch)


def num_samples(batch: Batch) -> int:
    """Return the number of samples: what all tensors have for a first dimension, but those that are one number.

    Raises:
        ValueError: they do not agree, or there are none.

    """
    lengths = list(dict.fromkeys(len(tensor) for tensor in tensors_of(batch) if tensor.ndim))
    if len(lengths) == 1:
        return lengths[0]
    held = f"tensors of {' and '.join(map(str, lengths))} rows" if lengths else "no tensor with rows"
    raise ValueError(f"a batch, {form_of(batch)}, has {held}; allowed is as many rows in each, one a sample")


def split(batch: Batch, pieces: int) -> list[Batch]:
    """Return a batch's samples in several pieces of almost equal size, some of which are empty where there are few.

    **Choice**: what is no tensor, or a single number, is in every piece.

    Raises:
        ValueError: as ``num_samples``.

    """
    if pieces == 1:
        return [batch]
    num_samples(batch)
    return [
        mapped(lambda tensor, own=piece: tensor.tensor_split(pieces)[own] if tensor.ndim else tensor, batch)  # type: ignore[misc]
        for piece in range(pieces)
    ]


def with_dicts(batch: Batch) -> Batch:
    """Return a batch whose mappings of all kinds are dictionaries."""
    return trees.tree_map(
        lambda leaf: {key: with_dicts(value) for key, value in leaf.items()} if isinstance(leaf, Mapping) else leaf,
        batch,
        is_leaf=_is_foreign,
    )


def form_of(batch: Batch) -> str:
    """Return what a batch is, in a few words.

    >>> form_of({"ids": torch.zeros(2), "labels": torch.zeros(2)})
    'a dict of ids, labels'
    """
    kind = type(batch).__name__
    if isinstance(batch, Mapping):
        return f"a {kind} of {', '.join(map(str, batch)) or 'nothing'}"
    return f"a {kind} of {len(batch)} parts" if isinstance(batch, tuple | list) else f"a {kind}"


def _is_foreign(node: Any) -> bool:
    """Return whether this is a mapping that torch's trees do not know, as tokenizers return."""
    return isinstance(node, Mapping) and type(node) not in trees.SUPPORTED_NODES


def _within(function: Callable[[Tensor], Tensor], leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return function(leaf)
    if not isinstance(leaf, Mapping):
        return leaf
    values = {key: mapped(function, value) for key, value in leaf.items()}
    if not isinstance(leaf, MutableMapping):
        return values
    changed = copy.copy(leaf)
    changed.update(values)
    return changed
