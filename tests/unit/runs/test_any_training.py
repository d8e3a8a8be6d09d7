"""Batches of any form, steps of one's own, and models that compute their loss: as plain PyTorch trains them."""

import math
from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import BatchEncoding

from ray_pcasgd.base.randomness import stream_seed
from ray_pcasgd.records import StepReport
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.tasks.batches import Batches
from tests.engines import language
from tests.unit.memory import in_one_vector

ETA = 2**-4
"""A power of two: torch multiplies and adds in one rounding, the rules in two."""
ALONE: dict[str, Any] = {
    "engine": "local",
    "algorithm": "d-psgd",
    "num_agents": 1,
    "num_steps": 24,
    "evaluate_every": 24,
    "batch_size": 8,
    "step_size": ETA,
    "optimizer": {"momentum": 0.9, "weight_decay": 1e-3},
}


def fit(folder: Path, **settings: Any) -> Result:
    result = Trainer(ALONE, storage_path=str(folder), **settings).fit()
    assert result.error is None
    return result


def plain_loop(task: dict[str, Any], loss_of: Callable[[nn.Module, dict[str, Tensor]], Tensor]) -> nn.Module:
    """Train as anybody would, on the same samples, initial weights and seeds of dropout."""
    plan = make_plan(load_config(ALONE | {"task": task}))
    config, rows = plan.config, language.train()
    model = in_one_vector(config.task.build_model(plan.data, config.seed).train())
    optimizer = torch.optim.SGD(model.parameters(), lr=ETA, momentum=0.9, weight_decay=1e-3)
    batches = config.task.batches(plan.data, plan.specs[0].shard, config.batch_size, config.seed, 0)
    assert isinstance(batches, Batches)
    for number in range(24):
        items = [rows[int(place)] for place in batches.indices_at(number)]
        batch = {key: torch.tensor([item[key] for item in items]) for key in ("input_ids", "labels")}
        torch.manual_seed(stream_seed(config.seed, "forward", 0, number + 1))
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("task", [language.TASK, language.STEPPED], ids=["the model's loss", "a step"])
def test_one_agent_is_the_plain_loop_to_the_bit(task: dict[str, Any], tmp_path: Path) -> None:
    loss_of = language.step if "step" in task else lambda model, batch: model(**batch).loss
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            expected = plain_loop(task, loss_of)
    finally:
        torch.set_num_threads(threads)
    result = fit(tmp_path, task=task)
    assert result.checkpoint is not None
    found = result.checkpoint.state_dict()
    assert torch.equal(found["lm_head.weight"], found["transformer.wte.weight"])
    assert result.metrics["test_loss"] < math.log(language.WORDS) - 0.1
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found[name], tensor), name


