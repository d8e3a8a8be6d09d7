"""Random items of the user's own data: drawn from the seed, or refused; and which labels they have."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from ray_pcasgd.base.randomness import torch_generator
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.tasks import Task
from ray_pcasgd.tasks.batches import Batches
from ray_pcasgd.tasks.datasets import CustomData
from ray_pcasgd.tasks.drawing import generator_states, nature_of, seeded
from ray_pcasgd.tasks.partition import Dirichlet
from ray_pcasgd.tasks.samples import MapSamples, Samples, labels_of

LABELS = torch.randint(3, (60,), generator=torch_generator(0, "labels"))
INPUTS = torch.nn.functional.one_hot(LABELS, 3).float() + torch.empty(60, 3).normal_(generator=torch_generator(0, "x"))


class Items(Dataset[tuple[Tensor, int]]):
    """Items that a function changes as they are taken."""

    def __init__(self, change: Callable[[Tensor, int], Tensor], number: int = 60) -> None:
        self.change = change
        self.targets = LABELS[:number].tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.change(INPUTS[index].clone(), index), self.targets[index]


class WithoutTargets(Items):
    def __init__(self, change: Callable[[Tensor, int], Tensor], number: int = 60) -> None:
        super().__init__(change, number)
        self.hidden = self.targets
        del self.targets

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.change(INPUTS[index].clone(), index), self.hidden[index]


def as_it_is(value: Tensor, index: int) -> Tensor:
    return value


def by_python(value: Tensor, index: int) -> Tensor:
    return value * random.choice([1, -1])


def by_numpy(value: Tensor, index: int) -> Tensor:
    return value * float(np.random.uniform(0.9, 1.1))  # noqa: NPY002 - as transforms do


def by_torch(value: Tensor, index: int) -> Tensor:
    return value + 0.1 * torch.randn(3)


def hardly_ever(value: Tensor, index: int) -> Tensor:
    return -value if torch.rand(()) < 1e-6 else value


def only_late_items(value: Tensor, index: int) -> Tensor:
    return by_torch(value, index) if index == 55 else value


def seeding_itself(value: Tensor, index: int) -> Tensor:
    torch.manual_seed(index)
    return value + torch.randn(3)


def never_a_number(value: Tensor, index: int) -> Tensor:
    return value / 0 * 0


OWN = np.random.default_rng(3)


def by_its_own(value: Tensor, index: int) -> Tensor:
    return value + float(OWN.normal())


RANDOM = [by_python, by_numpy, by_torch, hardly_ever]


@pytest.mark.parametrize("change", [*RANDOM, as_it_is, seeding_itself, never_a_number, by_its_own])
def test_items_that_are_random_are_known_as_such(change: Any) -> None:
    expected = "random" if change in RANDOM else "unseeded" if change is by_its_own else "fixed"
    before = generator_states()
    assert nature_of(MapSamples(Items(change)).take, 60)[0] == expected
    assert generator_states() == before


def test_the_global_generators_are_left_as_they_were_after_an_error_too() -> None:
    def taken_out() -> None:
        with seeded(7):
            random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
            raise KeyError

    before = generator_states()
    with pytest.raises(KeyError):
        taken_out()
    assert generator_states() == before


@pytest.mark.parametrize("change", [by_python, by_numpy, by_torch, only_late_items])
@pytest.mark.parametrize("in_memory", [None, False])
def test_random_training_items_are_drawn_for_each_batch_from_the_seed(change: Any, in_memory: bool | None) -> None:
    data = CustomData(train=Items(change), test=Items(as_it_is), in_memory=in_memory).load()
    assert isinstance(data.train, MapSamples)
    assert data.num_classes == 3
    if change is not only_late_items or in_memory is None:
        assert data.remarks == ("task.data.train: its items are random; each batch draws them anew",)
    shard = np.arange(60)

    def batches(seed: int = 0, agent: int = 0, samples: Any = data.train, indices: Any = shard) -> Batches:
        return Batches(samples, indices, 60, seed, agent)

    def in_order(drawn: tuple[Tensor, Tensor], own: Batches, number: int) -> Tensor:
        return drawn[0][np.argsort(own.indices_at(number))]

    one, again = batches(), batches()
    torch.rand(3)
    before = generator_states()
    for number in (0, 1, 2):
        assert torch.equal(one.next()[0], again.at(number)[0])
    # Batches 0 and 1 are two epochs: the same samples, other draws.
    epochs = [in_order(again.at(number), again, number) for number in (0, 1)]
    assert not torch.equal(epochs[0], epochs[1])
    other = batches(seed=1)
    assert not torch.equal(in_order(other.at(0), other, 0), epochs[0])
    neighbor = batches(agent=1)
    assert not torch.equal(in_order(neighbor.at(0), neighbor, 0), epochs[0])
    # An agent that holds its own samples alone draws the same.
    few = np.arange(5, 45)
    alone = Batches(data.train.subset(few), np.arange(40), 10, 0, 0)
    assert torch.equal(alone.at(3)[0], Batches(data.train, few, 10, 0, 0).at(3)[0])
    assert generator_states() == before


def test_items_that_are_the_same_each_time_are_kept() -> None:
    for change in (as_it_is, seeding_itself):
        data = CustomData(train=Items(change), test=Items(change)).load()
        assert isinstance(data.train, Samples)
        assert data.remarks == ()
        assert torch.equal(data.train.inputs, MapSamples(Items(change)).in_memory().inputs)


def test_random_items_are_kept_where_that_is_asked_for_and_are_the_same_in_every_run() -> None:
    kept = [CustomData(train=Items(by_torch), test=Items(as_it_is), in_memory=True).load() for _ in range(2)]
    assert isinstance(kept[0].train, Samples)
    assert torch.equal(kept[0].train.inputs, kept[1].train.inputs)
    assert kept[0].remarks == ("task.data.train: its items are random; one draw of each is kept",)


def test_tests_have_the_same_random_items_each_time() -> None:
    settings: dict[str, Any] = {"train": Items(as_it_is), "test": Items(by_torch)}
    kept = [CustomData(**settings).load() for _ in range(2)]
    first, second = (data.test for data in kept)
    assert isinstance(first, Samples)
    assert isinstance(second, Samples)
    assert torch.equal(first.inputs, second.inputs)
    assert kept[0].remarks == ("task.data.test: its items are random; one draw of each is kept",)
    task = Task(data=CustomData(**settings, in_memory=False), model={"name": "mlp", "hidden": ()})
    data = task.load()
    assert data.remarks == ("task.data.test: its items are random; every evaluation has the same draws of them",)
    model = task.build_model(data, 0)
    assert task.examine(model, data).values == task.examine(model, data).values
    held_out = Task(data=CustomData(train=Items(by_torch), test=Items(as_it_is)), validation_share=0.25)
    data = held_out.load()
    assert (
        data.remarks[1]
        == "task.validation_share: held-out items are random; every evaluation has the same draws of them"
    )
    model = held_out.build_model(data, 0)
    assert held_out.examine(model, data).values == held_out.examine(model, data).values


@pytest.mark.parametrize("setting", ["train", "test"])
@pytest.mark.parametrize("in_memory", [None, False])
def test_what_no_seed_reaches_is_refused(setting: str, in_memory: bool | None) -> None:
    settings = {"train": Items(as_it_is), "test": Items(as_it_is)} | {setting: Items(by_its_own)}
    with pytest.raises(ValueError, match=rf"task.data.{setting}: item 0 differs each .* has a generator of its own"):
        CustomData(**settings, in_memory=in_memory).load()
    assert isinstance(CustomData(**settings, in_memory=True).load().train, Samples)


def trained(folder: Path, **settings: Any) -> Result:
    data = {"name": "custom", "train": Items(by_torch), "test": Items(as_it_is)}
    task = {"data": data, "model": {"name": "mlp", "hidden": [4]}}
    engine = {"name": "local", "batched": "never"}
    run = {"num_agents": 3, "num_steps": 8, "evaluate_every": 4, "task": task, "engine": engine}
    result = Trainer(run | {"storage_path": str(folder)} | settings).fit()
    assert result.error is None
    return result


def test_a_run_with_random_items_follows_from_its_seed(tmp_path: Path) -> None:
    torch.manual_seed(1)
    results = []
    for seed in (3, 3, 4):
        results.append(trained(tmp_path, seed=seed))
        torch.rand(5)
    first, again, other = (result.checkpoint.state_dict() for result in results if result.checkpoint)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    told = (Path(results[0].path) / "events.jsonl").read_text(encoding="utf-8")
    assert "task.data.train: its items are random; each batch draws them anew" in told


class Mixed(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of samples, mixed at random, and their classes with them."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        share, other = random.random(), random.randrange(60)
        classes = torch.eye(3)[LABELS]
        mixed = (share * values[index] + (1 - share) * values[other] for values in (INPUTS, classes))
        inputs, targets = mixed
        return inputs, targets


def test_mixed_samples_are_trained_on_and_whole_ones_tested(tmp_path: Path) -> None:
    data = {"name": "custom", "train": Mixed(), "test": Items(as_it_is), "num_classes": 3}
    loss = {"name": "custom", "function": "torch.nn.functional:cross_entropy"}
    result = trained(tmp_path, task={"data": data, "model": {"name": "mlp", "hidden": [4]}, "loss": loss})
    assert result.metrics["test_accuracy"] > 0


# Labels.


class Named(TensorDataset):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(INPUTS, LABELS, INPUTS)  # three tensors: none of them is known to be the targets
        vars(self).update(attributes)

    def __getitem__(self, index: int) -> Any:
        return INPUTS[index], LABELS[index]


@pytest.mark.parametrize(
    "dataset",
    [
        TensorDataset(INPUTS, LABELS),
        Items(as_it_is),
        Named(targets=LABELS),
        Named(targets=LABELS.numpy()),
        Named(labels=LABELS.tolist()),
        Named(targets=["a", "b"], labels=LABELS),
        Subset(Subset(TensorDataset(INPUTS.repeat(2, 1), LABELS.repeat(2)), range(120)), range(60, 120)),
        ConcatDataset([Subset(Items(as_it_is), range(20)), Named(labels=LABELS), Items(as_it_is)]),
    ],
)
def test_labels_are_found_without_taking_all_items(dataset: Any) -> None:
    samples = MapSamples(dataset)
    expected = samples.take(range(len(samples)))[1].tolist()
    found = samples.labels()
    assert found is not None
    assert found.tolist() == expected
    part = samples.subset(np.arange(7, 40)).subset([3, 20])
    labels = part.labels()
    assert labels is not None
    assert labels.tolist() == [expected[10], expected[27]]


@pytest.mark.parametrize(
    "dataset",
    [
        Named(),
        Named(labels=lambda: LABELS),
        Named(targets=LABELS[:30]),
        Named(targets=INPUTS),
        Named(targets=None),
        ConcatDataset([Items(as_it_is), Named()]),
        Named(targets=2 - LABELS),  # a transform of targets has changed what items hold
    ],
)
def test_labels_that_are_not_those_of_the_items_are_none(dataset: Any) -> None:
    assert MapSamples(dataset).labels() is None


def test_held_out_samples_leave_the_others_their_labels() -> None:
    for dataset in (Items(by_torch), WithoutTargets(by_torch), Subset(Items(by_torch), range(50))):
        task = Task(data=CustomData(train=dataset, test=Items(as_it_is)), validation_share=0.2)
        data = task.load()
        labels = data.train.labels()
        assert labels is not None
        assert labels.tolist() == data.train.take(range(len(data.train)))[1].tolist()
        shards = Dirichlet(min_samples=2).split(data.train, 4, 0)
        assert sum(map(len, shards)) == len(data.train) == round(0.8 * len(dataset))
    assert labels_of(7) is None
