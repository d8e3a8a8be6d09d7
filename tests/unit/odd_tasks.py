"""Models, losses and data as strangers bring them, each of which something is wrong with, or looks as if it were."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

_digits = load_digits()
IMAGES = torch.from_numpy(_digits.data / 16).float()
LABELS = torch.from_numpy(_digits.target)


def samples(
    first: int = 0, last: int = 400, images: Tensor = IMAGES, labels: Tensor = LABELS
) -> Dataset[tuple[Tensor, ...]]:
    return TensorDataset(images[first:last], labels[first:last])


def changed(values: Tensor, place: int, value: float) -> Tensor:
    """Return a copy with one value changed, of the first row's or the first number."""
    copy = values.clone()
    copy[place] = torch.where(torch.arange(64) == 5, value, copy[place]) if copy.ndim > 1 else value
    return copy


class Items(Dataset[Any]):
    """Made one by one."""

    def __init__(self, item: Callable[[int], Any], number: int = 60) -> None:
        self.item, self.number = item, number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, place: int) -> Any:
        if place >= self.number:
            raise IndexError(place)
        return self.item(place)


def broken(place: int) -> tuple[Tensor, int]:
    if place == 37:
        raise OSError("this file\nis broken")
    return IMAGES[place], int(LABELS[place])


def shorter(place: int) -> tuple[Tensor, int]:
    return IMAGES[place][: 64 - place // 40], int(LABELS[place])


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))


def normed() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Linear(12, 10))


def lazy() -> nn.Sequential:
    return nn.Sequential(nn.LazyLinear(12), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Dropout(0.1), nn.LazyLinear(10))


def with_buffer(value: Tensor) -> nn.Sequential:
    made = network()
    made.register_buffer("mask", value)
    return made


class Model(nn.Module):
    """One layer, and what a case does with it."""

    def __init__(
        self, forward: Callable[[Any, Tensor], Any], prepare: Callable[[Any], Any] = lambda model: None
    ) -> None:
        super().__init__()
        self.layer, self.other = nn.Linear(64, 10), nn.Linear(64, 10)
        self.register_buffer("seen", torch.zeros(2, 64))
        self.register_buffer("late", None)
        self.state: Any = None
        self.step = forward
        prepare(self)

    def forward(self, inputs: Tensor) -> Any:
        return self.step(self, inputs)


def model(forward: Callable[[Any, Tensor], Any], prepare: Callable[[Any], Any] = lambda model: None) -> Any:
    return lambda: Model(forward, prepare)


def auxiliary(own: Model, inputs: Tensor) -> Any:
    return (own.layer(inputs), own.other(inputs)) if own.training else own.layer(inputs)


def growing(own: Model, inputs: Tensor) -> Tensor:
    own.seen = torch.cat([own.seen, inputs])
    return own.layer(inputs)  # type: ignore[no-any-return]


def doubling(own: Model, inputs: Tensor) -> Tensor:
    own.seen = own.seen.double()
    return own.layer(inputs)  # type: ignore[no-any-return]


def losing(own: Model, inputs: Tensor) -> Tensor:
    own.__dict__["_buffers"].pop("seen", None)
    return own.layer(inputs)  # type: ignore[no-any-return]


def adding(own: Model, inputs: Tensor) -> Tensor:
    own.register_buffer("more", inputs.mean(0))
    return own.layer(inputs)  # type: ignore[no-any-return]


def relayering(own: Model, inputs: Tensor) -> Tensor:
    own.layer = nn.Linear(64, 10)
    return own.layer(inputs)  # type: ignore[no-any-return]


def reshaping(own: Model, inputs: Tensor) -> Tensor:
    outputs: Tensor = own.layer(inputs)
    own.layer.weight.data = own.layer.weight.data[:, :32]
    return outputs


def thawing(own: Model, inputs: Tensor) -> Tensor:
    own.other.requires_grad_(True)
    return own.layer(inputs) + own.other(inputs)  # type: ignore[no-any-return]


def untying(own: Model, inputs: Tensor) -> Tensor:
    own.other.weight = nn.Parameter(own.other.weight.detach() + 1)
    return own.layer(inputs) + own.other(inputs)  # type: ignore[no-any-return]


def tie(own: Model) -> None:
    own.other.weight = own.layer.weight


def keeping_the_graph(own: Model, inputs: Tensor) -> Tensor:
    own.state = own.layer(inputs) + (0 if own.state is None else own.state)
    return own.state  # type: ignore[no-any-return]


def eager(own: Model, inputs: Tensor) -> Tensor:
    outputs: Tensor = own.layer(inputs)
    if not own.training:
        raise ValueError("for training alone")
    return outputs


def deciding(own: Model, inputs: Tensor) -> Tensor:
    return own.layer(inputs) if inputs.sum().item() > 0 else own.other(inputs)  # type: ignore[no-any-return]


def weighing(own: Model, inputs: Tensor) -> Tensor:
    return own.layer(inputs) if own.layer.weight.sum().item() > 0 else own.other(inputs)  # type: ignore[no-any-return]


def renorm(own: Model, inputs: Tensor) -> Tensor:
    own.layer.weight.data = own.layer.weight.data / own.layer.weight.data.norm()
    return own.layer(inputs) + own.other(inputs)  # type: ignore[no-any-return]


def starting(own: Model, inputs: Tensor) -> Tensor:
    if own.late is None:
        own.late = inputs.mean(0)
    return own.layer(inputs - own.late) + own.other(inputs)  # type: ignore[no-any-return]


ONE_FOR_ALL = network()
FROZEN = nn.Linear(64, 12).requires_grad_(False)
STATISTICS = nn.BatchNorm1d(64, affine=False)
_unseeded = torch.Generator()


def unseeded() -> nn.Sequential:
    made = network()
    made[0].bias.data = torch.rand(12, generator=_unseeded)
    return made


def drawn_by_others() -> nn.Sequential:
    """Draws from NumPy's and Python's global generators, as code from elsewhere does."""
    made = network()
    made[0].bias.data = torch.from_numpy(np.random.rand(12)).float()  # noqa: NPY002
    made[2].bias.data.fill_(random.random())
    return made


def failing() -> nn.Module:
    raise KeyError("width")


class Wide(nn.Linear):
    def __init__(self, width: int) -> None:
        super().__init__(64, width)


class Uncopyable(nn.Linear):
    def __init__(self) -> None:
        super().__init__(64, 10)
        self.endless = (number for number in range(3))


def mean_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets)


def of_logits(outputs: Any, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs["logits"], targets)


class Centered(nn.Module):
    """A loss with a state: trained centers, or a running mean."""

    def __init__(self, is_trained: bool) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.zeros(10), requires_grad=is_trained)
        self.register_buffer("level", torch.zeros(10))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.level = 0.9 * self.level + 0.1 * outputs.detach().mean(0)
        return functional.cross_entropy(outputs - self.centers - self.level, targets)
