"""Random crops and flips of whole batches of images."""

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ray_pcasgd.base.settings import Settings


class Augmentation(Settings):
    """Random changes of training images (n, channels, height, width); by default there are none."""

    crop_padding: int = Field(0, ge=0, le=1000)
    """Pixels of black added to each side before a crop of the original size is drawn for each image; 0 is no crop."""
    flip: bool = False
    """Whether each image is mirrored left to right with probability 1/2."""

    @property
    def is_any(self) -> bool:
        """Whether images are changed at all."""
        return self.crop_padding > 0 or self.flip

    def apply(self, images: Tensor, random: torch.Generator) -> Tensor:
        """Return the batch with every image cropped and flipped by its own draw.

        Raises:
            ValueError: A crop or flip is asked for inputs that are no batch of images.

        """
        if not self.is_any:
            return images
        if images.ndim != 4:
            raise ValueError(
                f"task.augmentation = {self}: inputs of shape {tuple(images.shape[1:])} are no images; "
                "allowed are crop_padding = 0 and flip = false"
            )
        number, channels, height, width = images.shape
        padding = self.crop_padding
        top = torch.randint(2 * padding + 1, (number, 1), generator=random)
        left = torch.randint(2 * padding + 1, (number, 1), generator=random)
        mirrored = torch.randint(2 if self.flip else 1, (number, 1), generator=random) == 1
        column = torch.arange(width)
        rows = top + torch.arange(height)
        columns = left + torch.where(mirrored, width - 1 - column, column)
        padded = functional.pad(images, (padding,) * 4)
        # One gather over flat pixels does crop and flip, in a seventh of the time of indexing by four tensors.
        pixels = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
        pixels = pixels.reshape(number, 1, height * width).expand(-1, channels, -1)
        return padded.flatten(2).gather(2, pixels).reshape(images.shape)
