"""Checks of pure functions of tensors that are not the package's own: what they give, and what they leave as it was."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


def pure_result(name: str, call: Callable[..., Any], inputs: Sequence[Any]) -> Any:
    """Return ``call(*inputs)``, called twice; ``name`` is that of the function in errors.

    Raises:
        ValueError: it changes its inputs, or gives another result the second time.

    """
    before = copy.deepcopy(inputs)
    first, again = call(*inputs), call(*inputs)
    if not is_same(inputs, before):
        raise ValueError(f"{name} changes its inputs in place; allowed is to make new tensors")
    if not is_same(first, again):
        raise ValueError(
            f"{name} gives other results for the same inputs; allowed is what follows from its inputs alone"
        )
    return first


def check_pair(name: str, result: Any, second: str) -> tuple[Any, Any]:
    """Return the two parts of a result, or raise ``ValueError`` where it has others."""
    if not (isinstance(result, tuple) and len(result) == 2):
        raise ValueError(f"{name} returns a {type(result).__name__}; allowed is a pair (state, {second})")
    return result


def check_vector(what: str, found: Any, like: Tensor, inputs: Any) -> None:
    """Raise ``ValueError`` where a result is no finite vector of the shape and type of ``like``, or is an input."""
    if not (isinstance(found, Tensor) and found.shape == like.shape and found.dtype == like.dtype):
        told = (
            f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        )
        raise ValueError(f"{what} is {told}; allowed is {like.dtype} of shape (D,), here {tuple(like.shape)}")
    if not found.isfinite().all():
        raise ValueError(f"{what} has numbers that are not finite, for finite inputs; allowed are finite numbers")
    if found.data_ptr() in {tensor.data_ptr() for tensor in tensors_in(inputs)}:
        raise ValueError(f"{what} is one of the inputs; allowed is a new tensor, such as a clone of it")


def check_state(name: str, following: Any, before: Any) -> None:
    """Raise ``ValueError`` where a state has not the structure, shapes and types of the one before it."""
    if _layout(following) != _layout(before) or not isinstance(following, tuple):
        what = f"a {type(following).__name__}" if following is before else "a state of another structure than init"
        raise ValueError(f"{name} returns {what}; allowed is an empty tuple, or a tuple of tensors of fixed shapes")


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors of nested tuples, lists and mappings."""
    if isinstance(tree, Tensor):
        return [tree]
    parts = list(tree.values()) if isinstance(tree, dict) else tree if isinstance(tree, tuple | list) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def is_same(one: Any, other: Any) -> bool:
    """Return whether two trees have the same tensors, to the bit."""
    first, second = tensors_in(one), tensors_in(other)
    return len(first) == len(second) and all(_bits(a) == _bits(b) for a, b in zip(first, second, strict=True))


def mapped(function: Callable[..., Tensor], *trees: Any) -> Any:
    """Return a tree of what the function makes of the tensors that stand at one place of all trees."""
    first = trees[0]
    if isinstance(first, Tensor):
        return function(*trees)
    if isinstance(first, dict):
        return {key: mapped(function, *(tree[key] for tree in trees)) for key in first}
    branches = [mapped(function, *branch) for branch in zip(*trees, strict=True)]
    return type(first)(*branches) if hasattr(first, "_fields") else tuple(branches)


def _bits(tensor: Tensor) -> tuple[Any, ...]:
    plain = tensor.detach().cpu().contiguous()
    return plain.dtype, plain.shape, plain.numpy().tobytes()


def _layout(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.shape, tree.dtype
    return [type(tree), *map(_layout, tree)] if isinstance(tree, tuple) else object()
