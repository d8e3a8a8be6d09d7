"""From stored inputs to what a model computes with: images of bytes become standardized floats."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalization:
    """Scales uint8 images (n, channels, height, width) to [0, 1] and standardizes them; other inputs pass unchanged.

    With an empty ``mean`` images are scaled only.
    """

    mean: tuple[float, ...] = ()
    """Per channel, in units of the scaled image."""
    std: tuple[float, ...] = ()
    """Per channel, above 0."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return float32 inputs of the same shape where ``inputs`` is uint8, else ``inputs`` itself."""
        if inputs.dtype != torch.uint8:
            return inputs
        scaled = inputs.to(torch.float32).div_(255)
        if not self.mean:
            return scaled
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.mean, device=inputs.device).reshape(shape)
        std = torch.tensor(self.std, device=inputs.device).reshape(shape)
        return scaled.sub_(mean).div_(std)


def channel_statistics(images: Tensor) -> Normalization:
    """Return mean and standard deviation per channel of uint8 images (n, channels, height, width), scaled to [0, 1].

    A channel that never varies gets the standard deviation 1.
    """
    # Counts of the 256 values are exact, whatever the number of images and of threads.
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    shares = counts / counts.sum(1, keepdim=True)
    mean = (shares * values).sum(1)
    deviation = (shares * (values - mean[:, None]) ** 2).sum(1).sqrt()
    deviation = torch.where(deviation > 0, deviation, 1.0)
    return Normalization(tuple(mean.tolist()), tuple(deviation.tolist()))
