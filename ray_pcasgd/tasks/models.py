"""The models that settings name, and how they are built: initialized alike from one seed, in whichever process."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import nn
from torch.nn.parameter import is_lazy

from ray_pcasgd.base.imports import CallableOrPath, import_object, import_path
from ray_pcasgd.base.randomness import stream_seed
from ray_pcasgd.base.settings import Settings, from_name
from ray_pcasgd.tasks.char_lm import CharLM
from ray_pcasgd.tasks.cnn import SmallCNN
from ray_pcasgd.tasks.densenet import DenseNetBC
from ray_pcasgd.tasks.drawing import seeded
from ray_pcasgd.tasks.mlp import mlp
from ray_pcasgd.tasks.resnet import CifarResNet

Shape = tuple[int, ...]


class _Model(Settings, ABC):
    def build(self, input_shape: Shape, num_outputs: int, seed: int) -> nn.Module:
        """Return the model for inputs of shape (n, *input_shape), its weights drawn from the seed's own stream.

        Raises:
            ValueError: The model does not take inputs of this shape.

        """
        # Layers draw their weights from torch's global generator and take no other: seeded here, then restored.
        with seeded(stream_seed(seed, "initialization")):
            return self._network(input_shape, num_outputs)

    @abstractmethod
    def _network(self, input_shape: Shape, num_outputs: int) -> nn.Module: ...

    def _channels(self, input_shape: Shape, smallest: int) -> int:
        if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
            raise ValueError(
                f"task.model.name = {self.name!r}: allowed are images of at least {smallest}x{smallest} pixels, "  # type: ignore[attr-defined]
                f"not inputs of shape {tuple(input_shape)}"
            )
        return input_shape[0]


class MLP(_Model):
    """A multilayer perceptron over flattened inputs."""

    name: Literal["mlp"] = "mlp"
    hidden: tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...] = Field((64, 64), max_length=1000)
    """Widths of the hidden layers; an empty list makes a linear model."""
    activation: Literal["relu", "tanh", "gelu"] = "relu"
    """The activation after each hidden layer."""

    def _network(self, input_shape: Shape, num_outputs: int) -> nn.Module:
        return mlp(math.prod(input_shape), self.hidden, num_outputs, self.activation)


class SmallCNNModel(_Model):
    """A small convolutional network: about 67 thousand parameters for 32x32 color images and 10 classes."""

    name: Literal["small-cnn"] = "small-cnn"
    channels: tuple[Annotated[int, Field(ge=1, le=10_000)], ...] = Field((32, 64, 64), min_length=1, max_length=10)
    """Channels of each convolution; each halves height and width."""
    batch_norm: bool = False
    """Whether BatchNorm follows each convolution."""

    def _network(self, input_shape: Shape, num_outputs: int) -> nn.Module:
        self._channels(input_shape, smallest=2 ** len(self.channels))
        return SmallCNN(input_shape, self.channels, num_outputs, self.batch_norm)


class ResNet20(_Model):
    """ResNet-20 for 32x32 images, 0.27 million parameters; parameter-free shortcuts, option A (He et al. 2016)."""

    name: Literal["resnet-20"] = "resnet-20"

    def _network(self, input_shape: Shape, num_outputs: int) -> nn.Module:
        return CifarResNet(20, self._channels(input_shape, smallest=4), num_outputs, preactivated=False)


class ResNet56(_Model):
    """ResNet-56 for 32x32 images, 0.85 million parameters; parameter-free shortcuts, option A (He et al. 2016)."""

    name: Literal["resnet-56"] = "resnet-56"

    def _network(self, input_shape: Shape, num_outputs: int) -> nn.Module:
        return CifarResNet(56, self._channels(input_shape, smallest=4), num_outputs, preactivated=False)


class PreResNet110(_Model):
    """Pre-activated ResNet-110, 1.7 million parameters; parameter-free shortcuts, option A (He et al., ECCV 2016)."""

    name: Literal["preresnet-110"] = "preresnet-110"

    def _network(self, input_shape: Shape, num_outputs: int) -> nn.Module:
        return CifarResNet(110, self._channels(input_shape, smallest=4), num_outputs, preactivated=True)


class DenseNet(_Model):
    """DenseNet-BC for 32x32 images, 0.77 million parameters at depth 100 and growth 12 (Huang et al. 2017)."""

    name: Literal["densenet-bc"] = "densenet-bc"
    depth: int = Field(100, ge=10, le=1000)
    """Number of layers: 4 more than a multiple of 6."""
    growth: int = Field(12, ge=1, le=1000)
    """Channels that each layer adds."""

    @model_validator(mode="after")
    def _whole_blocks(self) -> "DenseNet":
        if (self.depth - 4) % 6:
            raise ValueError(f"depth = {self.depth}: allowed is 4 more than a multiple of 6")
        return self

    def _network(self, input_shape: Shape, num_outputs: int) -> nn.Module:
        return DenseNetBC(self.depth, self.growth, self._channels(input_shape, smallest=4), num_outputs)


class Torchvision(_Model):
    """One of torchvision's classification networks, untrained."""

    name: Literal["torchvision"] = "torchvision"
    architecture: str
    """Its name in ``torchvision.models.list_models()``, for example ``resnet18``."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of its constructor."""

    def _network(self, input_shape: Shape, num_outputs: int) -> nn.Module:
        from torchvision import models  # seconds to import: only for those who use it

        if self.architecture not in models.list_models(module=models):
            allowed = ", ".join(models.list_models(module=models))
            raise ValueError(f"task.model.architecture = {self.architecture!r}: allowed are {allowed}")
        self._channels(input_shape, smallest=1)
        network: nn.Module = models.get_model(
            self.architecture, weights=None, num_classes=num_outputs, **self.arguments
        )
        for module in network.modules():
            if hasattr(module, "inplace"):
                # In-place activations cannot run over stacked parameters.
                setattr(module, "inplace", False)  # noqa: B010
        return network


