"""Where PC-ASGD-PV's probes come from: the agent's own shard, all shards, or the user's own samples."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from ray_pcasgd.agents.peer import AgentSpec, Peer
from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.runs.trainer import Trainer

SKEWED: dict[str, Any] = {
    "num_agents": 5,
    "num_steps": 6,
    "evaluate_every": 6,
    "partition": {"name": "by-label", "labels_per_agent": 2},
    "links": [{"between": "clusters", "delay": 3}],
    "engine": "local",
}
FOREIGN = TensorDataset(torch.full((5, 64), 0.5), torch.arange(5))


def plan_of(probe_data: Any, **changes: Any) -> Plan:
    algorithm = {"name": "pc-asgd-pv", "probe_data": probe_data}
    return make_plan(load_config(SKEWED, changes={"algorithm": algorithm, **changes}))


def labels_probed(plan: Plan, agent: int) -> set[int]:
    spec = plan.specs[agent]
    assert isinstance(spec, AgentSpec)
    peer = spec.build(plan.data)
    assert isinstance(peer, Peer)
    return {int(label) for _ in range(20) for label in peer.draw(peer.probe_batches)[1]}


def test_own_probes_show_the_shard_s_labels_and_shared_ones_all() -> None:
    own, shared = plan_of("own"), plan_of("shared")
    for agent in range(5):
        assert len(labels_probed(own, agent)) == 2
        assert labels_probed(shared, agent) == set(range(10))


def test_each_shard_lends_as_many_samples_as_it_is_asked_for_or_all_that_it_has() -> None:
    plan = plan_of({"name": "shared", "samples_per_agent": 3})
    (borrowed,) = {tuple(spec.borrowed) for spec in plan.specs if isinstance(spec, AgentSpec)}
    assert all(len(np.intersect1d(borrowed, spec.shard)) == 3 for spec in plan.specs)
    assert len(borrowed) == 15
    everything = plan_of({"name": "shared", "samples_per_agent": 10**6}).specs[0]
    assert isinstance(everything, AgentSpec)
    assert len(everything.borrowed) == sum(len(spec.shard) for spec in plan.specs)


def test_the_user_s_own_samples_are_probed_on() -> None:
    assert labels_probed(plan_of({"name": "custom", "dataset": FOREIGN}), 0) == set(range(5))


def test_a_run_with_own_samples_ends_elsewhere_than_one_without(tmp_path: Path) -> None:
    results = []
    for probe_data in ("own", "shared", {"name": "custom", "dataset": FOREIGN}):
        algorithm = {"name": "pc-asgd-pv", "probe_data": probe_data}
        result = Trainer(SKEWED, algorithm=algorithm, num_steps=30, storage_path=str(tmp_path)).fit()
        assert result.error is None
        results.append(result.metrics["test_loss"])
    assert len(set(results)) == 3


@pytest.mark.parametrize(
    ("probe_data", "said"),
    [
        ({"name": "shared", "samples_per_agent": 0}, "samples_per_agent = 0"),
        ("all", "algorithm.probe_data = 'all': allowed are own, shared, custom"),
        ({"name": "custom", "dataset": TensorDataset(torch.zeros(2, 3), torch.zeros(2).long())}, "its inputs are"),
        ({"name": "custom", "dataset": TensorDataset(torch.zeros(2, 64), torch.zeros(2))}, "its targets are"),
        (
            {"name": "custom", "dataset": [1, 2]},
            "algorithm.probe_data.dataset: its batches are a Tensor; allowed are those of the training data, a",
        ),
        ({"name": "custom", "dataset": "nowhere:nothing"}, "algorithm.probe_data.dataset"),
    ],
)
def test_what_cannot_be_probed_on_is_refused_in_one_line(probe_data: Any, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        plan_of(probe_data)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


class Once(nn.Module):
    """Bags of embeddings, of which PyTorch has no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(17, 10))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding_bag(inputs.long().clamp(0, 16), self.table)


class Attention(nn.Module):
    """Attention by PyTorch's fused kernel, which has no second derivative either, and compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(8, 24)
        self.last = torch.compile(nn.Linear(64, 10), backend="aot_eager")

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        q, k, v = self.wide(inputs.view(-1, 8, 8)).chunk(3, -1)
        mixed = nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])
        result: torch.Tensor = self.last(mixed.flatten(1))
        return result


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile's
def test_the_curvature_of_attention_and_of_compiled_models_is_measured() -> None:
    plan = make_plan(load_config(SKEWED, changes={"task": {"model": Attention}}))
    peer = plan.specs[0].build(plan.data)
    assert isinstance(peer, Peer)
    found = peer.curvature_on(peer.snapshot(), peer.draw(peer.batches), torch.ones_like(peer.weights))
    assert found is not None
    assert 0 < abs(found) < 1000


def test_a_model_that_cannot_be_differentiated_twice_is_refused_with_the_setting_that_helps() -> None:
    changes = {"task": {"model": Once}}
    with pytest.raises(SettingsError, match=r"algorithm\.stability\.name = 'curvature': .*; allowed is a number"):
        make_plan(load_config(SKEWED, changes=changes))
    for algorithm in ({"name": "pc-asgd", "stability": 1}, {"name": "pc-asgd", "theta": 0.3}):
        make_plan(load_config(SKEWED, changes={**changes, "algorithm": algorithm}))


def test_a_live_run_of_such_a_model_is_told_of_the_published_method_too() -> None:
    changes = {"task": {"model": Once}, "engine": {"name": "ray", "mode": "live"}}
    for algorithm in ({"name": "pc-asgd", "theta": 0.3}, {"name": "p-asgd"}):
        with pytest.raises(SettingsError, match=r"allowed is a number, as stability = 1, or bounded = false$"):
            make_plan(load_config(SKEWED, changes={**changes, "algorithm": algorithm}))
        make_plan(load_config(SKEWED, changes={**changes, "algorithm": algorithm | {"bounded": False}}))
    with pytest.raises(SettingsError, match=r"allowed is a number, as stability = 1$"):
        make_plan(load_config(SKEWED, changes={**changes, "algorithm": {"name": "pc-asgd"}}))
