"""From items to batches."""

from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image
from torch.utils.data import Subset, default_collate

from ray_pcasgd.tasks.collating import collated
from ray_pcasgd.tasks.datasets import CustomData
from ray_pcasgd.tasks.samples import MapSamples
from ray_pcasgd.tasks.trees import tensors_of

ROWS = {"input_ids": [[1, 2], [3, 4], [5, 6]], "weight": [0.5, 1.5, 2.5], "label": [2, 0, 1]}


def test_rows_of_a_hugging_face_data_set_are_stacked_by_column() -> None:
    batch = MapSamples(Dataset.from_dict(ROWS)).take([2, 0])
    assert batch["input_ids"].tolist() == [[5, 6], [1, 2]]
    assert batch["weight"].tolist() == [2.5, 0.5]
    assert batch["label"].tolist() == [1, 2]
    assert [tensor.dtype for tensor in tensors_of(batch)] == [torch.int64, torch.float32, torch.int64]
    formatted = MapSamples(Dataset.from_dict(ROWS).with_format("torch")).take([2, 0])
    assert all(torch.equal(formatted[name], batch[name]) for name in ROWS)


def test_trees_of_tensors_are_those_of_torchs_default_collate() -> None:
    items = [{"a": (torch.ones(2) * k, np.float32(k)), "b": {"c": k}, "d": torch.tensor([k])} for k in range(3)]
    found, expected = collated([0, 1, 2], items), default_collate(items)
    assert found.keys() == expected.keys()
    assert all(map(torch.equal, tensors_of(found), tensors_of(expected)))
    assert len(tensors_of(found)) == 4


def test_dicts_of_tensors_are_stacked_as_by_default_collate_and_in_any_order_of_their_keys() -> None:
    items = [{"ids": torch.arange(3) + k, "loss": torch.tensor(float(k), dtype=torch.float64)} for k in range(3)]
    found, expected = collated([0, 1, 2], items), default_collate(items)
    assert list(found) == list(expected)
    assert found["loss"].dtype == torch.float32
    assert torch.equal(found["ids"], expected["ids"])
    turned = collated([0, 1], [items[0], dict(reversed(items[1].items()))])
    assert {name: tensor.tolist() for name, tensor in turned.items()} == {"ids": [[0, 1, 2], [1, 2, 3]], "loss": [0, 1]}


def test_images_and_foreign_mappings_in_trees() -> None:
    items = [UserDict(image=Image.new("L", (3, 2), 7 * k), labels=k) for k in range(2)]
    batch = collated([0, 1], items)
    assert batch["image"].shape == (2, 1, 2, 3)
    assert batch["image"][1].unique().tolist() == [7]


def test_two_parts_that_are_tensors_become_a_pair_and_others_do_not() -> None:
    inputs, targets = collated([0, 1], [([1.0, 2.0], 1), ([3.0, 4.0], 0)])
    assert inputs.tolist() == [[1, 2], [3, 4]]
    assert targets.dtype == torch.int64
    assert type(collated([0], [(torch.ones(2), torch.ones(2), torch.ones(2))])) is list
    assert MapSamples([torch.ones(2)] * 3).take([0, 1]).shape == (2, 2)


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([{"a": [1, 2]}, {"a": [1]}], r"samples 4 and 6 have a of shapes \(2,\) and \(1,\); allowed is one shape"),
        ([{"a": 1}, {"a": 1, "b": 2}], r"samples 4 and 6 have b of shapes none and \(\)"),
        (
            [{"a": {"b": "c"}}, {}],
            "sample 4 has a str for a.b; allowed are tensors, arrays, numbers and PIL images, and",
        ),
        ([{"a": 1}, {"a": None}], "sample 6 has a NoneType for a"),
        ([{"a": [[1], [2, 3]]}, {}], "a list of numbers makes no tensor"),
    ],
)
def test_items_that_make_no_batch_are_named(items: list[Any], expected: str) -> None:
    with pytest.raises(ValueError, match=f"^{expected}"):
        collated([4, 6], items)


def test_classes_are_read_from_a_column_or_from_items() -> None:
    column = Dataset.from_dict(ROWS)
    named = column.cast(Features(column.features | {"label": ClassLabel(names=["x", "y", "z"])}))
    rows: list[Any] = [column[k] for k in range(3)]
    for dataset in (column, named, column.with_format("torch"), column.with_format("numpy"), rows):
        labels = MapSamples(dataset).labels()
        assert labels is not None
        assert labels.tolist() == [2, 0, 1]
    part = MapSamples(column).subset([2, 1]).labels()
    assert part is not None
    assert part.tolist() == [1, 0]
    assert MapSamples(Subset(column, [1])).labels().tolist() == [0]  # type: ignore[union-attr]
    real = column.cast(Features(column.features | {"label": Value("float32")}))
    for without in (real, column.remove_columns("label"), [{"label": [1, 2]}], [{"label": 0.5}], [torch.ones(2)]):
        assert MapSamples(without).labels() is None


def test_items_are_kept_on_request_alone_and_drawn_once_then() -> None:
    class Counting:
        taken = 0

        def __len__(self) -> int:
            return 5

        def __getitem__(self, place: int) -> dict[str, Any]:
            if place >= 5:
                raise IndexError
            Counting.taken += 1
            return {"x": torch.full((2,), float(place)), "noise": torch.rand(())}

    dataset = Counting()
    drawn = CustomData(train=dataset, test=dataset).load()
    assert isinstance(drawn.train, MapSamples)
    assert drawn.train.is_random
    assert drawn.remarks == (
        "task.data.train: its items are random; each batch draws them anew",
        "task.data.test: its items are random; every evaluation has the same draws of them",
    )
    kept = CustomData(train=dataset, test=dataset, in_memory=True).load()
    before = Counting.taken
    first, again = (kept.train.take([3, 1]) for _ in range(2))
    assert torch.equal(first["noise"], again["noise"])
    assert first["x"][:, 0].tolist() == [3, 1]
    assert before == Counting.taken


def test_a_collate_that_draws_follows_from_the_seed_and_one_that_cannot_is_refused() -> None:
    rows = [{"x": float(k)} for k in range(6)]
    own = torch.Generator()

    def noisy(items: list[Any]) -> dict[str, Any]:
        return {"x": torch.tensor([item["x"] for item in items]) + torch.rand(len(items))}

    def unseeded(items: list[Any]) -> dict[str, Any]:
        return {"x": torch.rand(len(items), generator=own)}

    assert CustomData(train=rows, test=rows, collate=noisy).load().train.is_random  # type: ignore[union-attr]
    with pytest.raises(
        ValueError, match=r"^task\.data\.train: item 0 differs each time it is taken, whatever the seed"
    ):
        CustomData(train=rows, test=rows, collate=unseeded).load()
