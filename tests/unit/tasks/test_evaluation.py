"""A figure of a test set is that of the whole set at once, however it is cut into batches."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from ray_pcasgd.base.randomness import torch_generator
from ray_pcasgd.tasks import Task, tallies
from ray_pcasgd.tasks.objective import (
    Accuracy,
    CrossEntropy,
    CustomMeasure,
    MeanAbsoluteError,
    MeanSquaredError,
    TopAccuracy,
    evaluate,
    examine,
)
from ray_pcasgd.tasks.samples import Samples, TaskData


def normal(*shape: int) -> Tensor:
    return torch.empty(shape).normal_(generator=torch_generator(0, "test", *shape))


def labels_of(*shape: int, classes: int = 3) -> Tensor:
    return torch.randint(classes, shape, generator=torch_generator(1, "test", *shape))


def rmse(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean().sqrt()


def f1(outputs: Tensor, targets: Tensor) -> float:
    return float(f1_score(targets, outputs.argmax(1), average="macro"))


def auc(outputs: Tensor, targets: Tensor) -> Any:
    return roc_auc_score(targets, outputs)  # a number of NumPy's


class Largest:
    """A metric as torchmetrics' are: it takes in batches, and is no mean of what it is of each."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.reset()

    def reset(self) -> None:
        self.largest = 0.0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        assert outputs.device.type == targets.device.type == "cpu"
        self.largest = max(self.largest, float((outputs - targets).abs().max()))

    def compute(self) -> Tensor:
        return torch.tensor(self.scale * self.largest)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        raise AssertionError("a metric is updated, not called")


SIZES = (1, 7, 128, 300)


@pytest.mark.parametrize("size", SIZES)
def test_a_root_mean_square_is_that_of_all_samples(size: int) -> None:
    outputs, targets = normal(300), torch.arange(300.0) / 50
    for function in (rmse, f"{__name__}:rmse"):
        result = evaluate(nn.Identity(), Samples(outputs, targets), CustomMeasure(function=function), batch_size=size)
        assert result["loss"] == pytest.approx(rmse(outputs, targets).item(), rel=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_f1_and_auc_are_those_of_all_samples_though_a_batch_holds_one_class_alone(size: int) -> None:
    outputs, labels = normal(300, 3), torch.arange(300) // 100
    metrics = (CustomMeasure(function=f1), CustomMeasure(function=auc, label="area"))
    result = evaluate(nn.Identity(), Samples(outputs, labels), CrossEntropy(), metrics[:1], batch_size=size)
    assert result["f1"] == f1_score(labels, outputs.argmax(1), average="macro")
    scores, halves = normal(300), (torch.arange(300) >= 200).long()
    result = evaluate(nn.Identity(), Samples(scores, halves), MeanSquaredError(), metrics[1:], batch_size=size)
    assert result["area"] == roc_auc_score(halves, scores)


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 45), st.integers(0, 10**6), st.sampled_from([None, -100, 2]))
def test_labels_that_do_not_count_are_left_out_of_loss_and_metrics_alike(
    number: int, size: int, seed: int, ignored: int | None
) -> None:
    random = torch_generator(seed, "test")
    outputs, labels = normal(number, 6, 4), torch.randint(4, (number, 6), generator=random)
    lengths = torch.randint(7, (number, 1), generator=random)
    labels = torch.where(torch.arange(6) < lengths, labels, -100 if ignored is None else ignored)
    task = Task(
        loss={"name": "cross-entropy", "ignore_index": ignored, "label_smoothing": 0.1},
        metrics=("accuracy", {"name": "top-accuracy", "k": 2}, {"name": "cross-entropy"}),
    )
    data = TaskData(Samples(outputs, labels), Samples(outputs, labels), 4)
    whole = task.examine(nn.Identity(), data).values
    cut = evaluate(nn.Identity(), data.test, task.loss, (), batch_size=size)
    assert cut["loss"] == pytest.approx(whole["loss"], abs=1e-12, nan_ok=True)

    scores, flat = outputs.reshape(-1, 4), labels.reshape(-1)
    counted = flat != (-100 if ignored is None else ignored)
    if not counted.any():
        assert all(math.isnan(value) for value in whole.values())
        return
    scores, flat = scores[counted], flat[counted]
    assert whole["loss"] == pytest.approx(functional.cross_entropy(scores, flat, label_smoothing=0.1).item(), abs=1e-5)
    assert whole["cross-entropy"] == pytest.approx(functional.cross_entropy(scores, flat).item(), abs=1e-5)
    assert whole["accuracy"] == pytest.approx((scores.argmax(1) == flat).double().mean().item())
    best = (scores.topk(2).indices == flat[:, None]).any(1)
    assert whole["top-2-accuracy"] == pytest.approx(best.double().mean().item())


