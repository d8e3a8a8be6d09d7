"""A replica's flat vectors are its module's own storage, and its state dict is one that plain PyTorch loads."""

import pytest
import torch
from torch import Tensor, nn

from ray_pcasgd.agents.replica import Replica, unflatten
from ray_pcasgd.base.randomness import torch_generator

CPU = torch.device("cpu")


class Tied(nn.Module):
    """Two names for one weight, BatchNorm's buffers, an integer buffer and one that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("calls", torch.tensor(5))
        self.register_buffer("passing", torch.tensor([1.5]), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.second(self.norm(self.first(inputs)))
        return result


def random(*shape: int, key: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch_generator(0, "replica-test", key))


def test_flat_vectors_are_the_module_s_own_storage() -> None:
    module = Tied()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    replica = Replica(module, CPU)
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in before.items())
    assert replica.weights.shape == (9 + 3 + 3 + 3 + 3,)
    assert replica.buffers.shape == (3 + 3,)
    assert sorted(replica.local()) == ["calls", "norm.num_batches_tracked", "passing"]
    replica.weights += 1
    replica.buffers += 2
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name] + 1)
    assert torch.equal(module.norm.running_mean, before["norm.running_mean"] + 2)  # type: ignore[arg-type]
    assert module.second.weight is module.first.weight
    assert torch.equal(replica.named(replica.weights, replica.buffers)["first.bias"], module.first.bias)


def test_backward_passes_add_to_one_gradient_until_it_is_taken() -> None:
    module, twin = Tied(), Tied()
    twin.load_state_dict(module.state_dict())
    replica = Replica(module, CPU)
    inputs = random(4, 3)
    for passes in (2, 1):
        twin.zero_grad()
        for _ in range(passes):
            module(inputs).square().sum().backward()
            twin(inputs).square().sum().backward()
        gradient, reached = replica.take_gradient()
        assert reached is None
        for name, part in unflatten(gradient, replica.layout).items():
            assert torch.equal(part, twin.get_parameter(name).grad)  # type: ignore[arg-type]
    assert int(module.norm.num_batches_tracked) == 3  # type: ignore[arg-type]


def test_load_copies_and_leaves_its_arguments_alone() -> None:
    replica = Replica(Tied(), CPU)
    weights, buffers = random(21), random(6, key=1).abs()
    replica.load(weights, buffers)
    replica.weights += 1
    assert torch.equal(weights, random(21))
    assert torch.equal(replica.weights, weights + 1)
    assert torch.equal(replica.buffers, buffers)


def test_the_state_dict_loads_in_plain_pytorch() -> None:
    replica, other = Replica(Tied(), CPU), Tied()
    weights, buffers = random(21), random(6, key=1).abs()
    local = {
        "calls": torch.tensor(8),
        "norm.num_batches_tracked": torch.tensor(9),
        "passing": torch.tensor([1.5]),
    }
    state = replica.state_dict(weights, buffers, local)
    assert list(state) == list(other.state_dict())
    other.load_state_dict(state)
    assert (int(other.calls), int(other.norm.num_batches_tracked)) == (8, 9)  # type: ignore[arg-type]
    assert torch.equal(other.second.weight, other.first.weight)
    replica.load(weights, buffers)
    inputs = random(5, 3)
    assert torch.equal(other.eval()(inputs), replica.module.eval()(inputs))
    storages = {tensor.untyped_storage().data_ptr() for tensor in state.values()}
    assert len(storages) == len(state)  # as safetensors asks for


def test_frozen_parameters_stay_as_they_are() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)).requires_grad_(True)
    module[0].weight.requires_grad_(False)
    frozen = module[0].weight.clone()
    replica = Replica(module, CPU)
    assert [slot.name for slot in replica.layout] == ["0.bias", "1.weight", "1.bias"]
    replica.weights.zero_()
    assert torch.equal(module[0].weight, frozen)
    state = replica.state_dict(torch.ones(5), torch.zeros(0), {})
    assert torch.equal(state["0.weight"], frozen)
    assert torch.equal(state["1.weight"], torch.ones(1, 2))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.Linear(2, 2, dtype=torch.float64), "weight"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.bfloat16)), "1.weight"),
    ],
)
def test_other_parameters_than_float32_are_refused(module: nn.Module, name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^task\.model: parameter or buffer {name} is .*; allowed is torch\.float32 where"
    ):
        Replica(module, CPU)
    wide = nn.BatchNorm1d(2)
    wide.running_var = wide.running_var.double()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"running_var is torch\.float64"):
        Replica(wide, CPU)
