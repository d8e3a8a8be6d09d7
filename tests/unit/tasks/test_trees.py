"""Batches as trees: what is done leaf by leaf is what is done to each tensor by itself."""

from collections import OrderedDict, UserDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import BatchEncoding

from ray_pcasgd.tasks.trees import form_of, is_pair, mapped, moved, num_samples, split, tensors_of


class Both(NamedTuple):
    first: Any
    second: Any


def leaves(rows: int) -> st.SearchStrategy[Tensor]:
    shapes = st.lists(st.integers(1, 3), max_size=2)
    return shapes.map(lambda shape: torch.arange(rows * torch.Size(shape).numel()).reshape(rows, *shape) + len(shape))


def batches_of(rows: int) -> st.SearchStrategy[Any]:
    def deeper(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        parts = st.lists(inner, min_size=1, max_size=3)
        named = st.dictionaries(st.sampled_from("abc"), inner, min_size=1)
        kinds = st.sampled_from([dict, OrderedDict, UserDict, BatchEncoding, MappingProxyType])
        return st.one_of(
            parts,
            parts.map(tuple),
            st.builds(Both, inner, inner),
            st.builds(lambda kind, items: kind(items), kinds, named),
        )

    others = st.sampled_from([None, "text", 3, torch.tensor(2.5)])
    return st.recursive(st.one_of(leaves(rows), others), deeper, max_leaves=8)


def by_place(batch: Any, place: str = "") -> dict[str, Any]:
    """Return the leaves of a batch by where they are: a slow walk that knows each kind by itself."""
    if isinstance(batch, Mapping):
        items = list(batch.items())
    elif isinstance(batch, tuple | list):
        items = list(enumerate(batch))
    else:
        return {place: batch}
    return {name: leaf for key, part in items for name, leaf in by_place(part, f"{place}/{key}").items()}


def same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)


@given(st.integers(1, 7).flatmap(lambda rows: st.tuples(st.just(rows), batches_of(rows))), st.integers(1, 9))
def test_pieces_hold_every_sample_once_and_in_order(drawn: tuple[int, Any], pieces: int) -> None:
    rows, batch = drawn
    whole = by_place(batch)
    with_rows = {name for name, leaf in whole.items() if isinstance(leaf, Tensor) and leaf.ndim}
    if not with_rows:
        if pieces > 1:
            with pytest.raises(ValueError, match="has no tensor with rows; allowed is"):
                split(batch, pieces)
        return
    assert num_samples(batch) == rows
    parts = split(batch, pieces)
    assert len(parts) == pieces
    sizes = [num_samples(part) for part in parts]
    assert sum(sizes) == rows
    assert max(sizes) - min(sizes) <= 1
    found = [by_place(part) for part in parts]
    for name, leaf in whole.items():
        if name in with_rows:
            assert torch.equal(torch.cat([part[name] for part in found]), leaf)
        else:
            assert all(same(part[name], leaf) for part in found)


@given(batches_of(3))
def test_each_tensor_is_mapped_and_nothing_else_changes(batch: Any) -> None:
    before = by_place(batch)
    after = by_place(mapped(lambda tensor: tensor + 1, batch))
    assert before.keys() == after.keys()
    for name, leaf in before.items():
        assert same(after[name], leaf + 1 if isinstance(leaf, Tensor) else leaf)
    assert by_place(batch).keys() == before.keys()
    tensors = [leaf for leaf in before.values() if isinstance(leaf, Tensor)]
    assert len(tensors_of(batch)) == len(tensors)
    assert all(map(torch.equal, tensors_of(batch), tensors))
    assert all(same(leaf, before[name]) for name, leaf in by_place(moved(batch, torch.device("cpu"))).items())


@pytest.mark.parametrize("kind", [dict, OrderedDict, UserDict, BatchEncoding])
def test_mappings_keep_their_kind_and_what_was_given_stays(kind: Any) -> None:
    batch = kind({"ids": torch.ones(2), "inner": kind({"mask": torch.ones(2)})})
    changed = mapped(lambda tensor: tensor + 1, batch)
    assert type(changed) is type(changed["inner"]) is kind
    assert changed["inner"]["mask"].tolist() == [2, 2]
    assert batch["inner"]["mask"].tolist() == batch["ids"].tolist() == [1, 1]


def test_tensors_of_different_lengths_have_no_number_of_samples() -> None:
    with pytest.raises(ValueError, match="a batch, a dict of a, b, has tensors of 2 and 3 rows; allowed is as many"):
        num_samples({"a": torch.ones(2), "b": torch.ones(3)})


def test_only_two_tensors_are_a_pair() -> None:
    one = torch.ones(2)
    assert is_pair((one, one))
    assert is_pair([one, one])
    assert not any(map(is_pair, (one, (one,), (one, one, one), (one, 3), {"a": one, "b": one}, Both(one, one))))
    assert form_of((one, 3)) == "a tuple of 2 parts"