def test_a_metric_may_leave_out_another_label_than_the_loss() -> None:
    outputs, labels = torch.eye(3)[[0, 1, 2]], torch.tensor([0, 0, 2])
    task = Task(loss={"name": "cross-entropy", "ignore_index": 0}, metrics=("accuracy",))
    data = TaskData(Samples(outputs, labels), Samples(outputs, labels), 3)
    assert task.examine(nn.Identity(), data).values["accuracy"] == 1.0
    own = Task(loss=task.loss, metrics=({"name": "accuracy", "ignore_index": 2},))
    assert own.examine(nn.Identity(), data).values["accuracy"] == 0.5


@pytest.mark.parametrize(
    "measure", [CrossEntropy(), Accuracy(), TopAccuracy(), MeanSquaredError(), MeanAbsoluteError()]
)
def test_a_test_set_of_nothing_gives_no_number(measure: Any) -> None:
    result = evaluate(nn.Identity(), Samples(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)), measure)
    assert math.isnan(result["loss"])
    for own in (
        CustomMeasure(function=rmse),
        CustomMeasure(function=Largest),
        CustomMeasure(function=f1, over="batches"),
    ):
        assert math.isnan(evaluate(nn.Identity(), Samples(torch.zeros(0), torch.zeros(0)), own)["loss"])


def test_where_no_target_counts_a_line_says_so() -> None:
    nothing = Samples(torch.zeros(4, 3), torch.full((4,), -100))
    values, remarks = examine(nn.Identity(), nothing, CrossEntropy(), (Accuracy(),))
    assert all(math.isnan(value) for value in values.values())
    assert remarks == (
        "task.loss is not a number, since no test target counts",
        "task.metrics: accuracy is not a number, since no test target counts",
    )
    assert examine(nn.Identity(), Samples(torch.zeros(4, 3), labels_of(4)), CrossEntropy()).remarks == ()


def test_metrics_that_take_in_batches_themselves_work_as_they_are() -> None:
    samples = Samples(torch.tensor([1.0, 5.0, 2.0]), torch.tensor([1.0, 1.0, 4.0]))
    mine = Largest()
    mine.update(torch.tensor([9.0]), torch.tensor([0.0]))
    by_path = {"name": "custom", "function": f"{__name__}:Largest", "arguments": {"scale": 10.0}, "label": "scaled"}
    task = Task(loss="mse", metrics=(mine, by_path, {"name": "custom", "function": Largest, "label": "by class"}))
    data = TaskData(samples, samples, None)
    for _ in range(2):  # nothing is left from one evaluation to the next
        values = evaluate(nn.Identity(), data.test, task.loss, task.metrics, batch_size=1)
        assert values["Largest"] == values["by class"] == 4.0
        assert values["scaled"] == 40.0
    assert mine.largest == 9.0
    assert task.metrics[0](samples.inputs, samples.targets).item() == 4.0


def test_functions_and_classes_take_arguments() -> None:
    outputs, targets = normal(9, 3), labels_of(9)
    smoothed = CustomMeasure(function="torch.nn.functional:cross_entropy", arguments={"label_smoothing": 0.3})
    expected = functional.cross_entropy(outputs, targets, label_smoothing=0.3)
    assert smoothed(outputs, targets).item() == expected.item()
    huber = CustomMeasure(function="torch.nn:HuberLoss", arguments={"delta": 0.5})
    assert huber.key == "HuberLoss"
    values = normal(8).requires_grad_()
    loss = huber(values, torch.zeros(8))
    assert loss.requires_grad
    assert loss.item() == functional.huber_loss(values, torch.zeros(8), delta=0.5).item()
    with pytest.raises(ValueError, match="the metric is made already; allowed are no arguments"):
        CustomMeasure(function=Largest(), arguments={"scale": 2.0})(outputs, outputs)


