"""The learning task: data, model, loss and metrics, in one piece of settings."""

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from ray_pcasgd.base.randomness import generator, stream_seed
from ray_pcasgd.base.settings import Settings
from ray_pcasgd.tasks.augmentation import Augmentation
from ray_pcasgd.tasks.batches import Batches
from ray_pcasgd.tasks.datasets import Data, Digits
from ray_pcasgd.tasks.drawing import seeded
from ray_pcasgd.tasks.models import MLP, Model, give_shape, is_unshaped
from ray_pcasgd.tasks.objective import Accuracy, CrossEntropy, Evaluation, Loss, Metric, examine, with_ignored
from ray_pcasgd.tasks.ray_stream import StreamBatches, StreamedImages
from ray_pcasgd.tasks.samples import MapSamples, TaskData

__all__ = ["Task", "TaskData"]


class Task(Settings):
    """A learning task; the embedded one classifies handwritten digits."""

    data: Data = Digits()
    """The data set."""
    model: Model = MLP()
    """The model that is trained."""
    loss: Loss = CrossEntropy()
    """The loss that is minimized."""
    metrics: tuple[Metric, ...] = (Accuracy(),)
    """Metrics of the test samples, which are reported together with the loss."""
    augmentation: Augmentation = Augmentation()
    """Random changes of training images."""

    validation_share: float = Field(0.0, ge=0, lt=1)
    """Share of the training samples that is held out, and takes the place of the test samples: for choosing settings
    without a look at the test samples. They do not depend on the run's seed. 0: no samples are held out."""

    @model_validator(mode="after")
    def _different_keys(self) -> "Task":
        keys = ["loss", *(metric.key for metric in self.metrics)]
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
        data = self._validating(self.data.load())
        for setting, measure in (("loss", self.loss), *(("metrics", metric) for metric in self.metrics)):
            if data.num_classes is None and isinstance(measure, CrossEntropy | Accuracy):
                raise ValueError(f"task.{setting} = {measure.name!r}: the targets are no classes; allowed is 'mse'")
        # Tried once here, so that what cannot be cropped or flipped is refused before anything runs.
        self.augmentation.apply(data.train.take([0])[0], torch.Generator())
        return data

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
        model = self.model.build(data.input_shape, data.num_outputs, seed)
        if is_unshaped(model):
            with seeded(stream_seed(seed, "lazy initialization")):
                inputs, _ = data.train.take(range(min(2, len(data.train))))
                try:
                    give_shape(model, data.normalization(inputs))
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

    def evaluate(self, model: nn.Module, data: TaskData, device: torch.device | str = "cpu") -> dict[str, float]:
        """Return the test loss, under ``loss``, and the metrics, each under its key, over all test samples at once."""
        return self.examine(model, data, device).values

    def examine(self, model: nn.Module, data: TaskData, device: torch.device | str = "cpu") -> Evaluation:
        """Return what ``evaluate`` does, with remarks for its reader."""
        ignored = getattr(self.loss, "ignore_index", None)
        metrics = [with_ignored(metric, ignored) for metric in self.metrics]
        return examine(model, data.test, self.loss, metrics, device=device, transform=data.normalization)
