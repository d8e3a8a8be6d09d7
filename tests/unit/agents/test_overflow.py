"""One agent whose weights or buffers overflow in a step: nobody else sees it, and no run ends with a model of NaN."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ray_pcasgd.agents.learner import NonFiniteLossError
from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.runs.trainer import Trainer, fit_together
from tests.engines.fragile import MARKED, fragile

BASE: dict[str, Any] = {
    "engine": {"name": "local", "batched": "never"},
    "num_agents": 4,
    "num_steps": 30,
    "evaluate_every": 5,
    "batch_size": 16,
    "step_size": 0.25,
    "links": [{"between": "clusters", "delay": 3}],
}
# The gradient of the marked sample is almost 3e38 / 16: with this step size it is finite, and the weights are not.
STEEP = {"step_size": 64.0}
SERVERS: dict[str, Any] = {
    "server": {"algorithm": "server"},
    "two shards": {"algorithm": {"name": "server", "shards": 2}},
    "elastic averaging": {"algorithm": {"name": "elastic-averaging", "alpha": 0.2, "period": 2}},
}


def settings(what: str, **more: Any) -> dict[str, Any]:
    return BASE | (STEEP if what == "weights" else {}) | fragile(what) | more


def who_and_when(plan: Plan) -> tuple[int, int]:
    """Return whose batch has the marked sample first, and at which step."""
    found = []
    for spec in plan.specs[: plan.config.num_agents]:
        config = plan.config
        batches = config.task.batches(plan.data, spec.shard, config.batch_size, config.seed, spec.agent)
        found += [(step, spec.agent) for step in range(config.num_steps) if MARKED in batches.indices_at(step)]  # type: ignore[union-attr]
    step, agent = min(found)
    return agent, step


def marked(what: str, **more: Any) -> tuple[int, int]:
    return who_and_when(make_plan(load_config(settings(what, **more))))


def fit(folder: Path, what: str, **more: Any) -> Result:
    return Trainer(load_config(settings(what, **more)), storage_path=str(folder)).fit()


def events(result: Result) -> list[dict[str, Any]]:
    lines = (Path(result.path) / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def assert_finite(result: Result) -> None:
    assert result.checkpoint
    for name, value in result.checkpoint.state_dict().items():
        assert value.isfinite().all(), name


@pytest.mark.parametrize("what", ["weights", "buffers"])
@pytest.mark.parametrize("algorithm", ["pc-asgd", "d-asgd", "sgp-overlap", "dc-s3gd", "gossip-pull"])
def test_the_run_ends_with_agent_and_step(algorithm: str, what: str, tmp_path: Path) -> None:
    agent, step = marked(what)
    result = fit(tmp_path, what, algorithm=algorithm)
    assert isinstance(result.error, NonFiniteLossError)
    assert str(result.error) == f"agent {agent} has {what} that are not finite after step {step}"
    if step >= 5:
        assert_finite(result)  # of the last evaluation before it


@pytest.mark.parametrize("batched", ["never", "always"])
@pytest.mark.parametrize("what", ["weights", "buffers"])
@pytest.mark.parametrize("algorithm", ["pc-asgd", "d-asgd", "gossip-push"])
def test_that_agent_alone_is_isolated(algorithm: str, what: str, batched: str, tmp_path: Path) -> None:
    agent, step = marked(what)
    engine = {"name": "local", "batched": batched}
    result = fit(tmp_path, what, algorithm=algorithm, on_non_finite_loss="isolate", engine=engine, optimizer={})
    assert result.error is None
    isolated = [event for event in events(result) if event["kind"] == "agent_isolated"]
    assert [(event["agent"], event["step"]) for event in isolated] == [(agent, step)]
    assert what in isolated[0]["detail"]
    assert_finite(result)
    last = result.metrics_dataframe
    last = last[last["step"] == 30]
    assert sorted(last["agent"].dropna()) == [other for other in range(4) if other != agent]
    assert np.isfinite(last["test_loss"].astype(float)).all()


@pytest.mark.parametrize("isolates", [False, True])
@pytest.mark.parametrize("what", ["weights", "buffers"])
def test_it_is_noticed_in_the_very_last_step_too(what: str, isolates: bool, tmp_path: Path) -> None:
    agent, step = marked(what)
    more = {"num_steps": step + 1, "evaluate_every": max(1, step)} | (
        {"on_non_finite_loss": "isolate"} if isolates else {}
    )
    result = fit(tmp_path, what, algorithm="pc-asgd", **more)
    if isolates:
        assert result.error is None
        assert [e["agent"] for e in events(result) if e["kind"] == "agent_isolated"] == [agent]
    else:
        assert str(result.error) == f"agent {agent} has {what} that are not finite after step {step}"
    if step or isolates:
        assert_finite(result)


@pytest.mark.parametrize("what", ["weights", "buffers"])
def test_pairs_end_with_agent_and_step(what: str, tmp_path: Path) -> None:
    agent, step = marked(what)
    result = fit(tmp_path, what, algorithm="ad-psgd", links=[], compute={"law": {"name": "exponential", "mean": 1}})
    assert str(result.error) == f"agent {agent} has {what} that are not finite after step {step}"


@pytest.mark.parametrize("what", ["weights", "buffers"])
@pytest.mark.parametrize("name", SERVERS)
def test_servers_end_before_they_publish_it(name: str, what: str, tmp_path: Path) -> None:
    result = fit(tmp_path, what, **SERVERS[name])
    assert isinstance(result.error, NonFiniteLossError)
    assert what in str(result.error)
    assert "not finite after step" in str(result.error)
    if result.checkpoint:
        assert_finite(result)


def test_a_variant_ends_alone(tmp_path: Path) -> None:
    # With the smaller step size the gradient of the marked sample is too small to overflow.
    configs = [
        load_config(
            settings("weights", step_size=eta, storage_path=str(tmp_path), name=f"eta-{eta}", algorithm="d-asgd")
        )
        for eta in (1e-38, 64.0)
    ]
    agent, step = marked("weights")
    calm, steep = fit_together(configs)
    assert calm.error is None
    assert_finite(calm)
    assert str(steep.error) == f"agent {agent} has weights that are not finite after step {step}"


def test_infinite_buffers_of_neighbors_never_reach_a_model(tmp_path: Path) -> None:
    """The mean of an isolated run is that of agents that never read the overflowing one's next version."""
    agent, step = marked("buffers")
    result = fit(tmp_path, "buffers", algorithm="d-asgd", on_non_finite_loss="isolate")
    assert result.checkpoint
    variance = result.checkpoint.state_dict()["norm.running_var"]
    assert float(variance.max()) < 10
    assert torch.isfinite(variance).all()
    rows = [row for row in make_plan(load_config(settings("buffers"))).schedule if row is not None]
    assert any(read.neighbor == agent and read.version > step for row in rows for read in row.reads)