class CharLMModel(_Model):
    """A small causal transformer over characters, about 100 thousand parameters."""

    name: Literal["char-lm"] = "char-lm"
    width: int = Field(64, ge=1, le=10_000)
    """Length of the vector that stands for one character."""
    layers: int = Field(2, ge=1, le=1000)
    """Number of transformer blocks."""
    heads: int = Field(4, ge=1)
    """Attention heads of each block; divides the width."""

    @model_validator(mode="after")
    def _whole_heads(self) -> "CharLMModel":
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads}: allowed are divisors of width = {self.width}")
        return self

    def _network(self, input_shape: Shape, num_outputs: int) -> nn.Module:
        if len(input_shape) != 1:
            raise ValueError(f"task.model.name = 'char-lm': allowed are sequences, not inputs of shape {input_shape}")
        return CharLM(input_shape[0], num_outputs, self.width, self.layers, self.heads)


class CustomModel(_Model):
    """The user's own network.

    Layers without shapes (``torch.nn.LazyLinear``) get them from the first two training samples, in evaluation mode.
    """

    name: Literal["custom"] = "custom"
    factory: CallableOrPath
    """A function or class that returns a new ``torch.nn.Module`` at each call, or its import path
    ``module:attribute``; or a module itself, of which every agent starts with a copy, weights and all."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the factory."""

    def _network(self, input_shape: Shape, num_outputs: int) -> nn.Module:
        maker = import_object(self.factory)
        try:
            network = copy.deepcopy(maker) if isinstance(maker, nn.Module) else maker(**self.arguments)
        except Exception as error:
            what = "a module that cannot be copied" if isinstance(maker, nn.Module) else "fails"
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"task.model.factory = {import_path(self.factory)!r}: {what} ({reason})") from error
        if isinstance(maker, nn.Module) and self.arguments:
            raise ValueError(f"task.model.arguments = {self.arguments}: allowed with a module itself are no arguments")
        if not isinstance(network, nn.Module):
            raise ValueError(f"task.model.factory returned {type(network).__name__}: allowed is a torch.nn.Module")
        return network


def is_unshaped(model: nn.Module) -> bool:
    """Return whether some layer still waits for its first inputs to get a shape."""
    return any(map(is_lazy, [*model.parameters(), *model.buffers()]))


@contextmanager
def shaping(model: nn.Module) -> Iterator[None]:
    """Let a forward pass within give layers their shapes; whatever else is in the model stays as it is."""
    modes = [(module, module.training) for module in model.modules()]
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    kept = [(tensor, tensor.clone()) for tensor in named.values() if not is_lazy(tensor)]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)


def _from_factory(value: Any) -> Any:
    """Return a function or class that makes a module, or a module, as settings of it."""
    if callable(value) and not isinstance(value, Settings):
        return {"name": "custom", "factory": value}
    return from_name(value)


Model = Annotated[
    Annotated[
        MLP | SmallCNNModel | ResNet20 | ResNet56 | PreResNet110 | DenseNet | Torchvision | CharLMModel | CustomModel,
        Field(discriminator="name"),
    ],
    BeforeValidator(_from_factory),
]
"""One of the models, by its ``name``."""


def num_parameters(model: nn.Module) -> int:
    """Return how many numbers of the model are trained."""
    return sum(parameter.numel() for parameter in model.parameters())
