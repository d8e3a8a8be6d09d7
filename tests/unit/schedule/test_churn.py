"""Plans whose agents leave and come back: against the slow planner, by hand, and what no such plan may do."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.records import Read, Row
from ray_pcasgd.rules import GossipPull
from ray_pcasgd.schedule.barrier import AllBarrier, Barrier, NoBarrier, SampledBarrier
from ray_pcasgd.schedule.churn import ChurningPlanner
from ray_pcasgd.schedule.delays import ComputeTimes, LinkDelay
from ray_pcasgd.schedule.membership import Away, Departure
from ray_pcasgd.schedule.ordering import in_causal_order
from ray_pcasgd.schedule.parquet import check_fits, trace_hash
from ray_pcasgd.schedule.plan_peers import Planner
from ray_pcasgd.schedule.scheduler import Scheduler
from ray_pcasgd.schedule.topology import Ring
from tests.speed import examples
from tests.unit.planning import slow_rows
from tests.unit.schedule.test_bytes import plans_with_bytes
from tests.unit.schedule.test_plan_peers import BARRIERS, SAMPLED, law, planner, plans

NEVER = math.inf
# Halves make many changes coincide with steps and with each other; the others hardly any.
TIMES = st.one_of(st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0, 5.0]), st.floats(0.01, 6.0))


@st.composite
def aways(draw: st.DrawFn, num_agents: int) -> tuple[Away, ...]:
    found = []
    for agent in range(num_agents):
        second = draw(st.one_of(st.just(0.0), TIMES))
        for _ in range(draw(st.integers(0, 3))):
            back = second + draw(TIMES)
            found.append(Away(agent, second, back))
            second = back + draw(TIMES)
        if found and found[-1].agent == agent and draw(st.booleans()):
            found[-1] = found[-1]._replace(returns=NEVER)
    return tuple(found)


def churning(plan: Planner, away: Sequence[Away], **settings: Any) -> ChurningPlanner:
    """Return a plan with the same fields, and who is away when."""
    fields = {one.name: getattr(plan, one.name) for one in dataclasses.fields(Planner)}
    return ChurningPlanner(**fields | settings, away=tuple(away))


@st.composite
def churns(draw: st.DrawFn, of: st.SearchStrategy[Planner]) -> ChurningPlanner:
    plan = draw(of)
    return churning(plan, draw(aways(len(plan.neighbors))), combines_first=draw(st.booleans()))


CHURNS = churns(plans(st.one_of(BARRIERS, SAMPLED)))


@examples(80, 300)
@given(CHURNS)
def test_rows_equal_those_of_the_slow_planner(plan: ChurningPlanner) -> None:
    assert list(plan) == slow_rows(plan)


@examples(25, 60)
@given(churns(plans(st.just(NoBarrier()))))
def test_rows_of_gossip_equal_those_of_the_slow_planner(plan: ChurningPlanner) -> None:
    plan = dataclasses.replace(plan, exchange=GossipPull(every=2))
    assert list(plan) == slow_rows(plan)


@examples(40, 100)
@given(churns(plans_with_bytes().filter(lambda plan: plan.exchange.reading == "newest")))
def test_rows_with_bandwidths_equal_those_of_the_slow_planner(plan: ChurningPlanner) -> None:
    assert list(plan) == slow_rows(plan)


@examples(25, 60)
@given(plans(st.one_of(BARRIERS, SAMPLED)))
def test_where_nobody_leaves_the_plan_is_the_one_without_churn(plan: Planner) -> None:
    assert list(churning(plan, ())) == list(plan)
    late = [Away(agent, 1e6, 2e6) for agent in range(len(plan.neighbors))]
    assert list(churning(plan, late)) == list(plan)


@examples(60, 150)
@given(CHURNS)
def test_rows_can_be_executed_in_their_order_and_their_reads_are_of_who_was_there(plan: ChurningPlanner) -> None:
    rows = list(plan)
    versions = [0] * len(plan.neighbors)
    back_at = [0] * len(plan.neighbors)
    stepped = {row[:2] for row in rows if row.kind == "step"}
    for row in rows:
        assert row.step == versions[row.agent] if row.kind == "step" else row.step >= versions[row.agent]
        assert not is_away(plan, row.agent, row.end)
        if row.kind == "rejoined":
            back_at[row.agent] = row.step + 1
            there = [k for k in plan.neighbors[row.agent] if not is_away(plan, k, row.end)]
            assert {read.neighbor for read in row.reads} <= {*there} | {
                k for k in plan.neighbors[row.agent] if versions[k] == plan.rounds.last(k)
            }
        for read in row.reads:
            assert read.version + read.staleness <= versions[read.neighbor]
            assert read.age <= row.step - back_at[row.agent] or row.kind == "rejoined"
            # A direction is computed by the step after its version.
            assert not read.staleness or plan.combines_first or (read.neighbor, read.version) in stepped
        versions[row.agent] = row.step + 1
    ended = {agent for agent, version in enumerate(versions) if version == plan.rounds.last(agent)}
    gone = {one.agent for one in plan.departures if one.back_at is None}
    assert ended | gone == set(range(len(versions)))
    if rows and ended and not plan.combines_first:
        check_fits(in_causal_order(rows), plan.neighbors, plan.rounds, gone)
        assert trace_hash(in_causal_order(rows)) == trace_hash(rows)


def is_away(plan: ChurningPlanner, agent: int, second: float) -> bool:
    return any(one.agent == agent and round(one.leaves, 9) < second < round(one.returns, 9) for one in plan.away)


@examples(40, 100)
@given(CHURNS)
def test_departures_are_those_of_the_rows(plan: ChurningPlanner) -> None:
    rows = list(plan)
    found = []
    for agent in range(len(plan.neighbors)):
        last = 0
        for row in (row for row in rows if row.agent == agent):
            if row.kind == "rejoined":
                found.append(Departure(agent, last, row.step + 1))
            last = row.step + 1
        if last < plan.rounds.last(agent):
            found.append(Departure(agent, last, None))
    assert sorted(plan.departures, key=lambda one: one[:2]) == found


def churn(num_agents: int, *away: Away, **settings: Any) -> list[Row]:
    return list(churning(planner(num_agents, **settings), away))


def read_by(rows: Sequence[Row], agent: int) -> dict[float, list[tuple[int, int]]]:
    """Return by the seconds of an agent's rows what it read then."""
    return {row.end: [read[:2] for read in row.reads] for row in rows if row.agent == agent}


