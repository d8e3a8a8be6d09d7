import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from ray_pcasgd.base.randomness import torch_generator
from ray_pcasgd.tasks.normalization import Normalization
from ray_pcasgd.tasks.objective import (
    Accuracy,
    CrossEntropy,
    CustomMeasure,
    Loss,
    MeanAbsoluteError,
    MeanSquaredError,
    Metric,
    TopAccuracy,
    evaluate,
)
from ray_pcasgd.tasks.samples import Samples


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.empty(shape).normal_(generator=torch_generator(seed, "test"))


def labels_of(*shape: int, classes: int, seed: int = 0) -> Tensor:
    return torch.randint(classes, shape, generator=torch_generator(seed, "test"))


def slow_cross_entropy(scores: list[list[float]], labels: list[int], smoothing: float) -> float:
    total = 0.0
    for row, label in zip(scores, labels, strict=True):
        logarithms = [value - math.log(sum(math.exp(other) for other in row)) for value in row]
        weights = [smoothing / len(row) + (1 - smoothing) * (index == label) for index in range(len(row))]
        total -= sum(weight * logarithm for weight, logarithm in zip(weights, logarithms, strict=True))
    return total / len(labels)


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(2, 5), st.sampled_from([0.0, 0.1, 0.9]), st.integers(0, 1000))
def test_cross_entropy_and_accuracies_equal_a_slow_reference(
    number: int, classes: int, smoothing: float, seed: int
) -> None:
    outputs, targets = normal(number, classes, seed=seed), labels_of(number, classes=classes, seed=seed)
    rows, labels = outputs.tolist(), targets.tolist()
    expected = slow_cross_entropy(rows, labels, smoothing)
    assert CrossEntropy(label_smoothing=smoothing)(outputs, targets).item() == pytest.approx(expected, abs=1e-5)
    for k, metric in ((1, Accuracy()), (2, TopAccuracy(k=2)), (classes, TopAccuracy(k=9))):
        ranks = [sum(other > row[label] for other in row) for row, label in zip(rows, labels, strict=True)]
        assert metric(outputs, targets).item() == pytest.approx(sum(rank < k for rank in ranks) / number)


def test_a_language_models_positions_count_alike() -> None:
    outputs, targets = normal(3, 4, 5), labels_of(3, 4, classes=5)
    for measure in (CrossEntropy(), Accuracy(), TopAccuracy(k=2)):
        whole = measure(outputs, targets)
        parts = [measure(outputs[i, j : j + 1], targets[i, j : j + 1]) for i in range(3) for j in range(4)]
        assert whole.item() == pytest.approx(torch.stack(parts).mean().item(), abs=1e-6)


def test_errors_do_not_broadcast_a_column_against_a_row() -> None:
    targets = torch.tensor([0.0, 1.0, 2.0])
    outputs = torch.tensor([[0.0], [1.0], [4.0]])
    assert MeanSquaredError()(outputs, targets).item() == pytest.approx(4 / 3)
    assert MeanAbsoluteError()(outputs, targets).item() == pytest.approx(2 / 3)
    for measure in (MeanSquaredError(), MeanAbsoluteError()):
        with pytest.raises(ValueError, match="allowed are equally many numbers"):
            measure(torch.zeros(3, 2), targets)
        with pytest.raises(ValueError, match="allowed are equally many numbers"):
            measure(torch.zeros(2, 3), torch.zeros(3, 2))


@pytest.mark.parametrize("measure", [CrossEntropy(), Accuracy(), TopAccuracy()])
@pytest.mark.parametrize("targets", [torch.zeros(3), torch.zeros(3, 1, dtype=torch.int64)])
def test_labels_that_are_none_are_refused(measure: CrossEntropy, targets: Tensor) -> None:
    with pytest.raises(ValueError, match="allowed are integer labels"):
        measure(torch.zeros(3, 4), targets)


def largest_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs[:, 0] - targets).abs().max()


def test_a_users_own_measure_comes_as_object_or_as_import_path() -> None:
    outputs, targets = torch.tensor([[0.0], [3.0]]), torch.tensor([1.0, 1.0])
    by_object = CustomMeasure(function=largest_error)
    assert by_object.key == "largest_error"
    assert by_object(outputs, targets).item() == 2.0
    dumped = by_object.model_dump(mode="json")
    assert (dumped["name"], dumped["function"]) == ("custom", f"{__name__}:largest_error")
    by_path = CustomMeasure(function="torch.nn.functional:l1_loss")
    assert by_path.key == "l1_loss"
    assert by_path(outputs[:, 0], targets).item() == 1.5


def test_settings_read_a_bare_name_and_refuse_bad_values() -> None:
    losses: TypeAdapter[Loss] = TypeAdapter(Loss)
    metrics: TypeAdapter[Metric] = TypeAdapter(Metric)
    assert losses.validate_python("mse") == MeanSquaredError()
    assert metrics.validate_python({"name": "top-accuracy", "k": 3}).key == "top-3-accuracy"
    with pytest.raises(ValidationError, match="label_smoothing"):
        losses.validate_python({"name": "cross-entropy", "label_smoothing": 1.0})
    with pytest.raises(ValidationError, match="'cross-entropy', 'mse', 'custom'"):
        losses.validate_python("accuracy")


class Recorder(nn.Module):
    """Dropout and BatchNorm would tell training from evaluation; so does this, exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.sizes: list[int] = []

    def forward(self, inputs: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.sizes.append(len(inputs))
        outputs: Tensor = self.norm(self.linear(inputs))
        return outputs


def test_evaluation_is_the_mean_over_all_samples_whatever_the_batches() -> None:
    model = Recorder()
    model.norm.eval()
    model.linear.train()
    buffers = model.norm.running_mean.clone()
    samples = Samples(normal(23, 4), labels_of(23, classes=3))
    metrics = (Accuracy(), TopAccuracy(k=2))
    results = [evaluate(model, samples, CrossEntropy(), metrics, batch_size=size) for size in (5, 23, 100)]
    assert model.sizes == [5, 5, 5, 5, 3, 23, 23]
    assert list(results[0]) == ["loss", "accuracy", "top-2-accuracy"]
    with torch.no_grad():
        outputs = model.norm(model.linear(samples.inputs)).tolist()
    expected = slow_cross_entropy(outputs, samples.targets.tolist(), 0.0)
    right = sum(row.index(max(row)) == label for row, label in zip(outputs, samples.targets.tolist(), strict=True))
    for result in results:
        assert result["loss"] == pytest.approx(expected, abs=1e-5)
        assert result["accuracy"] == pytest.approx(right / 23, abs=1e-6)
    assert (model.training, model.linear.training, model.norm.training) == (True, True, False)
    assert torch.equal(model.norm.running_mean, buffers)


def test_evaluation_restores_the_mode_after_an_error() -> None:
    model = Recorder().train()
    with pytest.raises(ValueError, match="allowed are integer labels"):
        evaluate(model, Samples(normal(3, 4), normal(3)), CrossEntropy())
    assert model.training
    assert model.norm.training


def test_evaluation_transforms_stored_inputs() -> None:
    white = Samples(torch.full((4, 1, 2, 2), 255, dtype=torch.uint8), torch.full((4, 4), 3.0))
    result = evaluate(nn.Flatten(), white, MeanSquaredError(), transform=Normalization((0.5,), (0.25,)))
    assert result == {"loss": 1.0}
