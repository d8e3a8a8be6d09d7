"""AD-PSGD: who meets whom, what a pair does, and that nothing else happens."""

from collections import Counter
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from ray_pcasgd.agents.pair import PairPeer
from ray_pcasgd.engines.base import RunError
from ray_pcasgd.engines.local.execution import Execution
from ray_pcasgd.records import Read, Row, RowKind
from ray_pcasgd.rules.adpsgd import draw_partner
from ray_pcasgd.runs.plan.pairs import divide
from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.schedule.delays import ComputeTimes, LinkDelay, LinkTimes
from ray_pcasgd.schedule.info import ScheduleInfo
from ray_pcasgd.schedule.laws import Law
from ray_pcasgd.schedule.network import build_network
from ray_pcasgd.schedule.ordering import in_causal_order
from ray_pcasgd.schedule.parquet import read_rows, write_rows
from ray_pcasgd.schedule.plan_pairs import PairPlanner
from ray_pcasgd.schedule.topology import Complete, Metropolis, Ring, Star, Torus
from tests.references.pairs import PairReference

SMALL: dict[str, Any] = {
    "num_agents": 5,
    "num_steps": 12,
    "evaluate_every": 6,
    "algorithm": "ad-psgd",
    "links": [{"delay": 0.3, "unit": "seconds"}],
    "compute": {"law": {"name": "exponential", "mean": 1.0}},
    "task": {"model": {"hidden": [4]}},
    "engine": "local",
}


def plan(**changes: Any) -> Plan:
    return make_plan(load_config(SMALL | changes))


def law(value: Any) -> Any:
    return TypeAdapter(Law).validate_python(value)


@st.composite
def planners(draw: st.DrawFn) -> PairPlanner:
    number = draw(st.integers(1, 6))
    network = build_network(draw(st.sampled_from([Complete(), Ring(), Star()])), Metropolis(), number, 0)
    try:
        partners = divide(network, "").partners
    except ValueError:  # a triangle or a pentagon
        partners = divide(build_network(Complete(), Metropolis(), number, 0), "").partners
    laws = st.sampled_from(
        [law(0), law(1), law({"name": "exponential", "mean": 1}), law({"name": "uniform", "low": 1, "high": 3})]
    )
    latency = draw(st.sampled_from([0, 0.25, 2]))
    return PairPlanner(
        partners=partners,
        num_steps=draw(st.integers(1, 9)),
        compute=ComputeTimes(law=draw(laws), stragglers={0: law(draw(st.sampled_from([0, 2])))}),
        links=(LinkDelay(delay=law(latency), unit="seconds"),),
        clusters=(0,) * number,
        seed=draw(st.integers(0, 99)),
    )


@settings(max_examples=200)
@given(planners())
def test_both_rows_of_a_pair_know_of_each_other_and_keep_to_the_links(own: PairPlanner) -> None:
    rows = list(own)
    assert rows == list(own)
    by_key = {(row.agent, row.step): row for row in rows}
    assert len(by_key) == len(rows)
    number = len(own.partners)
    versions, free_at = [0] * number, [0.0] * number
    for row in rows:
        assert row.step == versions[row.agent]
        versions[row.agent] += 1
        if row.kind == "passive":
            (read,) = row.reads
            assert row.start == row.ready == row.end
            assert by_key[read.neighbor, read.version].reads[0][:2] == (row.agent, row.step)
            continue
        assert row.start == free_at[row.agent]
        free_at[row.agent] = row.end
        if not own.partners[row.agent]:
            assert row.reads == ()
            assert row.end == row.ready
            continue
        ((partner, version, _, age),) = row.reads
        assert age == 0
        assert partner in own.partners[row.agent]
        met = by_key[partner, version]
        assert met.kind == "passive"
        assert [read[:3] for read in met.reads] == [(row.agent, row.step, 0)]
        there, back = (
            LinkTimes(own.links, own.clusters, own.seed, *link).latency_seconds(0, 0.0)
            for link in ((row.agent, partner), (partner, row.agent))
        )
        assert met.end == pytest.approx(row.ready + there, abs=1e-8)
        assert row.end == pytest.approx(met.end + back, abs=1e-8)
    assert Counter(row.agent for row in rows if row.kind == "step") == dict.fromkeys(range(number), own.num_steps)


