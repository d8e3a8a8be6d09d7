"""Plans around servers whose workers leave and come back: against the slow planner, by hand, and what none may do."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_pcasgd.records import Row
from ray_pcasgd.rules.gathering import ASGD, Gathering, KAsync, KBatchAsync, KSync, Quorum, Sync
from ray_pcasgd.schedule.churn_servers import ChurningServerPlanner
from ray_pcasgd.schedule.delays import ComputeTimes, LinkDelay
from ray_pcasgd.schedule.membership import Away, Departure
from ray_pcasgd.schedule.ordering import in_causal_order
from ray_pcasgd.schedule.parquet import trace_hash
from ray_pcasgd.schedule.plan_servers import ServerPlanner
from ray_pcasgd.schedule.scheduler import Scheduler
from tests.speed import examples
from tests.unit.schedule.test_bytes import server_plans_with_bytes
from tests.unit.schedule.test_churn import NEVER, aways
from tests.unit.schedule.test_plan_servers import law, planner, plans, told, updates
from tests.unit.server_planning import check_rows, slow_rows


def churning(plan: ServerPlanner, away: Sequence[Away]) -> ChurningServerPlanner:
    """Return a plan with the same fields, and who is away when."""
    fields = {one.name: getattr(plan, one.name) for one in dataclasses.fields(ServerPlanner)}
    return ChurningServerPlanner(**fields, away=tuple(away))


def may_wait_for_each_other(plan: ServerPlanner) -> bool:
    """Return whether several servers may each wait for workers that wait for another one: refused by the settings."""
    return plan.num_servers > 1 and plan.gathering.waits and plan.gathering.num_gradients(plan.num_workers) > 1


@st.composite
def churns(draw: st.DrawFn, of: st.SearchStrategy[ServerPlanner]) -> ChurningServerPlanner:
    plan = draw(of.filter(lambda plan: not may_wait_for_each_other(plan)))
    return churning(plan, draw(aways(plan.num_workers)))


def rows_of(plan: ServerPlanner) -> list[Row]:
    return [row for row in plan if row is not None]


@examples(40, 100)
@given(churns(plans()))
def test_rows_equal_those_of_the_slow_planner(plan: ChurningServerPlanner) -> None:
    assert rows_of(plan) == slow_rows(plan)


@settings(max_examples=30)
@given(churns(server_plans_with_bytes()))
def test_rows_with_bandwidths_equal_those_of_the_slow_planner(plan: ChurningServerPlanner) -> None:
    assert rows_of(plan) == slow_rows(plan)


@settings(max_examples=40)
@given(churns(plans()))
def test_rows_can_be_executed_are_of_who_is_there_and_come_to_the_end_unless_all_have_left(
    plan: ChurningServerPlanner,
) -> None:
    rows = rows_of(plan)
    check_rows(rows, plan.num_workers)
    for row in rows:
        assert row.agent >= plan.num_workers or not is_away(plan.away, row.agent, row.end)
    found = []
    for worker in range(plan.num_workers):
        back = [row for row in rows if row.agent == worker and row.kind == "rejoined"]
        found += [(worker, row.step, row.step + 1) for row in back]
    assert sorted(one for one in plan.departures if one.back_at is not None) == found
    gone = {one.agent for one in plan.departures if one.back_at is None}
    batches = dict.fromkeys(range(plan.num_workers, plan.num_workers + plan.num_servers), 0)
    for row in updates(rows, plan.num_workers):
        batches[row.agent] += sum(plan.local_steps[read.neighbor] for read in row.reads)
        if plan.gathering.waits:
            assert len({read.neighbor for read in row.reads}) == len(row.reads)
    is_whole = min(batches.values()) >= plan.num_steps * plan.num_workers
    assert is_whole or gone == set(range(plan.num_workers))
    assert trace_hash(in_causal_order(rows, with_directions=False)) == trace_hash(rows)


def is_away(away: Sequence[Away], worker: int, second: float) -> bool:
    return any(one.agent == worker and round(one.leaves, 9) < second < round(one.returns, 9) for one in away)


@settings(max_examples=15)
@given(plans())
def test_where_nobody_leaves_before_the_end_rows_are_those_of_the_plan_without_churn(plan: ServerPlanner) -> None:
    assert rows_of(churning(plan, [Away(0, 1e6, NEVER)])) == rows_of(plan)


def churn(gathering: Gathering, *away: Away, **settings: Any) -> list[Row]:
    """Workers of 1, 2 and 3.25 seconds, unless it is said otherwise."""
    compute = ComputeTimes(agents={k: law(seconds) for k, seconds in enumerate([1, 2, 3.25])})
    plan = planner(gathering, num_workers=3, **({"compute": compute} | settings))
    return rows_of(churning(plan, away))


def taken(rows: list[Row]) -> list[tuple[float, list[tuple[int, int]]]]:
    """Return when the server has updated, and with which gradients."""
    return [(row.end, [(read.neighbor, read.version) for read in row.reads]) for row in updates(rows, 3)]


def test_asgd_by_hand() -> None:
    """The fast worker leaves in the middle of its second gradient, and is back with what the server then has."""
    rows = churn(ASGD(), Away(0, 1.5, 2.5), num_steps=1)
    assert told(rows) == [
        (0, 0, 1.0, "step", (3, 0, 0)),
        (3, 0, 1.0, "step", (0, 1, 0)),
        (1, 0, 2.0, "step", (3, 0, 0)),
        (3, 1, 2.0, "step", (1, 1, 1)),
        (0, 1, 2.5, "rejoined", (3, 2, 0)),
        (2, 0, 3.25, "step", (3, 0, 0)),
        (3, 2, 3.25, "step", (2, 1, 2)),
    ]


def test_synchronous_sgd_waits_for_all_who_are_there_and_keeps_what_has_come() -> None:
    # Worker 2 leaves at 2.5, when the other two wait for it; it is back at 5, in the middle of their third step.
    rows = churn(Sync(), Away(2, 2.5, 5.0), num_steps=4)
    assert taken(rows)[:4] == [
        (2.5, [(0, 1), (1, 1)]),
        (4.5, [(0, 2), (1, 2)]),
        (8.25, [(0, 3), (1, 3), (2, 2)]),
        (11.5, [(0, 4), (1, 4), (2, 3)]),
    ]
    # Worker 0 leaves while its gradient waits: that counts, and does not stand for worker 2's.
    rows = churn(Sync(), Away(0, 1.5, NEVER), num_steps=2)
    assert taken(rows)[:2] == [(3.25, [(0, 1), (1, 1), (2, 1)]), (6.5, [(1, 2), (2, 2)])]
    # It is back before the update: what it had delivered is given up, since it delivers anew.
    rows = churn(Sync(), Away(0, 1.5, 2.0), num_steps=1)
    assert taken(rows)[0] == (3.25, [(0, 3), (1, 1), (2, 1)])


@pytest.mark.parametrize(
    ("gathering", "first"),
    [
        (KAsync(k=2), (2.0, [(0, 1), (1, 1)])),
        (KSync(k=3), (3.25, [(0, 1), (1, 1), (2, 1)])),
        (KBatchAsync(k=3), (3.25, [(0, 1), (1, 1), (2, 1)])),
        (Quorum(k=2, grace_seconds=10.0), (3.25, [(0, 1), (1, 1), (2, 1)])),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_was_delivered_counts_whatever_the_policy(gathering: Gathering, first: Any) -> None:
    assert taken(churn(gathering, Away(0, 1.5, NEVER), num_steps=1))[0] == first


def test_a_quorum_does_not_wait_out_its_grace_for_who_has_left() -> None:
    assert taken(churn(Quorum(k=2, grace_seconds=10.0), Away(2, 2.5, NEVER), num_steps=1))[0][0] == 2.5


def test_word_that_a_worker_leaves_takes_as_long_as_a_gradient_and_what_is_sent_before_arrives() -> None:
    links = (LinkDelay(delay=law(0.25), unit="seconds"),)
    rows = churn(Sync(), Away(2, 3.4, NEVER), Away(0, 1.1, NEVER), num_steps=2, links=links)
    assert taken(rows)[:2] == [(3.5, [(0, 1), (1, 1), (2, 1)]), (6.0, [(1, 2)])]
    # A gradient that is under way when its worker returns is lost.
    rows = churn(ASGD(), Away(0, 1.1, 1.2), num_steps=1, links=links)
    assert [read for one in taken(rows) for read in one[1]][:2] == [(1, 1), (0, 3)]


def test_a_plan_ends_early_where_everybody_has_left_for_good_and_waits_where_somebody_returns() -> None:
    rows = churn(ASGD(), *(Away(k, 1.5, NEVER) for k in range(3)), num_steps=10)
    assert taken(rows) == [(1.0, [(0, 1)])]
    rows = churn(ASGD(), *(Away(k, 1.5, NEVER) for k in (1, 2)), Away(0, 0.5, 1000.0), num_steps=1)
    assert [end for end, _ in taken(rows)] == [1001.0, 1002.0, 1003.0]


def test_who_has_left_for_good_is_dealt_no_more_rows() -> None:
    compute = ComputeTimes(agents={k: law(seconds) for k, seconds in enumerate([1, 2, 3.25])})
    plan = planner(ASGD(), num_workers=3, num_steps=10**9, compute=compute)
    churned = churning(plan, [Away(1, 4.5, NEVER), Away(0, 1.5, 7.5)])
    scheduler = Scheduler(churned, 4)
    steps = []
    while dealt := scheduler.deal(1, 3):
        steps += [row.step for row in dealt if isinstance(row, Row)]
    assert steps == [0, 1]
    dealt = scheduler.deal(0, 3)
    assert dealt is not None
    kinds = [(row.step, row.kind) for row in dealt if isinstance(row, Row)]
    assert kinds == [(0, "step"), (1, "rejoined"), (2, "step")]
    assert churned.departures == (Departure(0, 1, 2), Departure(1, 2, None))
