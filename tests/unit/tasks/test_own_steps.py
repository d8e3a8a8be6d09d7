"""What a user's own function measures: means by numbers of samples, and metrics over the whole test set."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, mean_absolute_error, roc_auc_score
from torch import Tensor, nn

from ray_pcasgd.base.randomness import generator
from ray_pcasgd.tasks import Task
from ray_pcasgd.tasks.samples import MapSamples, TaskData


class Scores:
    """Items with a score and a rare label, sorted so that most batches have one class alone."""

    def __init__(self, number: int) -> None:
        random = generator(0, "scores", number)
        self.labels = np.sort((random.random(number) < 0.3).astype(np.int64))
        # In [0, 1]: of a batch with other numbers, torchmetrics takes the sigmoid.
        self.scores = ((random.random(number) + 0.4 * self.labels) / 1.4).astype(np.float32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {"score": self.scores[place], "labels": int(self.labels[place])}


def measure(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
    given = (batch["score"], batch["labels"])
    error = (batch["score"] - batch["labels"]).abs().mean()
    return error, {"auroc": given, "f1": given, "error": error.item(), "mine": given}


def area(scores: Tensor, labels: Tensor) -> float:
    return float(roc_auc_score(labels, scores))


METRICS = [
    {"name": "custom", "function": "torchmetrics.classification:BinaryAUROC", "label": "auroc"},
    {"name": "custom", "function": "torchmetrics.classification:BinaryF1Score", "label": "f1"},
    {"name": "custom", "function": area, "label": "mine"},
]


def data_of(number: int) -> TaskData:
    return TaskData(MapSamples(Scores(number)), MapSamples(Scores(number)), None)


@pytest.mark.parametrize("batch_size", [1, 7, 128])
def test_metrics_are_those_of_the_whole_test_set_as_scikit_learn_has_them(batch_size: int) -> None:
    task = Task(step=measure, metrics=METRICS, test_batch_size=batch_size)
    scores, labels = Scores(90).scores, Scores(90).labels
    values = task.examine(nn.Identity(), data_of(90)).values
    assert list(values) == ["loss", "auroc", "f1", "error", "mine"]
    expected = roc_auc_score(labels, scores)
    assert 0.6 < expected < 0.95
    assert values["auroc"] == pytest.approx(expected, abs=1e-6)
    assert values["mine"] == pytest.approx(expected, abs=1e-9)
    assert values["f1"] == pytest.approx(f1_score(labels, scores > 0.5), abs=1e-6)
    assert values["loss"] == pytest.approx(mean_absolute_error(labels, scores), rel=1e-5)
    assert values["error"] == pytest.approx(values["loss"], rel=1e-6)


@given(st.integers(1, 40), st.integers(1, 50))
def test_means_count_every_sample_once(number: int, batch_size: int) -> None:
    task = Task(step=lambda model, batch: batch["score"].double().mean(), test_batch_size=batch_size)
    values = task.examine(nn.Identity(), data_of(number)).values
    assert values == {"loss": pytest.approx(float(Scores(number).scores.astype(np.float64).mean()), rel=1e-12)}


def test_evaluate_takes_the_place_of_the_step_and_leaves_modes_as_they_were() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Identity())
    model[1].eval()

    def evaluate(given: nn.Module, batch: Any) -> float:
        assert given is model
        assert not given.training
        assert not torch.is_grad_enabled()
        return 2.5

    task = Task(step=measure, evaluate=evaluate)
    assert task.examine(model, data_of(5)).values == {"loss": 2.5}
    assert [part.training for part in model.modules()] == [True, True, False]


def test_a_pair_with_an_evaluation_of_its_own_still_trains_by_model_and_loss() -> None:
    task = Task(evaluate=lambda model, batch: (model(batch[0]).mean(), {"rows": len(batch[0])}), test_batch_size=100)
    data = task.load()
    model = task.build_model(data, 0)
    inputs, targets = data.train.take(range(8))
    expected = nn.functional.cross_entropy(model(inputs), targets)
    assert torch.equal(task.loss_of(model, (inputs, targets)), expected)
    number = len(data.test)
    rows = (100 * (number // 100) * 100 + (number % 100) ** 2) / number
    assert task.examine(model, data).values["rows"] == pytest.approx(rows)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"f1": 0.5}, "returns a float for 'f1'; allowed is a tuple of what that metric of task.metrics takes in"),
        ({}, "returns no 'f1'; allowed is a tuple"),
        ({"f1": (1, 2), "other": (1, 2)}, "returns a tuple for 'other'; allowed are numbers, and tuples for the metri"),
        ({"f1": (1, 2), "loss": 3}, "names a value 'loss'; allowed are words other than 'loss'"),
        ({"f1": (1, 2), "a": torch.ones(2)}, r"a comes to a tensor of shape \(2,\); allowed is one number"),
    ],
)
def test_values_that_do_not_go_with_the_metrics_are_refused(values: dict[str, Any], expected: str) -> None:
    task = Task(step=lambda model, batch: (torch.tensor(1.0), values), metrics=METRICS[1:2])
    with pytest.raises(ValueError, match=f"^{expected}") as caught:
        task.examine(nn.Identity(), data_of(5))
    assert caught.value.__notes__ == ["task.step"]
