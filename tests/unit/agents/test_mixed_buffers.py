"""Which buffers agents average, and what becomes of all others: each agent's own, and unharmed in the mean."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ray_pcasgd.agents.local_tensors import is_same, joined
from ray_pcasgd.agents.participant import Received
from ray_pcasgd.agents.peer import Peer
from ray_pcasgd.records import Read
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.runs.trainer import Trainer
from tests.engines.restless import restless
from tests.unit.base.test_state import LeaveAt, resumed, run


class Causal(nn.Module):
    """Attention with a mask of 0 and -inf, and a running mean of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.last, self.norm = nn.Linear(8, 8), nn.Linear(64, 10), nn.BatchNorm1d(64)
        self.register_buffer("mask", torch.full((8, 8), -torch.inf).triu(1))
        self.register_buffer("level", torch.zeros(8))

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.view(-1, 8, 8)
        if self.training:
            self.level = 0.5 * self.level + 0.5 * rows.mean((0, 1))
        words = self.words(rows - self.level)
        mixed = torch.softmax(words @ words.transpose(1, 2) + self.mask, -1) @ words
        result: Tensor = self.last(self.norm(mixed.flatten(1)))
        return result


BASE: dict[str, Any] = {
    "engine": {"name": "local", "batched": "never"},
    "num_agents": 4,
    "num_steps": 10,
    "evaluate_every": 5,
    "links": [{"between": "clusters", "delay": 3}],
    "task": {"model": Causal},
}
MASK = torch.full((8, 8), -torch.inf).triu(1)


@pytest.mark.parametrize("batched", ["never", "always"])
@pytest.mark.parametrize("algorithm", ["pc-asgd", "d-asgd", "sgp", "gossip-push", "server"])
def test_a_mask_outlives_late_neighbors_and_the_mean(algorithm: str, batched: str, tmp_path: Path) -> None:
    given = BASE | {"algorithm": algorithm, "engine": {"name": "local", "batched": batched}}
    result = Trainer(load_config(given), storage_path=str(tmp_path)).fit()
    assert result.error is None
    assert result.checkpoint
    assert torch.equal(result.checkpoint.state_dict()["mask"], MASK)
    assert math.isfinite(result.metrics["test_loss"])


NAMES = {
    "statistics": ["norm.running_mean", "norm.running_var"],
    "none": [],
    ("level",): ["level"],
    ("lev*", "statistics"): ["norm.running_mean", "norm.running_var", "level"],
    ("*.running_mean",): ["norm.running_mean"],
}


@pytest.mark.parametrize("mixed", NAMES, ids=str)
def test_what_is_named_is_averaged_and_nothing_else(mixed: Any) -> None:
    own = make_plan(load_config(BASE | {"algorithm": "d-asgd", "mixed_buffers": mixed, "clusters": 1, "links": []}))
    agent, other = (Peer(spec, own.data) for spec in own.specs[:2])  # type: ignore[arg-type]
    slots = agent.replica.buffer_layout
    assert sorted(slot.name for slot in slots) == sorted(NAMES[mixed])
    assert agent.message_bytes == 4 * (agent.weights.numel() + agent.buffers.numel())
    agent.compute()
    mine, before = agent.replica.buffers.clone(), agent.replica.copy_of_local()
    theirs = torch.full_like(mine, 7.0)
    agent.apply([Received(Read(1, 0, 0, 0), other.weights, theirs, None)])
    weight = own.specs[0].mixing[0]  # type: ignore[attr-defined]
    torch.testing.assert_close(agent.buffers, (1 - weight) * mine + weight * theirs)
    for name, value in agent.replica.local().items():
        assert is_same(value, before[name]), name


def test_all_mixes_every_floating_buffer() -> None:
    class Few(Causal):
        def __init__(self) -> None:
            super().__init__()
            self.mask = torch.zeros(8, 8)

    own = make_plan(load_config(BASE | {"mixed_buffers": "all", "task": {"model": Few}}))
    agent = Peer(own.specs[0], own.data)  # type: ignore[arg-type]
    assert len(agent.replica.buffer_layout) == 4
    assert list(agent.replica.local()) == ["norm.num_batches_tracked"]