def test_a_mean_over_batches_is_taken_where_it_is_asked_for() -> None:
    outputs, targets = normal(300), torch.arange(300.0) / 50
    samples = Samples(outputs, targets)
    measure = CustomMeasure(function=rmse, over="batches")
    parts = [
        (rmse(outputs[i : i + 128], targets[i : i + 128]).item(), len(outputs[i : i + 128])) for i in (0, 128, 256)
    ]
    expected = sum(value * size for value, size in parts) / 300
    assert evaluate(nn.Identity(), samples, measure)["loss"] == pytest.approx(expected)


def test_outputs_that_take_much_memory_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = Samples(normal(300), torch.zeros(300))
    monkeypatch.setattr(tallies, "GATHERED_BYTES", 300 * 8 - 1)
    measures: dict[str, Any] = {"loss": MeanSquaredError(), "metrics": (CustomMeasure(function=rmse),)}
    (remark,) = examine(nn.Identity(), samples, **measures).remarks
    assert remark == (
        "task.metrics: rmse needs the outputs of all test samples at once, 0.0 GiB in each process that tests; over = "
        "'batches' takes a mean over batches instead"
    )
    monkeypatch.setattr(tallies, "GATHERED_BYTES", 300 * 8)
    assert examine(nn.Identity(), samples, **measures).remarks == ()


class Two(nn.Module):
    """Puts out a mapping and a tuple, as a user's own model may, for a user's own loss."""

    def __init__(self, ragged: bool = False) -> None:
        super().__init__()
        self.ragged = ragged

    def forward(self, inputs: Tensor) -> dict[str, Any]:
        return {"mean": inputs, "rest": (inputs.square(), inputs.sum() if self.ragged else inputs)}


def of_two(outputs: dict[str, Any], targets: Tensor) -> Tensor:
    return rmse(outputs["mean"], targets) + outputs["rest"][0].mean()


def test_outputs_may_be_nested() -> None:
    inputs, targets = normal(300), torch.zeros(300)
    whole = CustomMeasure(function=of_two)
    value = evaluate(Two(), Samples(inputs, targets), whole)["loss"]
    assert value == pytest.approx(of_two(Two()(inputs), targets).item(), rel=1e-6)
    with pytest.raises(
        ValueError, match=r"do not make one whole \(.*\); allowed where they do not is over = 'batches'"
    ):
        evaluate(Two(ragged=True), Samples(inputs, targets), whole)
    over_batches = CustomMeasure(function=of_two, over="batches")
    assert math.isfinite(evaluate(Two(ragged=True), Samples(inputs, targets), over_batches)["loss"])


def fails(outputs: Tensor, targets: Tensor) -> Tensor:
    raise KeyError("mine")


def several(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs


@pytest.mark.parametrize("over", ["whole", "batches"])
def test_what_a_users_measure_raises_stays_what_it_is_and_names_the_setting(over: Any) -> None:
    samples = Samples(normal(5), torch.zeros(5))
    with pytest.raises(KeyError, match="mine") as raised:
        evaluate(nn.Identity(), samples, MeanSquaredError(), (CustomMeasure(function=fails, over=over),))
    assert raised.value.__notes__ == ["task.metrics: fails"]
    with pytest.raises(ValueError, match=r"comes to a tensor of shape \(5,\); allowed is one number") as other:
        evaluate(nn.Identity(), samples, CustomMeasure(function=several, over=over))
    assert other.value.__notes__ == ["task.loss"]


def test_figures_are_summed_in_double_precision() -> None:
    targets = torch.full((40_000,), 0.1)
    value = evaluate(nn.Identity(), Samples(torch.zeros(40_000), targets), MeanAbsoluteError(), batch_size=3)["loss"]
    assert value == pytest.approx(float(targets[0]), rel=1e-12)
