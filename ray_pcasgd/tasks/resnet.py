"""The residual networks for 32x32 images: He et al. (CVPR 2016), section 4.2, and He et al. (ECCV 2016)."""

import torch
from torch import Tensor, nn
from torch.nn import functional


def he_initialize(network: nn.Module) -> None:
    """Draw convolutions from He et al.'s (ICCV 2015) normal distribution; leave the rest as PyTorch made it."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _convolution(narrow: int, wide: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(narrow, wide, kernel_size=3, stride=stride, padding=1, bias=False)


class _Shortcut(nn.Module):
    """Option A of the paper: every ``stride``-th pixel, and zeros for the channels that are new; no parameters."""

    def __init__(self, narrow: int, wide: int, stride: int) -> None:
        super().__init__()
        self.new = wide - narrow
        self.stride = stride

    def forward(self, images: Tensor) -> Tensor:
        thinned = images[:, :, :: self.stride, :: self.stride]
        return functional.pad(thinned, (0, 0, 0, 0, 0, self.new))


class _Block(nn.Module):
    """Two convolutions, each followed by BatchNorm; ReLU after the first and after the sum."""

    def __init__(self, narrow: int, wide: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(narrow, wide, stride)
        self.norm1 = nn.BatchNorm2d(wide)
        self.conv2 = _convolution(wide, wide)
        self.norm2 = nn.BatchNorm2d(wide)
        self.shortcut = _Shortcut(narrow, wide, stride)

    def forward(self, images: Tensor) -> Tensor:
        residual = functional.relu(self.norm1(self.conv1(images)))
        residual = self.norm2(self.conv2(residual))
        return functional.relu(residual + self.shortcut(images))


class _PreactivatedBlock(nn.Module):
    """BatchNorm and ReLU before each of two convolutions; nothing after the sum (ECCV 2016, figure 1b)."""

    def __init__(self, narrow: int, wide: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(narrow)
        self.conv1 = _convolution(narrow, wide, stride)
        self.norm2 = nn.BatchNorm2d(wide)
        self.conv2 = _convolution(wide, wide)
        self.shortcut = _Shortcut(narrow, wide, stride)

    def forward(self, images: Tensor) -> Tensor:
        residual = self.conv1(functional.relu(self.norm1(images)))
        residual = self.conv2(functional.relu(self.norm2(residual)))
        return torch.add(residual, self.shortcut(images))


class CifarResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels with ``(depth - 2) / 6`` blocks each, average pooling, a linear layer."""

    def __init__(self, depth: int, input_channels: int, num_outputs: int, preactivated: bool) -> None:
        super().__init__()
        block = _PreactivatedBlock if preactivated else _Block
        self.stem = _convolution(input_channels, 16)
        # A pre-activated network has its first and last normalization outside the blocks.
        self.stem_norm = nn.Identity() if preactivated else nn.Sequential(nn.BatchNorm2d(16), nn.ReLU())
        blocks: list[nn.Module] = []
        narrow = 16
        for wide, stride in ((16, 1), (32, 2), (64, 2)):
            for index in range((depth - 2) // 6):
                blocks.append(block(narrow, wide, stride if index == 0 else 1))
                narrow = wide
        self.blocks = nn.Sequential(*blocks)
        self.final_norm = nn.Sequential(nn.BatchNorm2d(64), nn.ReLU()) if preactivated else nn.Identity()
        self.classifier = nn.Linear(64, num_outputs)
        he_initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return outputs (n, num_outputs) for images (n, channels, height, width)."""
        features = self.final_norm(self.blocks(self.stem_norm(self.stem(images))))
        outputs: Tensor = self.classifier(torch.mean(features, dim=(2, 3)))
        return outputs
