"""The multilayer perceptron."""

from itertools import pairwise

from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


def mlp(num_inputs: int, hidden: tuple[int, ...], num_outputs: int, activation: str) -> nn.Sequential:
    """Return flatten, then linear layers with the activation between them."""
    widths = (num_inputs, *hidden, num_outputs)
    layers: list[nn.Module] = [nn.Flatten()]
    for narrow, wide in pairwise(widths):
        layers += [nn.Linear(narrow, wide), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])
