"""The learning task: data, model, loss and metrics, in one piece of settings."""

from functools import partial
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ray_pcasgd.base.imports import CallableOrPath, import_object
from ray_pcasgd.base.randomness import generator, stream_seed
from ray_pcasgd.base.settings import Settings
from ray_pcasgd.tasks.augmentation import Augmentation
from ray_pcasgd.tasks.batches import Batches
from ray_pcasgd.tasks.datasets import CustomData, Data, Digits
from ray_pcasgd.tasks.drawing import seeded
from ray_pcasgd.tasks.loading import Loading
from ray_pcasgd.tasks.models import MLP, CustomModel, Model, is_unshaped, shaping
from ray_pcasgd.tasks.objective import Accuracy, CrossEntropy, Evaluation, Loss, Measure, Metric, examine, with_ignored
from ray_pcasgd.tasks.precision import require_trainable
from ray_pcasgd.tasks.ray_stream import StreamBatches, StreamedImages
from ray_pcasgd.tasks.samples import MapSamples, TaskData
from ray_pcasgd.tasks.step import examine_by, loss_of, step_of_model
from ray_pcasgd.tasks.trees import Batch, form_of, is_pair, mapped, num_samples

__all__ = ["Task", "TaskData"]


class Task(Settings):
    """A learning task; the embedded one classifies handwritten digits."""

    data: Data = Digits()
    """The data set."""
    model: Model = MLP()
    """The model that is trained."""
    loss: Loss = CrossEntropy()
    """The loss that is minimized, of a model's outputs and the targets."""
    metrics: tuple[Metric, ...] | None = None
    """Metrics of the test samples, which are reported together with the loss. Not given: accuracy; but none with a
    ``step`` or ``evaluate`` of your own, or where batches are no pairs of tensors."""
    step: CallableOrPath | None = None
    """What is minimized instead: ``(model, batch) -> loss``, or ``(loss, {metric: value})``, or the import path of it;
    the values count in evaluations alone. Not given: ``loss`` of batches that are pairs of tensors (inputs, targets);
    of others the ``.loss`` of what the model returns, called with a mapping as keyword arguments, with a tuple or list
    as positional ones."""
    evaluate: CallableOrPath | None = None
    """``(model, batch) -> loss`` or ``(loss, {metric: value})`` for evaluations, or the import path of it. Loss and
    numbers are averaged over the test samples; a tuple is what the metric of that name in ``metrics`` takes in. Not
    given: the same as in training; where the model computes the loss, ``metrics`` take its ``.logits`` and the batch's
    ``labels``."""
    test_batch_size: int = Field(128, ge=1, le=1_000_000)
    """Samples of one batch in evaluations. It changes no figure of the short way, model, loss and metrics."""
    augmentation: Augmentation = Augmentation()
    """Random changes of training images."""
    loading: Loading = Loading()
    """Whether training batches are made in the background, for items that take their time: decoded images, say."""

    validation_share: float = Field(0.0, ge=0, lt=1)
    """Share of the training samples that is held out, and takes the place of the test samples: for choosing settings
    without a look at the test samples. They do not depend on the run's seed. 0: no samples are held out."""

    @model_validator(mode="after")
    def _one_loss(self) -> "Task":
        if self.step is not None and self.loss != CrossEntropy():
            raise ValueError(f"loss = {self.loss.name!r}: allowed together with step is none; the step's is minimized")
        return self

    @model_validator(mode="after")
    def _different_keys(self) -> "Task":
        keys = ["loss", *(metric.key for metric in self.measured)]
        if len(set(keys)) < len(keys):
            raise ValueError(
                f"metrics = {keys[1:]}: allowed are different names, and none of them 'loss'; label gives one of your "
                "own another name"
            )
        return self

    def load(self) -> TaskData:
        """Return the data.

        Raises:
            ValueError: It is missing, or loss, metrics or augmentation do not suit it.

        """
        self.loading.require_processes()
        data = self._validating(self.data.load())
        if self.loading.workers and isinstance(data.train, StreamedImages):
            raise ValueError(f"task.loading.workers = {self.loading.workers}: allowed with task.data.streamed is 0")
        if not data.are_pairs:
            self._check_short_way_settings(data)
            return data
        of_outputs: list[tuple[str, Measure]] = [("loss", self.loss)] if self.step is None else []
        of_outputs += [] if self.has_own_figures else [("metrics", metric) for metric in self.measured]
        for setting, measure in of_outputs:
            if data.num_classes is None and isinstance(measure, CrossEntropy | Accuracy):
                raise ValueError(f"task.{setting} = {measure.name!r}: the targets are no classes; allowed is 'mse'")
        # Tried once here, so that what cannot be cropped or flipped is refused before anything runs.
        self.augmentation.apply(data.train.take([0])[0], torch.Generator())
        return data

    def _check_short_way_settings(self, data: TaskData) -> None:
        """Raise ``ValueError`` where a setting has no meaning, because batches are no inputs and targets."""
        with seeded(0):
            form = form_of(data.train.take([0]))
        if self.augmentation != Augmentation():
            raise ValueError(
                f"task.augmentation = {self.augmentation}: batches are {form}; allowed there are crop_padding = 0 and "
                "flip = false"
            )
        if self.loss != CrossEntropy():
            raise ValueError(
                f"task.loss = {self.loss.name!r}: batches are {form}; allowed there is the model's own, or task.step"
            )
        if not isinstance(self.model, CustomModel):
            raise ValueError(f"task.model.name = {self.model.name!r}: batches are {form}; allowed there is 'custom'")

    def fitting(self, data: TaskData) -> "Task":
        """Return the task with the metrics that it measures of the data."""
        if self.metrics is not None:
            return self
        return self.model_copy(update={"metrics": self.measured if data.are_pairs else ()})

    @property
    def without_data(self) -> "Task":
        """The task with no data set of the user's own, for who has its data already: it is taken nowhere twice."""
        return self.model_copy(update={"data": Digits()}) if isinstance(self.data, CustomData) else self

    @property
    def measured(self) -> tuple[Metric, ...]:
        """The metrics, by default of pairs of tensors."""
        if self.metrics is not None:
            return self.metrics
        return () if self.has_own_figures else (Accuracy(),)

    def _validating(self, data: TaskData) -> TaskData:
        if not self.validation_share:
            return data
        if isinstance(data.train, StreamedImages):
            raise ValueError(f"task.validation_share = {self.validation_share:g}: allowed with streamed data is 0")
        number = len(data.train)
        held_out = round(self.validation_share * number)
        if not 0 < held_out < number:
            raise ValueError(
                f"task.validation_share = {self.validation_share:g}: allowed are shares that leave one of {number} "
                "training samples on each side"
            )
        order = generator(0, "validation").permutation(number)
        test, train = (data.train.subset(np.sort(part)) for part in (order[:held_out], order[held_out:]))
        remarks = data.remarks
        if isinstance(test, MapSamples) and test.is_random:
            remarks += (
                "task.validation_share: held-out items are random; every evaluation has the same draws of them",
            )
        return data._replace(train=train, test=test, remarks=remarks)

    def build_model(self, data: TaskData, seed: int) -> nn.Module:
        """Return the model for the data, its weights drawn from the seed's own stream.

        Raises:
            ValueError: The model does not take such inputs.

        """
        # One of the user's own is asked for no shapes.
        known = (data.input_shape, data.num_outputs) if data.are_pairs else ((), 0)
        model = self.model.build(*known, seed)
        if is_unshaped(model):
            # What has no shape yet has a type, by which its first forward pass would fail less clearly.
            require_trainable({name: p for name, p in model.named_parameters() if p.requires_grad})
            with seeded(stream_seed(seed, "lazy initialization")):
                batch = data.train.take(range(min(2, len(data.train))))
                try:
                    with shaping(model):
                        if self.is_short(batch):
                            model(data.normalization(batch[0]))
                        else:
                            self.loss_of(model, batch)
                except Exception as error:
                    reason = " ".join(f"{type(error).__name__}: {error}".split())
                    raise ValueError(
                        f"task.model.name = {self.model.name!r}: fails on the first samples, which give its layers "
                        f"their shapes ({reason})"
                    ) from error
        return model

    def batches(
        self, data: TaskData, shard: np.ndarray, batch_size: int, seed: int, agent: int, purpose: str = "batches"
    ) -> Batches | StreamBatches:
        """Return the mini-batches of one agent's shard, augmented and normalized."""
        if isinstance(data.train, StreamedImages):
            return StreamBatches(
                data.train, shard, batch_size, seed, agent, purpose, self.augmentation, data.normalization
            )
        return Batches(data.train, shard, batch_size, seed, agent, purpose, self.augmentation, data.normalization)

    @property
    def has_own_figures(self) -> bool:
        """Whether evaluations measure what a function of the user's returns."""
        return self.step is not None or self.evaluate is not None

    def is_short(self, batch: Batch) -> bool:
        """Return whether a batch is trained on by model and loss."""
        return self.step is None and is_pair(batch)

    def loss_of(self, model: Any, batch: Batch) -> Tensor:
        """Return the loss of a mini-batch that is minimized, of shape ().

        Raises:
            ValueError: there is none.

        """
        if self.is_short(batch):
            inputs, targets = batch
            return self.loss(model(inputs), targets)
        # Mappings of its own, since a step may take something out of them, and more are called with the same batch.
        own = mapped(lambda tensor: tensor, batch)
        return loss_of(step_of_model if self.step is None else import_object(self.step), model, own)

    def weight_of(self, batch: Batch) -> int:
        """Return how much a part of a batch counts, relative to the others: by default its number of samples."""
        return self.loss.weight(batch[1]) if self.is_short(batch) else num_samples(batch)

    def examine(self, model: nn.Module, data: TaskData, device: torch.device | str = "cpu") -> Evaluation:
        """Return the test loss, under ``loss``, and the metrics, each under its key, over all test samples at once.

        Together with remarks for their reader.
        """
        ignored = getattr(self.loss, "ignore_index", None)
        metrics = [with_ignored(metric, ignored) for metric in self.fitting(data).measured]
        how = (self.test_batch_size, device, data.normalization)
        if self.has_own_figures:
            setting = "task.step" if self.evaluate is None else "task.evaluate"
            step = import_object(self.step if self.evaluate is None else self.evaluate)
            return examine_by(step, setting, model, data.test, metrics, *how)
        if data.are_pairs:
            return examine(model, data.test, self.loss, metrics, *how)
        step = partial(step_of_model, metrics=[metric.key for metric in metrics])
        return examine_by(step, f"task.model.name = {self.model.name!r}", model, data.test, metrics, *how)
