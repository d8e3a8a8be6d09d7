"""What actors are sent: the user's data once, and tensors that share a storage with that storage once."""

import pickle
from typing import Any

import numpy as np
import torch
from ray import cloudpickle
from torch import Tensor, nn

from ray_pcasgd import Config
from ray_pcasgd.engines.ray.serialization import compact
from ray_pcasgd.runs.plan.plan import make_plan

SAMPLES = 400
WHOLE = torch.randn(SAMPLES, 64, generator=torch.Generator().manual_seed(0))


def arrived(content: Any) -> Any:
    return pickle.loads(cloudpickle.dumps(compact(content)))


def test_views_of_one_storage_take_it_with_them_once() -> None:
    samples = [{"x": WHOLE[i], "integers": WHOLE.view(torch.int32)[i, ::2]} for i in range(SAMPLES)]
    sent = cloudpickle.dumps(compact(samples))
    assert len(sent) < 2 * WHOLE.nbytes
    came = pickle.loads(sent)
    assert all(torch.equal(one[k], other[k]) for one, other in zip(came, samples, strict=True) for k in one)
    assert came[3]["x"].untyped_storage().data_ptr() == came[9]["integers"].untyped_storage().data_ptr()


def test_what_arrives_may_be_written_to_and_is_nobody_elses() -> None:
    sent = WHOLE.clone()
    arrived(sent)[0] = 1e9
    assert torch.equal(sent, WHOLE)


def test_tied_and_flattened_parameters_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.BatchNorm1d(8))
    flat = torch.zeros(128)
    for part, layer in zip(flat.split(64), (model[0], model[1]), strict=True):
        layer.weight = nn.Parameter(part.view(8, 8))
    model[1].bias = model[0].bias
    came = arrived(model)
    assert came[0].bias is came[1].bias
    assert came[0].weight.untyped_storage().data_ptr() == came[1].weight.untyped_storage().data_ptr()
    assert all(torch.equal(came.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_tensors_of_any_kind_arrive_as_they_are() -> None:
    sent: list[Tensor] = [
        torch.empty(0),
        torch.tensor(3),
        torch.zeros(3, dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.tensor([1 + 2j]).conj(),
        torch.arange(12.0).view(3, 4).t()[1:],
        nn.Parameter(torch.ones(2), requires_grad=False),
    ]
    for one, came in zip(sent, arrived(sent), strict=True):
        assert type(came) is type(one)
        assert came.dtype == one.dtype
        assert came.stride() == one.stride()
        assert torch.equal(came, one)
        assert came.requires_grad == one.requires_grad
    assert torch.equal(arrived(torch.eye(3).to_sparse()).to_dense(), torch.eye(3))
    assert arrived({"f": lambda x: x + 1, "a": np.arange(3)})["f"](1) == 2  # Ray's own way still


class Pairs:
    """The user's data set, which holds as much as counts."""

    def __init__(self) -> None:
        self.inputs, self.targets = WHOLE.clone(), torch.arange(SAMPLES) % 3

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        return self.inputs[place], self.targets[place]


def test_no_agent_is_sent_the_users_data_beside_the_loaded_ones() -> None:
    """A data set that is given as an object was sent again with the settings of each agent."""
    probes = {"name": "pc-asgd-pv", "condition": "probe", "probe_data": {"name": "custom", "dataset": Pairs()}}
    config = Config.model_validate(
        {"num_agents": 2, "task": {"data": (Pairs(), Pairs())}, "algorithm": probes, "num_steps": 2}
    )
    plan = make_plan(config)
    assert len(cloudpickle.dumps(plan.specs)) < WHOLE.nbytes / 2
    assert plan.data.probes is not None
