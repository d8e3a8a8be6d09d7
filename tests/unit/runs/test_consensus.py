"""The averaged model against numpy in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ray_pcasgd.base.randomness import generator
from ray_pcasgd.records import Snapshot
from ray_pcasgd.runs.consensus import AveragedModel, average
from ray_pcasgd.runs.settings.loading import load_config


def snapshots(seed: int, agents: list[int], size: int, num_buffers: int, scale: float) -> dict[int, Snapshot]:
    random = generator(seed, "consensus-test")
    return {
        agent: Snapshot(
            torch.from_numpy(random.normal(100, scale, size)).float(),
            torch.from_numpy(random.normal(0, scale, num_buffers)).float(),
            {"count": torch.tensor(agent)},
        )
        for agent in agents
    }


@given(
    seed=st.integers(0, 1000),
    agents=st.lists(st.integers(0, 9), min_size=1, unique=True),
    size=st.integers(1, 50),
    num_buffers=st.integers(0, 5),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
)
@settings(max_examples=60)
def test_mean_and_distances_are_numpy_s(
    seed: int, agents: list[int], size: int, num_buffers: int, scale: float
) -> None:
    given_snapshots = snapshots(seed, agents, size, num_buffers, scale)
    consensus = average(given_snapshots)
    weights = {i: given_snapshots[i].weights.double().numpy() for i in sorted(agents)}
    mean = np.mean(list(weights.values()), axis=0)
    rounding = np.abs(mean).max() * 2.0**-23
    np.testing.assert_allclose(consensus.mean.weights.numpy(), mean, rtol=0, atol=rounding)
    buffers = np.mean([given_snapshots[i].buffers.double().numpy() for i in agents], axis=0)
    np.testing.assert_allclose(consensus.mean.buffers.numpy(), buffers, rtol=1e-6, atol=1e-6 * scale)
    distances = {i: float(np.linalg.norm(x - mean)) for i, x in weights.items()}
    assert list(consensus.distances) == sorted(agents)
    for i, distance in distances.items():
        assert consensus.distances[i] == pytest.approx(distance, abs=rounding * size**0.5, rel=1e-6)
    mean_square = sum(d**2 for d in consensus.distances.values()) / len(agents)
    assert consensus.distance == pytest.approx(mean_square**0.5)
    assert int(consensus.mean.local["count"]) == min(agents)


def test_the_order_of_the_snapshots_changes_no_bit() -> None:
    given_snapshots = snapshots(1, [0, 1, 2, 3], 1000, 3, 1.0)
    turned = {i: given_snapshots[i] for i in (3, 1, 0, 2)}
    assert torch.equal(average(turned).mean.weights, average(given_snapshots).mean.weights)
    assert average(turned).distance == average(given_snapshots).distance


def test_agents_that_agree_have_no_distance() -> None:
    (one,) = snapshots(2, [0], 100, 0, 1.0).values()
    consensus = average({0: one, 1: one, 2: one})
    assert torch.equal(consensus.mean.weights, one.weights)
    assert consensus.distance == 0


def counting() -> nn.Module:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 10)
            self.register_buffer("class_number", torch.tensor(0))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            chosen = nn.functional.one_hot(self.class_number, 10)  # type: ignore[arg-type]
            result: torch.Tensor = self.linear(inputs) * 0 + chosen
            return result

    return Counting()


def test_the_averaged_model_is_evaluated_with_all_that_its_snapshot_holds() -> None:
    config = load_config({"task": {"model": {"name": "custom", "factory": counting}}})
    data = config.task.load()
    model = AveragedModel(config.task, data, 0, "cpu")
    assert model.num_parameters == 650
    labels = data.test.labels()
    assert labels is not None
    for chosen in (0, 7):
        snapshot = Snapshot(torch.zeros(650), torch.zeros(0), {"class_number": torch.tensor(chosen)})
        assert model.evaluate(snapshot)["accuracy"] == pytest.approx((labels == chosen).mean())
        assert int(model.state_dict(snapshot)["class_number"]) == chosen
