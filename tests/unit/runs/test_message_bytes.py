"""Planned runs count the bytes of their messages as their agents do."""

from collections.abc import Iterator
from typing import Any

import pytest
from torch import nn

from ray_pcasgd.records import StepReport
from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.schedule.plan_pairs import PairPlanner
from ray_pcasgd.schedule.plan_peers import Planner
from ray_pcasgd.schedule.plan_servers import ServerPlanner

TINY: dict[str, Any] = {
    "engine": "local", "num_agents": 3, "num_steps": 4, "evaluate_every": 4,
    "links": [{"bandwidth": "20 Mbit/s", "delay": "10ms"}], "hosts": [{"agents": [0, 1], "up": "1 Gbit/s"}],
}  # fmt: skip
MODELS: list[Any] = [
    {"name": "mlp", "hidden": [5]},
    {"name": "custom", "factory": "tests.unit.runs.test_message_bytes:with_statistics"},
]


def with_statistics() -> nn.Module:
    """A model with mixed buffers (the statistics), and one that is each agent's own (the number of batches)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.BatchNorm1d(7), nn.Linear(7, 10))


def reports_of(plan: Plan) -> Iterator[StepReport]:
    for report in plan.engine().run(plan.specs, plan.data):
        assert isinstance(report, StepReport)
        yield report


@pytest.mark.parametrize("model", MODELS, ids=["mlp", "batch-norm"])
@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "d-asgd"},
        {"algorithm": "pc-asgd", "wire": "int8"},
        {"algorithm": "pc-asgd", "wire": {"weights": "bf16", "directions": "int4"}, "local_steps": 2},
        {"algorithm": "pc-asgd", "wire": {"directions": "top-k"}, "local_steps": 2, "overlap": False},
        {"algorithm": "gasloc", "local_steps": 2},
        {"algorithm": "choco-sgd", "wire": "top-k"},
    ],
    ids=str,
)
def test_between_peers(model: Any, settings: dict[str, Any]) -> None:
    plan = make_plan(load_config(TINY | settings | {"task": {"model": model}}))
    assert isinstance(plan.schedule, Planner)
    assert {report.bytes_sent for report in reports_of(plan)} == {2 * plan.schedule.message_bytes}


@pytest.mark.parametrize("model", MODELS, ids=["mlp", "batch-norm"])
def test_in_pairs(model: Any) -> None:
    plan = make_plan(load_config(TINY | {"algorithm": "ad-psgd", "task": {"model": model}}))
    assert isinstance(plan.schedule, PairPlanner)
    sent = {report.bytes_sent for report in reports_of(plan) if report.row.reads}
    assert sent == {plan.schedule.message_bytes}


@pytest.mark.parametrize("model", MODELS, ids=["mlp", "batch-norm"])
@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "server"},
        {"algorithm": {"name": "server", "shards": 2}, "wire": {"weights": "bf16", "directions": "top-k"}},
        {"algorithm": "elastic-averaging", "wire": "int8"},
        {"algorithm": {"name": "fedglomo", "shards": 2}, "wire": {"directions": "int4"}, "local_steps": 2},
        {"algorithm": "diloco", "wire": {"directions": "int4"}, "local_steps": 2},
        {"algorithm": {"name": "diloco", "shards": 2}, "wire": {"weights": "bf16", "fragments": 5}, "local_steps": 2},
    ],
    ids=str,
)
def test_with_servers(model: Any, settings: dict[str, Any]) -> None:
    plan = make_plan(load_config(TINY | settings | {"task": {"model": model}}))
    assert isinstance(plan.schedule, ServerPlanner)
    for report in reports_of(plan):
        if report.row.agent < 3:
            assert report.bytes_sent == sum(plan.schedule.gradient_bytes)
        else:
            assert report.bytes_sent == plan.schedule.weights_bytes[report.row.agent - 3] * len(report.row.reads)


def test_a_narrow_link_makes_reads_staler_and_a_format_of_fewer_bytes_fresher() -> None:
    def staleness(**settings: Any) -> float:
        plan = make_plan(load_config(TINY | {"num_steps": 30, "compute": {"law": 0.01}, "hosts": [], **settings}))
        rows = [row for row in plan.schedule if row is not None]
        return sum(read.staleness for row in rows for read in row.reads) / sum(len(row.reads) for row in rows)

    wide, narrow = ({"links": [{"bandwidth": rate}]} for rate in ("10 Gbit/s", "10 Mbit/s"))
    assert staleness(**wide) < staleness(**narrow, wire="int8") < staleness(**narrow)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"links": [{"bandwidth": "1 MB/s"}]}, "links.0.bandwidth = '1 MB/s': allowed in planned runs; a live run's"),
        ({"hosts": [{"agents": [0], "down": "1 MB/s"}]}, "hosts.0.down = '1 MB/s': allowed in planned runs; a live"),
    ],
)
def test_live_runs_have_a_network_of_their_own(changes: dict[str, Any], message: str) -> None:
    live = {"engine": {"name": "ray", "mode": "live"}, "links": [], "hosts": []}
    with pytest.raises(SettingsError) as raised:
        make_plan(load_config(TINY | live | changes))
    assert str(raised.value).startswith(message)
