"""What does not fit into memory is refused before the start, and nothing else."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ray_pcasgd.agents.drift import KeptPath
from ray_pcasgd.agents.learner import Learner
from ray_pcasgd.engines.local.execution import Execution
from ray_pcasgd.runs.plan import memory
from ray_pcasgd.runs.plan.memory import check_memory, least_vectors, machine_bytes
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import SettingsError, load_config

ALGORITHMS: list[dict[str, Any]] = [
    {"algorithm": "pc-asgd"},
    {"algorithm": {"name": "pc-asgd", "drift": "exact"}},
    {"algorithm": {"name": "pc-asgd", "prediction": "own-drift"}},
    {"algorithm": {"name": "pc-asgd", "theta": 0.2, "compensation": 0}},
    {"algorithm": "d-psgd"},
    {"algorithm": "d-asgd", "optimizer": {"momentum": 0.9}},
    {"algorithm": "d-asgd", "optimizer": {"momentum": 0.9, "nesterov": True}},
    *({"algorithm": "d-asgd", "optimizer": one} for one in ("adamw", {"name": "adam", "amsgrad": True}, "lion")),
    {"algorithm": "ad-psgd", "links": []},
    {"algorithm": "ad-psgd", "links": [], "optimizer": "adamw"},
    {"algorithm": "sgp"},
    {"algorithm": "server", "optimizer": {"momentum": 0.9}},
    {"algorithm": "server", "optimizer": "adamw"},
    {"algorithm": "elastic-averaging", "optimizer": {"momentum": 0.9}},
    {"algorithm": "elastic-averaging", "optimizer": "adamw"},
]


def own_bytes(agent: Any) -> int:
    """Return the bytes of all tensors that an agent keeps, each one's memory once."""
    tensors = [agent.replica.weights] if isinstance(agent, Learner) else []
    for value in vars(agent).values():
        parts = vars(value).values() if hasattr(value, "drifts") else [value]
        for part in parts:
            leaves = tree_leaves(list(part) if hasattr(part, "popleft") else part)
            tensors += [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    # Of a tensor that is a part of another one, or one number for all, what there is in memory.
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("changes", ALGORITHMS, ids=str)
def test_agents_keep_at_least_what_is_reckoned_with(changes: dict[str, Any]) -> None:
    """And not much more, for what nobody knows beforehand: the versions of a path, those that a server still knows."""
    settings = {"num_agents": 3, "num_steps": 12, "evaluate_every": 100, "engine": "local", "links": [{"delay": 2}]}
    plan = make_plan(load_config(settings, changes=changes))
    agents = [spec.build(plan.data) for spec in plan.specs]
    for _ in Execution(plan.schedule, agents).reports():
        pass
    first = agents[0]
    assert isinstance(first, Learner)
    vector = 4 * first.replica.weights.numel()
    path = getattr(first, "displacements", None)
    versions = len(path) if isinstance(path, KeptPath) else 0
    assert least_vectors(plan.config) * vector <= own_bytes(first)
    assert own_bytes(first) <= (least_vectors(plan.config) + versions + 2.5) * vector


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    config = load_config({"num_agents": 8, "engine": "local"})
    assert least_vectors(config) == 4
    each = 4 * 4 * 1_000_000
    check_memory(config, 1_000_000, 8 * each)
    with pytest.raises(ValueError, match=r"num_agents = 8: .* 0\.016 GB, 16 bytes a parameter") as error:
        check_memory(config, 1_000_000, 8 * each - 1)
    assert str(error.value).endswith("allowed is num_agents up to 7, or a smaller task.model")
    with pytest.raises(ValueError, match=r"allowed is a smaller task\.model$"):
        check_memory(config, 1_000_000, each - 1)


def test_the_refusal_names_the_drift_that_takes_less_where_it_is_allowed() -> None:
    config = load_config({"algorithm": {"name": "p-asgd"}})
    with pytest.raises(ValueError, match=r"; algorithm\.drift = 'velocity' takes less$"):
        check_memory(config, 10**9, 10**9)
    config = load_config({"algorithm": {"name": "p-asgd", "prediction": "own-drift"}})
    with pytest.raises(ValueError, match=r"allowed is a smaller task\.model$"):
        check_memory(config, 10**9, 10**9)


@pytest.mark.parametrize(
    ("optimizer", "vectors"),
    [({}, 1), ({"momentum": 0.9}, 2), ("lion", 2), ("adamw", 3), ({"name": "adam", "amsgrad": True}, 4)],
)
def test_servers_are_counted_once_whatever_their_number(optimizer: Any, vectors: int) -> None:
    config = load_config({"num_agents": 2, "algorithm": "server", "optimizer": optimizer})
    need = 4 * 1000 * (2 * least_vectors(config) + vectors)
    check_memory(config, 1000, need)
    with pytest.raises(ValueError, match="num_agents = 2"):
        check_memory(config, 1000, need - 1)


def test_a_run_that_does_not_fit_starts_no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_bytes", lambda: 1000)
    monkeypatch.setenv("RAY_ADDRESS", "")
    for engine in ("local", "ray"):
        with pytest.raises(SettingsError, match=r"num_agents = 8: agents of .* parameters each keep at least"):
            make_plan(load_config({"engine": engine}))


def test_clusters_of_others_and_gpus_are_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_bytes", lambda: 1000)
    make_plan(load_config({"engine": {"name": "ray", "address": "10.0.0.1:6379"}}))
    make_plan(load_config({"engine": {"name": "ray", "gpus_per_agent": 1}}))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    make_plan(load_config({"engine": "ray"}))
    with pytest.raises(SettingsError, match="num_agents"):
        make_plan(load_config({"engine": {"name": "ray", "address": "local"}}))


def test_the_machine_has_at_least_what_torch_has_taken() -> None:
    total = machine_bytes()
    assert total is None or total > 4 * torch.zeros(1_000_000).numel()
