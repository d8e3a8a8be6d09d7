"""From the items of a map-style data set to one batch."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as trees
from torch.utils.data import default_collate

from ray_pcasgd.base.text import one_line
from ray_pcasgd.tasks.trees import Batch, form_of, is_pair, mapped, tensors_of, with_dicts

ONE_SHAPE = "allowed is one shape, by padding or cropping for instance"
_LEAVES = "allowed are tensors, arrays, numbers and PIL images"


def collated(
    positions: Sequence[int], items: Sequence[Any], collate: Callable[[list[Any]], Batch] | None = None
) -> Batch:
    """Return the batch of the items at some positions: ``collate``'s, or by default tensors that are stacked.

    Pairs (input, target) become a pair of tensors; mappings, tuples and lists of such things keep their form, and lists
    of numbers are tensors in them. By default there are no numbers of 64 bits behind the point, which what Python's and
    NumPy's collate to: no model accepts them.

    Raises:
        ValueError: the items do not make a batch; one that is the cause is named.

    """
    if collate is not None:
        return _by(collate, positions, items)
    if _is_pair_of_leaves(items[0]):
        inputs, targets = _pairs(positions, items)
        return _of_32_bits(inputs), targets.float() if targets.is_floating_point() else targets.long()
    batch = mapped(_of_32_bits, _stacked_trees(positions, items))
    if is_pair(batch):
        inputs, targets = batch
        return inputs, targets.float() if targets.is_floating_point() else targets.long()
    return batch


def _by(collate: Callable[[list[Any]], Batch], positions: Sequence[int], items: Sequence[Any]) -> Batch:
    try:
        batch = collate(list(items))
    except Exception as error:  # the user's own
        reason = one_line(f"{type(error).__name__}: {error}", 300)
        raise ValueError(f"task.data.collate: fails on samples from {positions[0]} on ({reason})") from error
    if not tensors_of(batch):
        raise ValueError(f"task.data.collate: returns {form_of(batch)} without tensors; allowed are batches with some")
    return tuple(batch) if is_pair(batch) else batch


def _of_32_bits(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _is_pair_of_leaves(item: Any) -> bool:
    pair = isinstance(item, tuple | list) and len(item) == 2
    return pair and not any(isinstance(part, Mapping | tuple | list) for part in item)


def _pairs(positions: Sequence[int], items: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Return the inputs and targets of the items at some positions, stacked."""
    for position, item in zip(positions, items, strict=True):
        if not (isinstance(item, tuple | list) and len(item) == 2):
            raise ValueError(f"sample {position} is a {type(item).__name__}; allowed are pairs (input, target)")
    inputs = _stacked("input", positions, [_as_input(item[0]) for item in items])
    return inputs, _stacked("target", positions, [item[1] for item in items])


def _stacked(what: str, positions: Sequence[int], values: Sequence[Any]) -> Tensor:
    try:
        stacked = default_collate(list(values))
    except Exception as error:
        shapes = [_shape(value) for value in values]
        other = next((k for k, shape in enumerate(shapes) if shape != shapes[0]), None)
        if other is None:
            raise ValueError(f"the {what}s of samples from {positions[0]} on cannot be stacked ({error})") from error
        both = f"{shapes[0]} and {shapes[other]}"
        raise ValueError(
            f"samples {positions[0]} and {positions[other]} have {what}s of shapes {both}; {ONE_SHAPE}"
        ) from error
    if isinstance(stacked, Tensor):
        return stacked
    raise ValueError(f"sample {positions[0]} has a {type(values[0]).__name__} for {what}; {_LEAVES}")


def _stacked_trees(positions: Sequence[int], items: Sequence[Any]) -> Batch:
    """Return the items at some positions, which are no pairs, stacked leaf by leaf."""
    if (batch := _stacked_dicts(items)) is not None:
        return batch
    forms = []
    plain = [trees.tree_map(_as_leaf, with_dicts(item), is_leaf=_is_leaf) for item in items]
    for position, item in zip(positions, plain, strict=True):
        leaves, _ = trees.tree_flatten_with_path(item)
        forms.append({_named(path): str(tuple(getattr(leaf, "shape", ()))) for path, leaf in leaves})
        for path, leaf in leaves:
            if not isinstance(leaf, Tensor | np.ndarray | np.generic | Number):
                kind = type(leaf).__name__
                raise ValueError(
                    f"sample {position} has a {kind} for {_named(path)}; {_LEAVES}, and lists of numbers, or a "
                    "task.data.collate that makes tensors of it"
                )
    for position, form in zip(positions, forms, strict=True):
        for name in dict.fromkeys([*forms[0], *form]):
            if (one := forms[0].get(name, "none")) != (other := form.get(name, "none")):
                raise ValueError(
                    f"samples {positions[0]} and {position} have {name} of shapes {one} and {other}; {ONE_SHAPE}, or "
                    "a task.data.collate that does it"
                )
    if not forms[0]:
        raise ValueError(f"sample {positions[0]} is {form_of(items[0])} without tensors; allowed are samples with some")
    return default_collate(plain)


def _stacked_dicts(items: Sequence[Any]) -> dict[Any, Tensor] | None:
    """Return what most items of language models are, stacked: dicts of tensors that fit together; ``None``: others.

    Looking at each leaf as if it could be anything takes a quarter of a small GPT's step on a GPU.
    """
    forms = {
        tuple((key, value.shape, value.dtype) if type(value) is Tensor else None for key, value in item.items())
        if type(item) is dict
        else None
        for item in items
    }
    form = forms.pop()
    if forms or not form or None in form:
        return None
    return {key: torch.stack([item[key] for item in items]) for key in items[0]}


def _named(path: Any) -> str:
    """Return the place of a leaf as one would write it: ``labels`` for instance."""
    keys = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path]
    return ".".join(keys) or "itself"


def _is_leaf(node: Any) -> bool:
    return isinstance(node, list) and bool(node) and _holds_numbers(node)


def _holds_numbers(value: Any) -> bool:
    """Return whether a list, nested or not, is one of numbers: what a tensor is made of."""
    if isinstance(value, list):
        return bool(value) and all(map(_holds_numbers, value))
    return isinstance(value, Number)


def _as_leaf(value: Any) -> Any:
    if not isinstance(value, list):
        return _as_input(value)
    try:
        return torch.tensor(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"a list of numbers makes no tensor ({error})") from error


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if hasattr(value, "shape") else f"of a {type(value).__name__}"


def _as_input(value: Any) -> Any:
    """Return a PIL image as uint8 (channels, height, width), anything else as it is."""
    if not hasattr(value, "getbands"):
        return value
    array = np.array(value, dtype=np.uint8)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)
