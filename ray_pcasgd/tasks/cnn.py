"""A small convolutional network that trains fast on a CPU."""

from torch import Tensor, nn

from ray_pcasgd.tasks.resnet import he_initialize


class SmallCNN(nn.Module):
    """Blocks of 3x3 convolution, ReLU and 2x2 max-pooling, then one linear layer."""

    def __init__(
        self, input_shape: tuple[int, ...], channels: tuple[int, ...], num_outputs: int, batch_norm: bool
    ) -> None:
        super().__init__()
        depth, height, width = input_shape
        layers: list[nn.Module] = []
        for wide in channels:
            layers.append(nn.Conv2d(depth, wide, kernel_size=3, padding=1, bias=not batch_norm))
            layers += [nn.BatchNorm2d(wide)] if batch_norm else []
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
            depth, height, width = wide, height // 2, width // 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(depth * height * width, num_outputs)
        he_initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return outputs (n, num_outputs) for images (n, channels, height, width)."""
        features: Tensor = self.features(images)
        outputs: Tensor = self.classifier(features.flatten(1))
        return outputs
