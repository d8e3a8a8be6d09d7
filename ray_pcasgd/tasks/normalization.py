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


def channel_statistics(images: Tensor, chunk: int = 2048) -> Normalization:
    """Return mean and standard deviation per channel of uint8 images (n, channels, height, width).

    A channel that never varies gets the standard deviation 1.
    """
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for part in torch.split(images, chunk):
        # Float32 sums of at most 2048 images' rows, then float64: exact enough, and a tenth of the time.
        scaled = part.to(torch.float32).div_(255)
        total += scaled.sum(-1).sum((0, 2), dtype=torch.float64)
        squares += scaled.square_().sum(-1).sum((0, 2), dtype=torch.float64)
    count = images.numel() / images.shape[1]
    mean = total / count
    deviation = (squares / count - mean**2).clamp_min(0).sqrt()
    deviation = torch.where(deviation > 1e-6, deviation, 1.0)
    return Normalization(tuple(mean.tolist()), tuple(deviation.tolist()))
