"""The measured curvature against the whole Hessian's largest eigenvalue."""

import pytest
import torch
from torch import Tensor, nn

from ray_pcasgd.agents.curvature import largest_curvature
from ray_pcasgd.agents.optimizer import SGD


def network_loss(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(16, 3), torch.randint(2, (16,))


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_largest_eigenvalue_from_below_and_exact_with_as_many_products_as_parameters(seed: int) -> None:
    network, inputs, labels = network_loss(seed)
    named = dict(network.named_parameters())
    parameters = list(named.values())
    sizes = [p.numel() for p in named.values()]

    def loss(weights: Tensor) -> Tensor:
        parts = [part.view(p.shape) for part, p in zip(weights.split(sizes), named.values(), strict=True)]
        outputs = torch.func.functional_call(network, dict(zip(named, parts, strict=True)), (inputs,))
        return nn.functional.cross_entropy(outputs, labels)

    weights = torch.cat([p.detach().reshape(-1) for p in named.values()])
    exact = torch.linalg.eigvalsh(torch.func.jacrev(torch.func.grad(loss))(weights).double())[-1].item()
    start = torch.randn(len(weights))

    def of_parameters() -> Tensor:
        return nn.functional.cross_entropy(network(inputs), labels)

    assert largest_curvature(of_parameters, parameters, start, 15) == pytest.approx(exact, rel=1e-3)
    few = largest_curvature(of_parameters, parameters, start, 4)
    assert 0.6 * exact < few < exact * (1 + 1e-4)


def test_a_start_along_an_eigenvector_ends_early_and_a_loss_that_bends_down_has_none() -> None:
    curvature = torch.tensor([5.0, -7.0, 1.0])
    x, y, z = (torch.ones(3, requires_grad=True) for _ in range(3))
    ones = torch.ones(3)
    assert largest_curvature(lambda: (curvature * x * x).sum() / 2, [x], torch.eye(3)[0], 9) == pytest.approx(5)
    assert largest_curvature(lambda: (curvature * x * x).sum() / 2, [x], ones, 9) == pytest.approx(5, rel=1e-5)
    assert largest_curvature(lambda: -(x * x).sum(), [x], ones, 5) == 0
    assert largest_curvature(lambda: (x * torch.inf).sum() * (x * x).sum(), [x], ones, 5) == 0
    # A part that the loss does not reach, and one in which it is linear.
    assert largest_curvature(lambda: (x * x).sum() * 2 + y.sum(), [x, y, z], torch.ones(9), 5) == pytest.approx(4)


def test_momentum_and_weight_decay_steepen() -> None:
    assert SGD().steepened(3.0) == 3.0
    assert SGD(momentum=0.9, weight_decay=0.5).steepened(3.0) == pytest.approx(35.0)
