"""torchvision's ResNet-18 for images of 32 x 32 pixels."""

from torch import nn
from torchvision.models import ResNet, resnet18


def cifar_resnet18(classes: int = 10) -> ResNet:
    """Return a new network; as usual for small images, its first layer is a 3x3 convolution, and nothing is pooled."""
    network = resnet18(num_classes=classes)
    network.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's own
    network.maxpool = nn.Identity()
    return network