def test_ages_and_staleness_count_what_happens_on_the_way() -> None:
    """Agents 0 and 2 ask agent 1: 0 at second 1, 2 at second 2; requests and answers take two seconds each."""
    rows = list(
        PairPlanner(
            partners=((1,), (), (1,)),
            num_steps=1,
            compute=ComputeTimes(agents={0: law(1), 1: law(2.5), 2: law(2)}),
            links=(LinkDelay(delay=law(2), unit="seconds"),),
            clusters=(0, 0, 0),
            seed=0,
        )
    )
    assert rows == [
        Row(1, 0, 0, 2.5, 2.5, ()),
        Row(1, 1, 3, 3, 3, (Read(0, 0, 0, 1),), "passive"),
        Row(1, 2, 4, 4, 4, (Read(2, 0, 0, 2),), "passive"),
        Row(0, 0, 0, 1, 5, (Read(1, 1, 1, 0),)),
        Row(2, 0, 0, 2, 6, (Read(1, 2, 0, 0),)),
    ]


def test_partners_are_drawn_evenly() -> None:
    counts = Counter(draw_partner(0, 3, step, (0, 2, 5)) for step in range(6000))
    assert set(counts) == {0, 2, 5}
    assert all(abs(count - 2000) < 5 * 37 for count in counts.values())  # 5 standard deviations
    assert draw_partner(0, 3, 0, ()) is None


@pytest.mark.parametrize(
    ("topology", "number", "active"),
    [
        (Ring(), 6, {0, 2, 4}),
        (Star(), 5, {0}),
        (Torus(rows=2, columns=4), 8, {0, 2, 5, 7}),
        (Complete(), 5, {0, 2, 4}),
        (Complete(), 1, {0}),
    ],
)
def test_every_pair_has_an_active_and_a_passive_agent(topology: Any, number: int, active: set[int]) -> None:
    network = build_network(topology, Metropolis(), number, 0)
    division = divide(network, topology.name)
    assert division.active == active
    graph = nx.empty_graph(number)
    for i, others in enumerate(division.neighbors):
        assert set(others) <= set(network.neighbors[i])
        assert all((k in active) != (i in active) for k in others)
        graph.add_edges_from((i, k) for k in others)
    assert nx.is_connected(graph)


def pairs_of(own: Plan) -> list[PairPeer]:
    agents = [spec.build(own.data) for spec in own.specs]
    return [agent for agent in agents if isinstance(agent, PairPeer)]


def assert_executes_as_the_slow_reference(own: Plan, rows: list[Row]) -> float:
    """Return how far all agents together have moved otherwise than by their own steps."""
    agents = pairs_of(own)
    execution = Execution(rows, agents)
    reference = PairReference(agents[0].weights.double().numpy(), len(agents))
    start, x = reference.start, reference.x
    steps = Counter[int]()
    moved: Any = 0.0
    for row in rows:
        execution.prepare()
        step = 0.1 * agents[row.agent].direction.double().numpy()
        reference.take(row, step)
        if row.kind == "step":
            moved = moved + step
            steps[row.agent] += 1
        (report,) = execution.execute([row])
        assert report.progress == agents[row.agent].steps == steps[row.agent]
        np.testing.assert_allclose(agents[row.agent].weights.double().numpy(), x[row.agent], atol=1e-5)
    assert all(list(kept) == [agents[k].version] for k, kept in execution.versions.by_agent.items())
    return float(np.abs(sum(x) + moved - len(x) * start).max())


@pytest.mark.parametrize("settings", [{}, {"topology": "star"}, {"optimizer": {"momentum": 0.5}}], ids=str)
def test_runs_equal_the_slow_reference(settings: dict[str, Any]) -> None:
    own = plan(**settings)
    rows = [row for row in own.schedule if row is not None]
    assert any(row.kind == "passive" for row in rows)
    # Pairs only exchange: what all agents hold together changes by their own steps alone.
    assert assert_executes_as_the_slow_reference(own, rows) < 1e-9