def test_figures_are_means_over_samples_and_metrics_of_the_whole_test_set(tmp_path: Path) -> None:
    result = fit(tmp_path, task=language.STEPPED | {"test_batch_size": 7})
    assert result.checkpoint is not None
    model = language.gpt2()
    model.load_state_dict(result.checkpoint.state_dict())
    model.eval()
    rows = language.test()
    words = torch.tensor(rows["input_ids"][:])
    with torch.no_grad():
        outputs = model(input_ids=words, labels=words)
    # All sequences are equally long, so that the mean over samples is that over words.
    loss = nn.functional.cross_entropy(outputs.logits[:, :-1].reshape(-1, language.WORDS), words[:, 1:].reshape(-1))
    guessed = (outputs.logits[:, :-1].argmax(-1) == words[:, 1:]).float().mean()
    assert result.metrics["test_loss"] == pytest.approx(float(loss), rel=1e-5)
    assert result.metrics["test_perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert result.metrics["test_guessed"] == pytest.approx(float(guessed), rel=1e-6)
    assert "test_accuracy" not in result.metrics


def test_a_models_own_loss_comes_without_metrics_or_with_those_of_its_logits(tmp_path: Path) -> None:
    result = fit(tmp_path / "none", task=language.TASK, num_steps=1)
    assert [name for name in result.metrics if name.startswith("test_")] == ["test_loss"]
    assert "metrics: []" in (Path(result.path) / "config.yaml").read_text()
    with_accuracy = fit(tmp_path / "one", task=language.TASK | {"metrics": ["accuracy"]}, num_steps=1)
    assert 0 <= with_accuracy.metrics["test_accuracy"] <= 1


@pytest.mark.parametrize("make", [dict, UserDict, BatchEncoding])
def test_mappings_of_all_kinds_train_alike(make: Any, tmp_path: Path) -> None:
    def collate(items: list[Any]) -> Any:
        return make({key: torch.tensor([item[key] for item in items]) for key in items[0]})

    kinds = []

    def step(model: nn.Module, batch: Any) -> Tensor:
        kinds.append(type(batch))
        return model(**batch).loss  # type: ignore[no-any-return]

    task = language.TASK | {"data": language.DATA | {"collate": collate}, "step": step}
    result = fit(tmp_path / "kind", task=task, num_steps=3)
    plain = fit(tmp_path / "plain", task=language.TASK, num_steps=3)
    assert set(kinds) == {make}
    assert result.checkpoint is not None
    assert plain.checkpoint is not None
    for name, tensor in plain.checkpoint.state_dict().items():
        assert torch.equal(result.checkpoint.state_dict()[name], tensor)


SERVER = {"name": "server", "gathering": {"name": "k-sync", "k": 1}, "micro_batches": 3}


def test_a_worker_takes_a_batch_in_pieces_whose_sum_is_the_whole(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "num_agents": 2, "num_steps": 6, "links": [], "optimizer": {}, "algorithm": SERVER,
        "task": language.TASK | {"model": language.MODEL | {"arguments": {"dropout": 0.0}}},
    }  # fmt: skip
    pieces = fit(tmp_path / "pieces", **settings)
    whole = fit(tmp_path / "whole", **settings | {"algorithm": SERVER | {"micro_batches": 1}})
    assert pieces.metrics["test_loss"] == pytest.approx(whole.metrics["test_loss"], rel=1e-5)
    assert pieces.checkpoint is not None
    assert whole.checkpoint is not None
    for name, tensor in whole.checkpoint.state_dict().items():
        torch.testing.assert_close(pieces.checkpoint.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("task", [language.TASK, language.STEPPED], ids=["the model's loss", "a step"])
@pytest.mark.parametrize("algorithm", ["pc-asgd", {"name": "pc-asgd-pv", "probe_every": 1}], ids=["curvature", "probe"])
def test_curvature_and_probes_go_through_the_step(task: Any, algorithm: Any, tmp_path: Path) -> None:
    settings = {"num_agents": 2, "num_steps": 8, "links": [{"delay": 2}], "algorithm": algorithm}
    result = fit(tmp_path, task=task, **settings)
    measured = result.metrics_dataframe
    assert measured["theta" if algorithm == "pc-asgd" else "predicting_share"].notna().any()
    assert math.isfinite(result.metrics["test_loss"])


def digits_as_mappings(first: int, last: int) -> list[dict[str, Any]]:
    images, labels = load_digits(return_X_y=True)
    return [
        {"pixels": torch.from_numpy(image).float() / 16, "label": int(label)}
        for image, label in zip(images[first:last], labels[first:last], strict=True)
    ]


class Seen(nn.Module):
    """Counts the labels that it was trained on, in a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.register_buffer("counts", torch.zeros(10, dtype=torch.int64))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        if self.training:
            self.counts += torch.bincount(batch["label"], minlength=10)
        return nn.functional.cross_entropy(self.layer(batch["pixels"]), batch["label"])


class Ending(Callback):
    """Keeps what each agent has counted at the end."""

    def __init__(self) -> None:
        self.counts: dict[int, Tensor] = {}

    def on_step(self, report: StepReport) -> None:
        if report.snapshot is not None:
            self.counts[report.row.agent] = report.snapshot.local["counts"]


@pytest.mark.parametrize("batched", ["never", "auto"])
def test_agents_train_on_their_own_labels_of_mappings_through_a_whole_run(batched: str, tmp_path: Path) -> None:
    train, test = digits_as_mappings(0, 400), digits_as_mappings(400, 600)
    task = {
        "data": {"name": "custom", "train": train, "test": test},
        "model": Seen,
        "step": lambda model, batch: model(batch),
    }
    settings = {
        "num_agents": 5, "num_steps": 30, "evaluate_every": 30, "batch_size": 8, "algorithm": "pc-asgd",
        "partition": {"name": "by-label", "labels_per_agent": 2}, "engine": {"name": "local", "batched": batched},
    }  # fmt: skip
    ending = Ending()
    result = Trainer(settings, storage_path=str(tmp_path), task=task, callbacks=[ending]).fit()
    assert result.error is None
    counts = torch.stack([ending.counts[agent] for agent in range(5)])
    assert ((counts > 0).sum(1) == 2).all()
    assert (counts.sum(1) == 30 * 8).all()
    assert ((counts > 0).sum(0) == 1).all()
    assert result.metrics["test_loss"] < 2.0


# bad input


class Items:
    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return 40

    def __getitem__(self, place: int) -> Any:
        if place >= 40:
            raise IndexError
        return self.items[place % len(self.items)]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, **more: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


X = {"x": torch.ones(3), "y": torch.ones(2)}


def good(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return (model(**batch) - batch["y"]).square().mean()


def task_of(item: Any = X, *others: Any, **more: Any) -> dict[str, Any]:
    items = Items(item, *others)
    data = {"name": "custom", "train": items, "test": items} | more.pop("data", {})
    return {"data": data, "model": Layer, "step": good} | more


def refusal(task: dict[str, Any], **settings: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        make_plan(load_config(ALONE | settings | {"task": task}))
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    return line


def returning(value: Any) -> Callable[[nn.Module, Any], Any]:
    return lambda model, batch: value(model, batch)


def uneven(items: list[Any]) -> dict[str, Tensor]:
    return {"x": torch.ones(len(items), 3), "y": torch.ones(2 * len(items), 2)}


F1 = {"name": "custom", "function": "torchmetrics.classification:BinaryF1Score", "label": "f1"}
STEP = (
    "task.step = 'tests.unit.runs.test_any_training:returning.<locals>.<lambda>': fails on the first samples, 8 in tr"
)
EVALUATE = "task.evaluate: fails on the first test samples "
MODEL = "task.model.name = 'custom': "


def test_what_is_right_is_not_refused() -> None:
    uneven_task = task_of(data={"collate": uneven}, step=lambda m, b: m(b["x"]).sum())
    for task in (task_of(), uneven_task):
        assert make_plan(load_config(ALONE | {"task": task})).config.num_steps == ALONE["num_steps"]


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (task_of(step=returning(lambda m, b: None)), STEP + "aining (returns a NoneType for a loss; allowed is"),
        (task_of(step=returning(lambda m, b: m(**b))), STEP + "aining (returns a loss of shape (8, 2); allowed is"),
        (task_of(step=returning(lambda m, b: b["y"].mean())), STEP + "aining (returns a loss that depends on no par"),
        (task_of(step=returning(lambda m, b: m(b).mean())), STEP + "aining ("),
        (task_of(step=None), MODEL + "fails on the first samples, 8 in training (returns a Tensor without a loss for"),
        (task_of(evaluate=lambda m, b: None), EVALUATE + "(loss comes to a NoneType; allowed is one number)"),
        (task_of(evaluate=lambda m, b: (b["y"].mean(), {"a": "b"})), EVALUATE + "(a comes to a str; allowed is one n"),
        (task_of(evaluate=lambda m, b: (b["y"].mean(), {"a": b["y"]})), EVALUATE + "(a comes to a tensor of shape"),
        (task_of(evaluate=lambda m, b: (b["y"].mean(), {"a": (1, 2)})), EVALUATE + "(returns a tuple for 'a'; all"),
        (task_of(metrics=[F1]), "task.step: fails on the test samples (returns no 'f1'; allowed is a tuple of what th"),
        (task_of(loss="mse"), "task.loss = 'mse': allowed together with step is none; the step's is minimized"),
        (task_of(loss="mse", step=None), "task.loss = 'mse': batches are a dict of x, y; allowed there is the model's"),
        (task_of(augmentation={"flip": True}), "task.augmentation = "),
        (task_of(model="mlp"), "task.model.name = 'mlp': batches are a dict of x, y; allowed there is 'custom'"),
        (task_of({"x": "text"}), "task.data.train: sample 0 has a str for x; allowed are tensors, arrays, numbers"),
        (task_of({}), "task.data.train: sample 0 is a dict of nothing without tensors; allowed are samples with some"),
        (task_of(X, {"x": torch.ones(4), "y": X["y"]}), "task.data: fails on batch 0 of agent 0 (samples 11 and"),
        (task_of(X, {"x": torch.ones(3)}), "task.data: fails on batch 0 of agent 0 (samples 11 and 20 have y of shape"),
        (task_of(data={"collate": lambda items: 1}), "task.data.collate: returns a int without tensors; allowed are"),
        (task_of(data={"collate": lambda items: items[99]}), "task.data.collate: fails on samples from 0 on (IndexErr"),
        (task_of(data={"mean": [1.0], "std": [1.0]}), "task.data.mean = (1.0,): allowed is one for each channel"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on_is_refused_in_one_line(task: dict[str, Any], expected: str) -> None:
    assert refusal(task).startswith(expected)


def test_a_batch_that_cannot_be_split_or_stacked_is_refused_where_it_would_be() -> None:
    uneven_task = task_of(data={"collate": uneven}, step=lambda model, batch: model(batch["x"]).sum())
    line = refusal(uneven_task, num_agents=2, algorithm=SERVER | {"gathering": {"name": "k-sync", "k": 1}})
    assert line.startswith(
        "algorithm.micro_batches = 3: a batch, a dict of x, y, has tensors of 8 and 16 rows; allowed"
    )
    line = refusal(task_of(), engine={"name": "local", "batched": "always"}, num_agents=2)
    assert line.startswith("engine.batched = 'always': task.step = 'tests.unit.runs.test_any_training:good': it is")


def test_checkpoints_are_kept_by_what_a_step_measures() -> None:
    checkpoint = {"every_evaluations": 1, "num_to_keep": 1}
    plan = load_config(ALONE | {"task": language.STEPPED, "checkpoint": checkpoint | {"score": "guessed"}})
    assert make_plan(plan).config.checkpoint.score == "guessed"
    line = refusal(language.STEPPED, checkpoint=checkpoint | {"score": "accuracy"})
    assert line == "checkpoint.score = 'accuracy': allowed are loss, guessed, perplexity"
    line = refusal(language.TASK, checkpoint=checkpoint | {"score": "accuracy"})
    assert line == "checkpoint.score = 'accuracy': allowed are loss"


def test_labels_of_mappings_are_dealt_by_and_others_are_not() -> None:
    task = task_of({"x": X["x"], "label": 0}, {"x": X["x"], "label": 1}, step=lambda m, b: m(b["x"]).sum())
    plan = make_plan(load_config(ALONE | {"task": task, "num_agents": 2, "partition": {"name": "by-label", "labels_per_agent": 1}}))  # fmt: skip # noqa: E501
    assert sorted({int(place) % 2 for place in spec.shard} == {0} for spec in plan.specs) == [False, True]
    line = refusal(language.TASK, num_agents=2, partition="by-label")
    assert line.startswith("partition.name = 'by-label': this data set has no class label for each sample; allowed is")
