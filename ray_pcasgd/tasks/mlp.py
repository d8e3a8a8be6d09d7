"""The multilayer perceptron."""

from itertools import pairwise

from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


def mlp(num_inputs: int, hidden: tuple[int, ...], num_outputs: int, activation: str) -> nn.Sequential:
    """Return flatten, then linear layers with the activation between them.

    Weights are drawn from He et al.'s (ICCV 2015) normal distribution, for the activation that follows; biases are 0.
    PyTorch's own, narrower ones hold a deep perceptron on a plateau for its first hundred steps.
    """
    widths = (num_inputs, *hidden, num_outputs)
    layers: list[nn.Module] = [nn.Flatten()]
    for narrow, wide in pairwise(widths):
        layers += [nn.Linear(narrow, wide), ACTIVATIONS[activation]()]
    network = nn.Sequential(*layers[:-1])
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    for layer in linear:
        follows = "linear" if layer is linear[-1] else "tanh" if activation == "tanh" else "relu"
        nn.init.kaiming_normal_(layer.weight, nonlinearity=follows)  # type: ignore[arg-type]
        nn.init.zeros_(layer.bias)
    return network