@st.composite
def with_losses(draw: st.DrawFn) -> list[Row]:
    """Rows of four agents of which one or the other dies, also in the middle of an exchange, and comes back."""
    rows: list[Row] = []
    at, steps, away = Counter[int](), Counter[int](), set[int]()

    def take(agent: int, kind: RowKind, *reads: Read, step: int | None = None) -> None:
        now = float(len(rows))
        rows.append(Row(agent, at[agent] if step is None else step, now, now, now, reads, kind))
        at[agent] = rows[-1].step + 1
        steps[agent] += kind == "step"

    for _ in range(draw(st.integers(1, 30))):
        active, passive = draw(st.sampled_from([0, 2])), draw(st.sampled_from([1, 3]))
        there = {active, passive} - away
        if len(there) == 2 and steps[active] < 12:
            to_passive, to_active = Read(active, at[active], 0, 0), Read(passive, at[passive], 0, 0)
            lost = draw(st.sampled_from([None, None, active, passive]))
            if lost != passive:
                take(passive, "passive", to_passive)
            if lost != active:
                take(active, "step", to_active)
            away |= {lost} - {None}  # type: ignore[arg-type]
        elif away:
            back = draw(st.sampled_from(sorted(away)))
            away.discard(back)
            reads = [Read(k, at[k], 0, 0) for k in range(4) if k % 2 != back % 2 and k not in away]
            take(back, "rejoined", *reads, step=at[back] + draw(st.integers(0, 2)))
        if passive not in away and steps[passive] < 12 and draw(st.booleans()):
            take(passive, "step")
    return rows


@settings(max_examples=100)
@given(with_losses())
def test_agents_that_are_lost_in_the_middle_of_it_and_come_back_are_executed_as_by_the_slow_reference(
    rows: list[Row],
) -> None:
    assert_executes_as_the_slow_reference(plan(num_agents=4), in_causal_order(rows, with_directions=False))


def test_gradients_are_computed_where_an_agent_was_when_it_began() -> None:
    """Agent 1 is asked while it computes; its direction stays that of its own last step's weights."""
    own = plan(num_agents=2, num_steps=2, links=[], compute={"law": 1, "agents": {1: 10}})
    agents = pairs_of(own)
    execution = Execution(own.schedule, agents)
    execution.prepare()
    asked = agents[1]
    direction, start = asked.direction, asked.computed_at.weights
    kinds = []
    for row in own.schedule:
        assert row is not None
        execution.prepare()
        assert len(list(execution.execute([row]))) == 1
        if row.agent == 1:
            kinds.append(row.kind)
            if kinds[-1] == "step":
                break
            assert torch.equal(asked.direction, direction)
            assert torch.equal(asked.replica.weights, start)
            # At its first asking, both are where all start.
            assert torch.equal(asked.weights, start) == (len(kinds) == 1)
    assert kinds == ["passive", "passive", "step"]


