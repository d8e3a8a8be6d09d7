"""Stochastic gradient push against a slow push-sum: biased weights, masses, and messages under way."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ray_pcasgd.agents.peer import Peer
from ray_pcasgd.engines.local.engine import LocalEngine, LocalSettings
from ray_pcasgd.engines.local.execution import Execution
from ray_pcasgd.records import Event, Row, StepReport
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.schedule.network import build_push_network
from ray_pcasgd.schedule.topology import DirectedEdges, DirectedExponential, DirectedRing, Ring
from tests.references.push import PushReference

UNEVEN = {"law": {"name": "exponential", "mean": 1.0}}
SMALL: dict[str, Any] = {
    "num_agents": 5,
    "num_steps": 15,
    "evaluate_every": 15,
    "algorithm": "sgp-overlap",
    "compute": UNEVEN,
    "task": {"model": {"hidden": [4]}},
    "engine": {"name": "local", "batched": "never"},
}
CASES: dict[str, dict[str, Any]] = {
    "directed ring, late": {
        "topology": "directed-ring",
        "links": [{"delay": {"name": "exponential", "mean": 2}, "unit": "seconds"}],
        "barrier": "none",
    },
    "directed exponential, held back": {
        "topology": "directed-exponential",
        "links": [{"delay": {"name": "uniform", "low": 0, "high": 6}}],
    },
    "own edges, bounded": {
        "topology": {"name": "directed-edges", "edges": [[0, 1], [1, 2], [2, 0], [2, 3], [3, 4], [4, 0], [0, 3]]},
        "links": [{"delay": 1, "unit": "seconds"}],
        "barrier": {"name": "bounded", "staleness": 1},
    },
    "complete, sgp": {"algorithm": "sgp", "links": []},
    "directed ring, sgp, momentum": {"algorithm": "sgp", "topology": "directed-ring", "optimizer": {"momentum": 0.5}},
}


def plan(**settings: Any) -> Plan:
    return make_plan(load_config(SMALL | settings))


def executed(own: Plan) -> Iterator[tuple[Execution, Row]]:
    execution = Execution(own.schedule, [spec.build(own.data) for spec in own.specs])
    for report in execution.reports():
        if isinstance(report, StepReport):
            yield execution, report.row


@pytest.mark.parametrize("name", CASES)
def test_runs_equal_the_slow_push_sum_and_lose_no_mass(name: str) -> None:
    own = plan(**CASES[name])
    assert own.network
    number, moved = len(own.specs), np.zeros(1)
    rows = [row for row in own.schedule if row is not None]
    start = build_start(own)
    reference = PushReference(start, own.network.matrix, rows, own.config.num_steps)
    for execution, row in executed(own):
        agent = execution.agents[row.agent]
        moved = moved + reference.take(row, 0.1 * agent.direction.double().numpy())
        np.testing.assert_allclose(agent.weights.double().numpy(), reference.weights, rtol=2e-4, atol=1e-5)
        assert agent.mass == pytest.approx(reference.mass, rel=1e-12)
        # What the agents hold and what is under way: nothing is lost, and nothing is there twice.
        under_way = sum(mass for _, mass in reference.sent.values())
        assert sum(reference.w) + under_way == pytest.approx(number, rel=1e-12)
    x, w, sent = reference.x, reference.w, reference.sent
    total = sum(x) + sum(vector for vector, _ in sent.values())
    np.testing.assert_allclose(total + moved, number * start, rtol=1e-9, atol=1e-9)
    if "algorithm" not in CASES[name]:
        assert sent
        assert min(w) < 0.9
    elif name == "complete, sgp":
        assert w == pytest.approx([1.0] * number)


def build_start(own: Plan) -> np.ndarray:
    agent = Peer(own.specs[0], own.data)  # type: ignore[arg-type]
    return agent.weights.double().numpy()


def test_on_a_complete_graph_it_is_d_psgd_with_uniform_weights(tmp_path: Path) -> None:
    settings = SMALL | {"links": [], "storage_path": str(tmp_path)}
    push = Trainer(settings | {"algorithm": "sgp"}).fit()
    mean = Trainer(settings | {"algorithm": "d-psgd", "mixing": "uniform"}).fit()
    assert push.checkpoint
    assert mean.checkpoint
    assert push.schedule_hash == mean.schedule_hash
    expected = mean.checkpoint.state_dict()
    for name, value in push.checkpoint.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_the_local_engine_keeps_only_what_is_still_to_be_read() -> None:
    for execution, _ in executed(plan(topology="directed-ring", num_steps=60, links=[])):
        assert execution.versions.unread is not None
        kept = [len(versions) for versions in execution.versions.by_agent.values()]
        unread = [sum(map(bool, versions.values())) for versions in execution.versions.unread.values()]
        # Beside what a slower reader has yet to read: the present version, and the one before it.
        assert all(own <= waiting + 2 for own, waiting in zip(kept, unread, strict=True))


@pytest.mark.parametrize(
    ("topology", "edges"),
    [
        (DirectedRing(), {(0, 1), (1, 2), (2, 3), (3, 4), (4, 0)}),
        (DirectedExponential(), {(i, (i + d) % 5) for i in range(5) for d in (1, 2, 4)}),
        (Ring(), {(i, (i + d) % 5) for i in range(5) for d in (1, 4)}),
    ],
)
def test_shares_are_equal_and_go_the_way_of_the_edges(topology: Any, edges: set[tuple[int, int]]) -> None:
    network = build_push_network(topology, 5, 0)
    assert {(k, i) for i, read in enumerate(network.neighbors) for k in read} == edges
    np.testing.assert_allclose(network.matrix.sum(0), 1)
    for k in range(5):
        out = [i for sender, i in edges if sender == k]
        assert network.readers(k) == tuple(sorted(out))
        assert {network.matrix[i, k] for i in (k, *out)} == {1 / (1 + len(out))}


def test_without_a_path_back_the_graph_is_refused() -> None:
    with pytest.raises(ValueError, match="no path from agent 2 to agent 0; allowed are graphs with a path from"):
        build_push_network(DirectedEdges(edges=((0, 1), (1, 0), (1, 2), (2, 3), (3, 2))), 4, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": "d-asgd", "topology": "directed-ring"}, "topology.name = 'directed-ring': allowed with this"),
        ({"mixing": "uniform"}, "mixing.name = 'uniform': allowed with algorithm.name = 'sgp-overlap' is only"),
        ({"on_non_finite_loss": "isolate"}, "on_non_finite_loss = 'isolate': allowed with algorithm.name = 'sgp"),
        ({"algorithm": "sgp", "barrier": "none"}, "is all \\(sgp-overlap is the asynchronous form"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plan(**settings)


def test_schedules_are_exchanged_only_where_that_makes_sense(tmp_path: Path) -> None:
    """D-ASGD reads the newest of several versions; push-sum cannot read one twice."""
    settings = SMALL | {"storage_path": str(tmp_path)}
    push = Trainer(settings | {"name": "push"}).fit()
    schedule = str(Path(push.path) / "schedule.parquet")
    again = Trainer(settings | {"name": "again", "schedule": schedule, "step_size": 0.05}).fit()
    assert again.schedule_hash == push.schedule_hash
    newest = make_plan(load_config(settings | {"algorithm": "d-asgd", "schedule": schedule}))
    rows = list(newest.schedule)
    assert all(len({r.neighbor for r in row.reads}) == len(row.reads) for row in rows)
    other = Trainer(settings | {"name": "other", "algorithm": "d-asgd"}).fit()
    with pytest.raises(SettingsError, match="read a version twice, or never"):
        make_plan(load_config(settings | {"schedule": str(Path(other.path) / "schedule.parquet")}))


STRAGGLER: dict[str, Any] = {
    "num_agents": 4,
    "num_steps": 120,
    "evaluate_every": 120,
    "barrier": "none",
    "compute": {"law": 1.0, "agents": {0: 30.0}},
    "task": {},
}


def test_a_straggler_that_gathers_the_mass_ruins_nobody_and_is_noticed(tmp_path: Path) -> None:
    """Steps that grew as masses fell ended in losses that are no numbers."""
    noted: list[Event] = []

    class Noting(Callback):
        def on_event(self, event: Event) -> None:
            noted.append(event)

    result = Trainer(SMALL | STRAGGLER | {"storage_path": str(tmp_path)}, callbacks=[Noting()]).fit()
    assert result.error is None
    assert result.metrics["test_accuracy"] > 0.6
    light = [event for event in noted if event.kind == "mass_low"]
    assert {event.agent for event in light} >= {1, 2, 3}
    assert len(light) == len({event.agent for event in light})
    assert "smallest_mass = 0.25" in light[0].detail
    ruined = {"name": "sgp-overlap", "smallest_mass": 1e-9}
    assert Trainer(SMALL | STRAGGLER | {"storage_path": str(tmp_path), "algorithm": ruined}).fit().error is not None


def test_nothing_is_pushed_to_who_has_taken_all_steps() -> None:
    own = plan(**{**STRAGGLER, "num_steps": 20, "evaluate_every": 20})
    ends = {agent: max(row.end for row in own.schedule if row and row.agent == agent) for agent in range(4)}
    for row in own.schedule:
        assert row is not None
        done = [k for k in range(4) if k != row.agent and ends[k] <= row.start]
        assert list(row.held) == done
    *_, (execution, last) = executed(own)
    assert last.held == (1, 2, 3)
    # It was alone for hundreds of steps of the others, and has all the mass that was not read any more.
    assert execution.agents[0].mass > 1


def test_a_shorter_run_of_a_schedule_keeps_the_mass(tmp_path: Path) -> None:
    long = Trainer(SMALL | {"algorithm": "sgp", "links": [], "storage_path": str(tmp_path)}).fit()
    short = plan(algorithm="sgp", num_steps=7, schedule=str(Path(long.path) / "schedule.parquet"))
    for report in LocalEngine(LocalSettings(batched="never"), short.schedule).run(short.specs, short.data):
        if isinstance(report, StepReport):
            assert report.measures["mass"] == pytest.approx(1, abs=1e-6)