@pytest.mark.parametrize("barrier", [NoBarrier(), AllBarrier(), SampledBarrier(beta=2)])
def test_an_agent_leaves_and_comes_back(barrier: Barrier) -> None:
    rows = churn(3, Away(1, 2.5, 5.5), barrier=barrier, num_steps=8)
    # It gives up the step that it was at, and others go on at once without it.
    assert read_by(rows, 1) == {
        1.0: [(0, 0), (2, 0)],
        2.0: [(0, 1), (2, 1)],
        5.5: [(0, 5), (2, 5)],
        6.5: [(0, 6), (2, 6)] if barrier.name == "none" else [(0, 5), (2, 5)],
        7.5: [(0, 7), (2, 7)] if barrier.name == "none" else [(0, 6), (2, 6)],
        8.5: [(0, 8), (2, 8)] if barrier.name == "none" else [(0, 7), (2, 7)],
    }
    back = next(row for row in rows if row.kind == "rejoined")
    assert back == Row(1, 4, 5.5, 5.5, 5.5, (Read(0, 5, 0, 0), Read(2, 5, 0, 0)), "rejoined")
    assert [read[:2] for row in rows if row.agent == 0 for read in row.reads if read.neighbor == 1] == [
        *((1, 0), (1, 1)),
        *((1, 5), (1, 6), (1, 7)),
    ]


def test_a_step_that_ends_as_its_agent_leaves_counts_and_others_learn_of_it_late() -> None:
    links = (LinkDelay(delay=law(1.5), unit="seconds"),)
    rows = churn(2, Away(1, 2.0, NEVER), num_steps=6, links=links)
    assert [row.step for row in rows if row.agent == 1] == [0, 1]
    # Version 2 and the farewell are sent at second 2 and come at 3.5, the latter after it.
    assert read_by(rows, 0) == {1.0: [(1, 0)], 2.0: [(1, 0)], 3.0: [(1, 1)]} | {t: [] for t in (4.0, 5.0, 6.0)}


def test_what_was_sent_before_its_return_is_not_read_and_what_is_on_its_way_to_who_left_is_lost() -> None:
    links = (LinkDelay(delay=law(2), unit="seconds"),)
    rows = churn(2, Away(1, 1.5, 2.25), num_steps=6, links=links)
    # Back with version 2 of agent 0; its own version 2 arrives there at 4.25, and version 3 of agent 0 here at 5.
    assert read_by(rows, 1) == {
        1.0: [(0, 0)],
        2.25: [(0, 2)],
        3.25: [(0, 2)],
        4.25: [(0, 2)],
        5.25: [(0, 3)],
        6.25: [(0, 4)],
    }
    assert read_by(rows, 0) == {1.0: [(1, 0)], 2.0: [(1, 0)], 3.0: [], 4.0: [], 5.0: [(1, 2)], 6.0: [(1, 3)]}