def test_one_agent_is_plain_sgd_to_the_bit(tmp_path: Path) -> None:
    changes = {"num_agents": 1, "clusters": 1, "storage_path": str(tmp_path), "optimizer": {"momentum": 0.9}}
    alone = Trainer(SMALL | changes).fit()
    sgd = Trainer(SMALL | changes | {"algorithm": "d-psgd"}).fit()
    assert alone.checkpoint
    assert sgd.checkpoint
    expected = sgd.checkpoint.state_dict()
    for name, value in alone.checkpoint.state_dict().items():
        assert torch.equal(value, expected[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"links": [{"delay": 3, "unit": "steps"}]}, "links.0.unit = 'steps': allowed with ad-psgd is seconds"),
        ({"barrier": "all"}, "barrier.name = 'all': allowed with ad-psgd is none"),
        ({"mixing": "uniform"}, "mixing.name = 'uniform': allowed with ad-psgd is only the default"),
        ({"on_non_finite_loss": "isolate"}, "on_non_finite_loss = 'isolate': allowed with ad-psgd is stop"),
        ({"engine": {"name": "local", "batched": "always"}}, "engine.batched = 'always': allowed with ad-psgd are"),
        ({"topology": "directed-ring"}, "topology.name = 'directed-ring': allowed with this algorithm are undir"),
        (
            {"topology": {"name": "edges", "edges": [[0, 1], [1, 2], [0, 2], [2, 4], [3, 0]]}},
            "topology.name = 'edges': allowed with ad-psgd are graphs that are bipartite, or connected by the edges",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plan(**changes)


def test_schedules_replay_and_are_for_pairs_alone(tmp_path: Path) -> None:
    settings = SMALL | {"storage_path": str(tmp_path)}
    result = Trainer(settings).fit()
    assert result.error is None
    schedule = str(Path(result.path) / "schedule.parquet")
    again = Trainer(settings | {"schedule": schedule, "step_size": 0.05, "name": "again"}).fit()
    assert again.schedule_hash == result.schedule_hash
    with pytest.raises(SettingsError, match="is one of ad-psgd; allowed is it with ad-psgd only"):
        make_plan(load_config(settings | {"algorithm": "d-asgd", "schedule": schedule}))
    with pytest.raises(SettingsError, match="num_steps = 5: allowed with the schedule is 12"):
        make_plan(load_config(settings | {"num_steps": 5, "schedule": schedule}))
    with pytest.raises(SettingsError, match=r"averages with agent \d; the topology does not allow"):
        make_plan(load_config(settings | {"topology": "star", "schedule": schedule}))
    rows, metadata = read_rows(Path(schedule))
    alone = next(place for place, row in enumerate(rows) if row.kind == "passive")
    changed = (rows[alone].reads[0].version + 1) % 12
    rows[alone] = rows[alone]._replace(reads=(rows[alone].reads[0]._replace(version=changed),))
    write_rows(tmp_path / "unmatched.parquet", rows, metadata)
    with pytest.raises(SettingsError, match=r"averages with agent \d, which has no row of it"):
        make_plan(load_config(settings | {"schedule": str(tmp_path / "unmatched.parquet")}))
    other = Trainer(settings | {"algorithm": "d-asgd", "name": "other"}).fit()
    with pytest.raises(SettingsError, match="allowed with ad-psgd are schedules of ad-psgd"):
        make_plan(load_config(settings | {"schedule": str(Path(other.path) / "schedule.parquet")}))


@pytest.mark.parametrize("mode", ["live", "planned"])
def test_live_one_may_have_averaged_with_an_agent_that_had_given_it_up(mode: str, tmp_path: Path) -> None:
    """Agent 0 asks agent 1, which does not answer in time, and then agent 3."""
    asked = (Read(0, 0, 0, 0),)
    rows = [
        Row(1, 0, 0, 1, 1, asked, "passive"),
        Row(3, 0, 0, 1, 9, asked, "passive"),
        Row(0, 0, 0, 1, 9, (Read(3, 0, 0, 0),)),
        *(Row(agent, step, 0, 9, 9, ()) for agent, step in ((1, 1), (2, 0), (3, 1))),
    ]
    info = ScheduleInfo(mode=mode, algorithm="ad-psgd", reading="pairs", num_agents=4)
    write_rows(tmp_path / "schedule.parquet", rows, info.to_metadata())
    settings = SMALL | {"num_agents": 4, "num_steps": 1, "schedule": str(tmp_path / "schedule.parquet")}
    if mode == "planned":
        with pytest.raises(SettingsError, match="agent 1 at step 0 averages with agent 0, which has no row of it"):
            make_plan(load_config(settings))
    else:
        assert Trainer(settings | {"storage_path": str(tmp_path)}).fit().error is None


def test_a_row_whose_partner_averaged_with_another_one_is_an_error() -> None:
    own = plan(num_agents=2)
    rows = [Row(0, 0, 0, 1, 1, (Read(1, 1, 0, 0),))]
    with pytest.raises(
        RunError, match="agent 0 reads version 1 of agent 1 at step 0, and no row before it publishes that"
    ):
        list(Execution(rows, pairs_of(own)).reports())
