"""DenseNet-BC for 32x32 images: Huang, Liu, van der Maaten, Weinberger (CVPR 2017), section 4.1 and table 2."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ray_pcasgd.tasks.resnet import he_initialize


class _Layer(nn.Module):
    """BatchNorm, ReLU, 1x1 convolution to ``4 * growth`` channels; the same with 3x3 to ``growth``; concatenated."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * growth, kernel_size=1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, kernel_size=3, padding=1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        new = self.conv1(functional.relu(self.norm1(images)))
        new = self.conv2(functional.relu(self.norm2(new)))
        return torch.cat((images, new), dim=1)


class DenseNetBC(nn.Module):
    """Three dense blocks of ``(depth - 4) / 6`` layers; between them 1x1 convolutions halve channels and size."""

    def __init__(self, depth: int, growth: int, input_channels: int, num_outputs: int) -> None:
        super().__init__()
        channels = 2 * growth
        layers: list[nn.Module] = [nn.Conv2d(input_channels, channels, kernel_size=3, padding=1, bias=False)]
        for block in range(3):
            for _ in range((depth - 4) // 6):
                layers.append(_Layer(channels, growth))
                channels += growth
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
            if block < 2:
                layers += [nn.Conv2d(channels, channels // 2, kernel_size=1, bias=False), nn.AvgPool2d(2)]
                channels //= 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_outputs)
        he_initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return outputs (n, num_outputs) for images (n, channels, height, width)."""
        outputs: Tensor = self.classifier(torch.mean(self.features(images), dim=(2, 3)))
        return outputs