def test_an_agent_comes_late() -> None:
    rows = churn(3, Away(2, 0.0, 3.5), num_steps=6, barrier=AllBarrier())
    assert [(row.step, row.kind) for row in rows if row.agent == 2] == [
        (2, "rejoined"),
        *((t, "step") for t in (3, 4, 5)),
    ]
    assert read_by(rows, 0)[3.0] == [(1, 2)]
    assert read_by(rows, 0)[4.0] == [(1, 3), (2, 3)]


def test_one_that_leaves_before_its_first_step_takes_none() -> None:
    rows = churn(2, Away(1, 0.5, NEVER), num_steps=3)
    assert {row.agent for row in rows} == {0}
    assert read_by(rows, 0) == {1.0: [], 2.0: [], 3.0: []}


def test_where_no_neighbor_is_there_an_agent_comes_back_as_it_was() -> None:
    rows = churn(3, *(Away(agent, 1.5, 4.0 + (agent == 2)) for agent in range(3)), num_steps=4)
    back = {row.agent: (row.step, row.reads) for row in rows if row.kind == "rejoined"}
    # Those who come back together do not read each other; who comes later reads what they have come to.
    assert back[0] == back[1] == (1, ())
    assert back[2] == (2, (Read(0, 3, 0, 0), Read(1, 3, 0, 0)))
    assert read_by(rows, 0)[5.0] == [(1, 2)]


def test_a_lone_agent_only_pauses() -> None:
    rows = churn(1, Away(0, 1.5, 4.0), num_steps=3)
    assert [(row.step, row.kind, row.end) for row in rows] == [(0, "step", 1.0), (1, "rejoined", 4.0), (2, "step", 5.0)]


def test_who_has_ended_leaves_no_more_and_is_read_by_who_comes_back() -> None:
    compute = ComputeTimes(agents={0: law(0.5)})
    rows = churn(2, Away(0, 3.0, 4.0), Away(1, 1.5, 8.0), num_steps=4, compute=compute)
    assert [row.kind for row in rows if row.agent == 0] == ["step"] * 4
    # All that it reads have taken all their steps, and so it is at its end at once.
    assert rows[-1] == Row(1, 3, 8.0, 8.0, 8.0, (Read(0, 4, 0, 0),), "rejoined")


def test_one_that_is_slower_than_others_comes_back_at_their_mean_in_its_own_rounds() -> None:
    rows = churn(3, Away(0, 0.5, 5.0), num_steps=24, local_steps=(4, 1, 2))
    back = next(row for row in rows if row.kind == "rejoined")
    # Agent 1 has taken 5 mini-batches, agent 2 2 rounds of 2: 4.5 on average, 1 round of agent 0.
    assert back == Row(0, 0, 5.0, 5.0, 5.0, (Read(1, 5, 0, 0), Read(2, 2, 0, 0)), "rejoined")


def test_two_sides_of_a_ring_whose_link_was_away_go_on_together() -> None:
    """With a barrier nobody waits for who left, and none forever, however far apart they have come."""
    compute = ComputeTimes(law=law({"name": "exponential", "mean": 1}))
    away = (Away(0, 3.2, 20.0), Away(3, 5.1, 25.0), Away(5, 0.0, 12.0))
    rows = churn(6, *away, topology=Ring(), compute=compute, barrier=AllBarrier(), num_steps=60)
    assert {row.agent for row in rows if row.step == 59} == set(range(6))


def test_a_round_that_was_given_up_sends_no_law_back_in_time() -> None:
    outage = law({"name": "outage", "mean_up": 1, "mean_down": 1, "delay": 0.5})
    plan = churning(planner(2, num_steps=40, local_steps=(5, 5), compute=ComputeTimes(law=outage)), [Away(0, 1.0, 1.1)])
    assert list(plan) == slow_rows(plan)


def test_rows_come_as_they_are_asked_for_and_who_has_no_more_is_not_dealt_any() -> None:
    plan = churning(planner(3, num_steps=10**9), [Away(2, 2.5, NEVER), Away(1, 3.5, 6.5)])
    scheduler = Scheduler(plan, 3)
    steps = []
    while dealt := scheduler.deal(2, 4):
        steps += [row.step for row in dealt if isinstance(row, Row)]
    assert steps == [0, 1]
    dealt = scheduler.deal(1, 5)
    assert dealt is not None
    assert [(row.step, row.kind) for row in dealt if isinstance(row, Row)] == [
        *((t, "step") for t in range(3)),
        (5, "rejoined"),
        (6, "step"),
    ]
    assert plan.departures == (Departure(2, 2, None), Departure(1, 3, 6))