def test_statistics_of_other_types_than_float32_are_refused_and_own_ones_taken() -> None:
    wide = nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 10))
    wide.register_buffer("extra", torch.zeros(3, dtype=torch.float64))
    own = make_plan(load_config(BASE | {"task": {"model": wide}}))
    assert Peer(own.specs[0], own.data).replica.local()["extra"].dtype is torch.float64  # type: ignore[arg-type]


FLOATS = st.floats(width=32) | st.sampled_from([math.inf, -math.inf, math.nan, 0.0])


@given(st.lists(st.lists(FLOATS, min_size=3, max_size=3), min_size=1, max_size=5))
def test_the_mean_of_own_tensors_follows_its_rule_number_by_number(columns: list[list[float]]) -> None:
    made = joined([{"x": torch.tensor(own)} for own in columns])["x"].tolist()
    for place, found in enumerate(made):
        values = [torch.tensor(own[place]).item() for own in columns]
        finite = [value for value in values if math.isfinite(value)]
        if all(value == values[0] or (math.isnan(value) and math.isnan(values[0])) for value in values):
            expected = values[0]
        elif finite:
            expected = torch.tensor(sum(finite) / len(finite), dtype=torch.float64).float().item()
        else:
            expected = values[0]
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-44, nan_ok=True)


def test_integers_and_odd_types_of_own_tensors() -> None:
    one = {"n": torch.tensor(3), "b": torch.tensor([True]), "h": torch.tensor([1.0]).bfloat16(), "c": torch.tensor(1j)}
    two = {"n": torch.tensor(5), "b": torch.tensor([False]), "h": torch.tensor([3.0]).bfloat16(), "late": torch.ones(2)}
    made = joined([one, two | {"c": torch.tensor(3j)}])
    assert (int(made["n"]), made["b"].tolist(), made["h"].tolist()) == (3, [True], [2.0])
    assert made["h"].dtype is torch.bfloat16
    assert made["c"] == 2j
    assert torch.equal(made["late"], torch.ones(2))


def test_numbers_that_only_some_agents_have_lost_are_the_mean_of_the_others(tmp_path: Path) -> None:
    """A buffer of an agent's own that is not finite harms nobody else."""

    class Lossy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10)
            self.register_buffer("highest", torch.zeros(64))

        def forward(self, inputs: Tensor) -> Tensor:
            if self.training:
                self.highest = inputs.amax(0) / (inputs[:, 20].amax() > 0.9)
            result: Tensor = self.layer(inputs)
            return result

    result = Trainer(load_config(BASE | {"task": {"model": Lossy}, "num_steps": 7}), storage_path=str(tmp_path)).fit()
    assert result.error is None
    assert result.checkpoint
    assert math.isfinite(result.metrics["test_loss"])


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": "pc-asgd", "optimizer": {"momentum": 0.9, "weight_decay": 0.01}},
        {"algorithm": "dc-s3gd", "optimizer": {"momentum": 0.9, "weight_decay": 0.01}},
        {"algorithm": "pc-asgd-pv", "compute": {"law": {"name": "exponential", "mean": 1}}},
        {"algorithm": {"name": "server", "shards": 2}, "optimizer": {"momentum": 0.9}},
        {"algorithm": {"name": "elastic-averaging", "alpha": 0.1}},
    ],
    ids=lambda changes: str(changes["algorithm"]),
)
def test_own_tensors_are_part_of_the_state(changes: dict[str, Any], tmp_path: Path) -> None:
    model = restless(changes_weights="shards" not in str(changes))
    config = BASE | model | {"num_steps": 20} | changes
    whole = run(config, tmp_path, "whole", LeaveAt(10, tmp_path / "state.pt"))
    again = resumed(config, tmp_path, tmp_path / "state.pt")
    assert whole.error is None
    assert again.error is None
    assert whole.checkpoint
    assert again.checkpoint
    mine, its = again.checkpoint.state_dict(), whole.checkpoint.state_dict()
    assert mine.keys() == its.keys()
    for name, value in its.items():
        assert is_same(mine[name], value), name
