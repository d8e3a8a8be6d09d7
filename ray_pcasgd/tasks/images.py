"""Encoded images to tensors, and what all image data sets have in common."""

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor

from ray_pcasgd.base.settings import Settings
from ray_pcasgd.tasks.normalization import Normalization, channel_statistics
from ray_pcasgd.tasks.samples import AnySamples, Samples, TaskData
from ray_pcasgd.tasks.trees import is_pair


class Standardized(Settings):
    """The settings of data whose uint8 images are standardized per channel."""

    mean: tuple[float, ...] = ()
    """Mean per channel of images in [0, 1]; empty: that of the training images, where they are in memory."""
    std: tuple[float, ...] = ()
    """Standard deviation per channel, above 0; given together with the mean."""

    @model_validator(mode="after")
    def _together(self) -> "Standardized":
        if len(self.mean) != len(self.std) or any(value <= 0 for value in self.std):
            raise ValueError(f"mean = {self.mean}, std = {self.std}: allowed are equally many, std above 0")
        return self

    def task_data(
        self, train: AnySamples, test: AnySamples, num_classes: int | None, classes: tuple[str, ...] = ()
    ) -> TaskData:
        """Return the data set with its normalization.

        Raises:
            ValueError: A mean is given for inputs other than uint8 images with as many channels.

        """
        batch = train.take([0])
        first = batch[0] if is_pair(batch) else torch.empty(0)
        channels = first.shape[1] if first.dtype == torch.uint8 and first.ndim == 4 else 0
        if self.mean and len(self.mean) != channels:
            raise ValueError(
                f"task.data.mean = {self.mean}: allowed is one for each channel of uint8 images, here {channels}"
            )
        normalization = Normalization(self.mean, self.std)
        if not self.mean and channels and isinstance(train, Samples):
            normalization = channel_statistics(train.inputs)
        return TaskData(train, test, num_classes, normalization, classes)


def channels_first(images: np.ndarray) -> Tensor:
    """Return images (n, height, width) or (n, height, width, channels) as a tensor (n, channels, height, width)."""
    if images.ndim == 3:
        images = images[..., None]
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def decode(encoded: Iterable[bytes], number: int, source: str) -> Tensor:
    """Return ``number`` encoded images of one size as uint8 (n, channels, height, width).

    Gray where the first image is, else RGB.

    Raises:
        ValueError: One cannot be decoded, or the sizes differ.

    """
    from PIL import Image, UnidentifiedImageError

    result = np.empty((0, 0, 0), np.uint8)
    mode, size = "", (0, 0)
    for index, data in enumerate(encoded):
        try:
            image: Any = Image.open(io.BytesIO(data))
            if index == 0:
                mode, size = ("L" if image.mode == "L" else "RGB"), image.size
                result = np.empty((number, size[1], size[0], len(mode)), np.uint8)
            pixels = np.asarray(image.convert(mode))
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{source}: image {index} cannot be decoded ({error})") from error
        if image.size != size:
            raise ValueError(f"{source}: image {index} has {image.size} pixels; allowed is {size}, as the first has")
        result[index] = pixels.reshape(result.shape[1:])
    return channels_first(result)
