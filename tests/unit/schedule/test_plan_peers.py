import dataclasses
import math
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from ray_pcasgd.records import Read, Row
from ray_pcasgd.rules import GossipPull, GossipPush, OverlapSGP
from ray_pcasgd.rules.base import Rule
from ray_pcasgd.rules.exchange import RandomPairs
from ray_pcasgd.schedule.barrier import AllBarrier, Barrier, BoundedBarrier, NoBarrier, SampledBarrier
from ray_pcasgd.schedule.delays import ComputeTimes, LinkDelay
from ray_pcasgd.schedule.laws import Law
from ray_pcasgd.schedule.network import build_network, build_push_network
from ray_pcasgd.schedule.ordering import in_causal_order
from ray_pcasgd.schedule.parquet import trace_hash
from ray_pcasgd.schedule.plan_peers import Planner
from ray_pcasgd.schedule.topology import Complete, DirectedExponential, DirectedRing, ErdosRenyi, Metropolis, Ring, Star
from tests.speed import examples
from tests.unit.planning import slow_rows


def law(value: Any) -> Any:
    return TypeAdapter(Law).validate_python(value)


def planner(num_agents: int = 4, topology: Any = None, **settings: Any) -> Planner:
    network = build_network(topology or Complete(), Metropolis(), num_agents, settings.get("seed", 0))
    defaults = {
        "compute": ComputeTimes(),
        "links": (),
        "clusters": tuple(i * 2 // num_agents for i in range(num_agents)),
        "barrier": NoBarrier(),
        "num_steps": 12,
        "seed": 0,
    }
    return Planner(neighbors=network.neighbors, **(defaults | settings))


BARRIERS = st.one_of(
    st.just(NoBarrier()), st.just(AllBarrier()), st.integers(0, 3).map(lambda s: BoundedBarrier(staleness=s))
)
SAMPLED = st.builds(
    SampledBarrier, beta=st.integers(0, 4), base=st.sampled_from([AllBarrier(), BoundedBarrier(staleness=1)])
)
# Multiples of a half make many events coincide; the others hardly any.
NUMBERS = st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 3.0])
LAWS = st.one_of(
    NUMBERS,
    NUMBERS,
    st.just({"name": "uniform", "low": 0, "high": 3}),
    st.just({"name": "exponential", "mean": 1.5}),
    st.just({"name": "pareto", "shape": 1.2, "scale": 0.3}),
    st.just({"name": "outage", "mean_up": 4, "mean_down": 3, "delay": 0.5}),
).map(law)
LINKS = st.lists(
    st.builds(
        LinkDelay,
        delay=LAWS,
        unit=st.sampled_from(["steps", "seconds"]),
        between=st.sampled_from(["all", "clusters", ((0,), (1, 2))]),
        from_step=st.sampled_from([0, 0, 4]),
        from_second=st.sampled_from([0.0, 0.0, 3.0]),
    ),
    max_size=4,
).map(tuple)


@st.composite
def plans(draw: st.DrawFn, barriers: st.SearchStrategy[Barrier], computing: st.SearchStrategy[Any] = LAWS) -> Planner:
    num_agents = draw(st.integers(1, 5))
    local_steps = st.tuples(*[st.integers(1, 5)] * num_agents)
    return planner(
        num_agents=num_agents,
        local_steps=draw(st.one_of(st.just(()), st.integers(1, 5).map(lambda each: (each,) * num_agents), local_steps)),
        topology=draw(st.sampled_from([Complete(), Ring(), Star(), ErdosRenyi(probability=0.7)])),
        compute=ComputeTimes(
            law=draw(computing), agents={1: draw(computing)}, stragglers=draw(st.sampled_from([{}, {0: law(0.5)}]))
        ),
        links=draw(LINKS),
        barrier=draw(barriers),
        num_steps=draw(st.integers(1, 12)),
        seed=draw(st.integers(0, 1000)),
    )


@examples(80, 300)
@given(plans(st.one_of(BARRIERS, SAMPLED)))
def test_rows_equal_those_of_the_slow_planner(plan: Planner) -> None:
    assert list(plan) == slow_rows(plan)


@examples(40, 100)
@given(plans(st.one_of(BARRIERS, SAMPLED)))
def test_rows_of_agents_that_combine_first_equal_those_of_the_slow_planner(plan: Planner) -> None:
    plan = dataclasses.replace(plan, combines_first=True)
    assert list(plan) == slow_rows(plan)


@examples(25, 60)
@given(plans(st.sampled_from([NoBarrier(), AllBarrier()])), st.booleans())
def test_rows_of_random_pairs_equal_those_of_the_slow_planner(plan: Planner, combines_first: bool) -> None:
    everybody = range(len(plan.neighbors))
    complete = tuple(tuple(k for k in everybody if k != i) for i in everybody)
    links = tuple(link for link in plan.links if link.unit == "seconds")
    plan = dataclasses.replace(
        plan, neighbors=complete, exchange=RandomPairs(), combines_first=combines_first, links=links
    )
    rows = list(plan)
    assert rows == slow_rows(plan)
    if isinstance(plan.barrier, AllBarrier) and plan.rounds.are_single:
        # Each pair has exchanged the versions of its round, however long it took.
        assert all((read.version, read.staleness) == (row.step, 0) for row in rows for read in row.reads)


def test_equal_speeds_read_the_present_versions_of_all_where_they_combine_first() -> None:
    rows = list(planner(combines_first=True))
    assert all((read.version, read.staleness, read.age) == (row.step, 0, 0) for row in rows for read in row.reads)
    assert {row.start for row in rows if row.step == 3} == {3.0}


def test_sampled_rows_equal_those_of_the_slow_planner_where_agents_drift_apart() -> None:
    """Reads that are capped below what was read before, and waits with several messages under way on a link."""
    for seed in range(30):
        plan = planner(
            compute=ComputeTimes(law=law({"name": "exponential", "mean": 1}), agents={0: law(3)}),
            links=(LinkDelay(delay=law({"name": "exponential", "mean": 3}), unit="seconds"),),
            barrier=SampledBarrier(beta=1 + seed % 2),
            seed=seed,
        )
        assert list(plan) == slow_rows(plan)


@examples(60, 150)
@given(plans(st.just(NoBarrier())), st.sampled_from([GossipPull(every=2), GossipPush(), GossipPush(every=3)]))
def test_rows_of_gossip_equal_those_of_the_slow_planner(plan: Planner, rule: Rule) -> None:
    plan = dataclasses.replace(plan, exchange=rule)
    assert list(plan) == slow_rows(plan)


@examples(60, 150)
@given(plans(st.one_of(BARRIERS, SAMPLED)))
def test_rows_of_push_sum_equal_those_of_the_slow_planner(plan: Planner) -> None:
    plan = dataclasses.replace(plan, exchange=OverlapSGP())
    assert list(plan) == slow_rows(plan)


@pytest.mark.parametrize("topology", [DirectedRing(), DirectedExponential()])
@pytest.mark.parametrize("barrier", [NoBarrier(), AllBarrier(), BoundedBarrier(staleness=1)])
def test_rows_on_directed_graphs_equal_those_of_the_slow_planner(topology: Any, barrier: Barrier) -> None:
    network = build_push_network(topology, 5, 0)
    link = LinkDelay(delay=law({"name": "exponential", "mean": 1}), unit="seconds")
    compute = ComputeTimes(law=law({"name": "exponential", "mean": 1}))
    plan = planner(5, compute=compute, links=(link,), barrier=barrier)
    plan = dataclasses.replace(plan, neighbors=network.neighbors, exchange=OverlapSGP())
    rows = list(plan)
    assert rows == slow_rows(plan)
    assert {(read.neighbor, row.agent) for row in rows for read in row.reads} == set(topology.graph(5, 0).edges)


@examples(60, 150)
@given(plans(st.one_of(BARRIERS, SAMPLED)))
def test_rows_can_be_executed_in_their_order(plan: Planner) -> None:
    rows = list(plan)
    published = [0] * len(plan.neighbors)
    for row in rows:
        assert row.step == published[row.agent]
        assert [read.neighbor for read in row.reads] == list(plan.neighbors[row.agent])
        for read in row.reads:
            assert 0 <= read.version <= published[read.neighbor]
            # A stale read may ask for the direction at that version, which the next row computes.
            assert read.staleness == 0 or read.version < published[read.neighbor]
        published[row.agent] += 1
    assert published == [plan.rounds.last(agent) for agent in range(len(plan.neighbors))]
    assert all(early.end <= late.end for early, late in pairwise(rows))
    assert in_causal_order(reversed(rows)) == in_causal_order(rows)
    assert set(in_causal_order(rows)) == set(rows)


@examples(60, 150)
@given(plans(st.one_of(BARRIERS, SAMPLED)))
def test_rows_of_one_agent_follow_each_other(plan: Planner) -> None:
    planned = list(plan)
    for agent in range(len(plan.neighbors)):
        rows = [row for row in planned if row.agent == agent]
        assert rows[0].start == 0
        assert all(early.end == late.start for early, late in pairwise(rows))
        for row in rows:
            assert row.start <= row.ready <= row.end
            assert row.end == row.ready or not isinstance(plan.barrier, NoBarrier)
        for early, late in pairwise(rows):
            for before, after in zip(early.reads, late.reads, strict=True):
                assert before.version <= after.version
                assert before.version < after.version or after.age == before.age + 1
        assert all(0 <= read.age <= row.step and read.staleness >= 0 for row in rows for read in row.reads)


@examples(40, 100)
@given(plans(BARRIERS))
def test_barriers_are_kept(plan: Planner) -> None:
    for row in plan:
        for read in row.reads:
            published, last = read.version + read.staleness, plan.rounds.last(read.neighbor)
            match plan.barrier:
                case AllBarrier():
                    assert published == min(row.step, last)
                case BoundedBarrier(staleness=staleness):
                    assert published >= min(row.step - staleness, last)


@examples(25, 60)
@given(plans(BARRIERS), st.integers(0, 6))
def test_held_weights_are_read_only_once_their_sender_is_ahead(plan: Planner, hold: int) -> None:
    seconds = tuple(entry for entry in plan.links if entry.unit == "seconds")
    held = planner(
        len(plan.neighbors), compute=plan.compute, links=(*seconds, LinkDelay(delay=law(hold))), barrier=plan.barrier
    )
    for row in held:
        for read in row.reads:
            published = read.version + read.staleness
            assert read.staleness >= min(hold, published)
            if not seconds and hold <= published:
                assert read.staleness == hold


@settings(max_examples=40)
@given(plans(st.one_of(BARRIERS, SAMPLED)))
def test_the_same_plan_gives_the_same_rows(plan: Planner) -> None:
    rows = list(plan)
    assert rows == list(plan)
    assert trace_hash(rows) == trace_hash(reversed(rows))


def test_another_seed_gives_another_schedule() -> None:
    compute = ComputeTimes(law=law({"name": "exponential", "mean": 1}))
    hashes = {trace_hash(planner(compute=compute, seed=seed)) for seed in range(10)}
    assert len(hashes) == 10


@pytest.mark.parametrize(
    "barrier",
    [NoBarrier(), AllBarrier(), BoundedBarrier(staleness=0), BoundedBarrier(staleness=3), SampledBarrier(beta=2)],
)
@pytest.mark.parametrize("seconds", [0.0, 0.1, 1.0])
def test_equal_speeds_without_delay_are_synchronous(barrier: Barrier, seconds: float) -> None:
    rows = list(planner(barrier=barrier, compute=ComputeTimes(law=law(seconds))))
    assert [(row.step, row.agent) for row in rows] == [(t, i) for t in range(12) for i in range(4)]
    for row in rows:
        assert row.end == row.ready == pytest.approx((row.step + 1) * seconds)
        assert row.reads == tuple(Read(k, row.step, 0, 0) for k in range(4) if k != row.agent)


@pytest.mark.parametrize("barrier", [NoBarrier(), AllBarrier(), BoundedBarrier(staleness=2)])
def test_held_steps_at_equal_speeds(barrier: Barrier) -> None:
    links = (LinkDelay(delay=law(10), between="clusters"),)
    for row in planner(num_steps=30, links=links, barrier=barrier):
        for read in row.reads:
            late = min(10, row.step) if (read.neighbor < 2) != (row.agent < 2) else 0
            assert read == Read(read.neighbor, row.step - late, late, late)


def test_a_partition_that_heals() -> None:
    links = (
        LinkDelay(delay=law(2), between="clusters"),
        LinkDelay(delay=law(8), between=((0, 1), (2, 3)), from_step=20),
        LinkDelay(delay=law(0), from_step=40),
    )
    stale = {row.step: row.reads[-1].staleness for row in planner(num_steps=60, links=links) if row.agent == 0}
    # Version 19, sent before the change, is the newest readable one until version 20 is 8 steps old.
    expected = dict.fromkeys(range(2, 22), 2) | {t: t - 19 for t in range(22, 28)} | dict.fromkeys(range(28, 40), 8)
    expected |= {0: 0, 1: 1} | dict.fromkeys(range(40, 60), 0)
    assert stale == expected


@pytest.mark.parametrize("latency", [0.25, 1.0, 1.5, 2.0, 4.75])
def test_constant_seconds_at_equal_speeds(latency: float) -> None:
    # Version v is sent at second v and must be there by second t + 1.
    for row in planner(links=(LinkDelay(delay=law(latency), unit="seconds"),)):
        version = max(0, math.floor(row.step + 1 - latency))
        assert all(read[1:] == (version, row.step - version, row.step - version) for read in row.reads)


def test_messages_do_not_overtake() -> None:
    links = (LinkDelay(delay=law(5), unit="seconds"), LinkDelay(delay=law(0), unit="seconds", from_step=3))
    versions = [row.reads[0].version for row in planner(2, links=links, num_steps=10) if row.agent == 0]
    # Versions 1, 2, 3 leave at seconds 1, 2, 3; the second arrives at 7, and the third, without delay, no sooner.
    assert versions == [0, 0, 0, 0, 0, 1, 6, 7, 8, 9]


def straggling(barrier: Barrier) -> list[Row]:
    compute = ComputeTimes(stragglers={1: law(1.5)})
    return list(planner(2, compute=compute, barrier=barrier, num_steps=4))


def test_a_straggler_without_a_barrier() -> None:
    assert straggling(NoBarrier()) == [
        Row(0, 0, 0.0, 1.0, 1.0, (Read(1, version=0, staleness=0, age=0),)),
        Row(0, 1, 1.0, 2.0, 2.0, (Read(1, version=0, staleness=0, age=1),)),
        Row(1, 0, 0.0, 2.5, 2.5, (Read(0, version=2, staleness=0, age=0),)),
        Row(0, 2, 2.0, 3.0, 3.0, (Read(1, version=1, staleness=0, age=0),)),
        Row(0, 3, 3.0, 4.0, 4.0, (Read(1, version=1, staleness=0, age=1),)),
        Row(1, 1, 2.5, 5.0, 5.0, (Read(0, version=4, staleness=0, age=0),)),
        Row(1, 2, 5.0, 7.5, 7.5, (Read(0, version=4, staleness=0, age=1),)),
        Row(1, 3, 7.5, 10.0, 10.0, (Read(0, version=4, staleness=0, age=2),)),
    ]


def test_a_straggler_at_a_barrier() -> None:
    # Agent 0 ends in the round after the straggler's, at the same instant, and so publishes a step early.
    assert straggling(AllBarrier()) == [
        Row(0, 0, 0.0, 1.0, 1.0, (Read(1, version=0, staleness=0, age=0),)),
        Row(1, 0, 0.0, 2.5, 2.5, (Read(0, version=0, staleness=0, age=0),)),
        Row(0, 1, 1.0, 2.0, 2.5, (Read(1, version=1, staleness=0, age=0),)),
        Row(1, 1, 2.5, 5.0, 5.0, (Read(0, version=1, staleness=0, age=1),)),
        Row(0, 2, 2.5, 3.5, 5.0, (Read(1, version=2, staleness=0, age=0),)),
        Row(1, 2, 5.0, 7.5, 7.5, (Read(0, version=2, staleness=0, age=1),)),
        Row(0, 3, 5.0, 6.0, 7.5, (Read(1, version=3, staleness=0, age=0),)),
        Row(1, 3, 7.5, 10.0, 10.0, (Read(0, version=3, staleness=0, age=1),)),
    ]


def test_a_straggler_at_a_bounded_barrier() -> None:
    rows = straggling(BoundedBarrier(staleness=1))
    assert [(row.agent, row.step, row.end, row.reads[0].version) for row in rows] == [
        (0, 0, 1.0, 0),
        (0, 1, 2.0, 0),
        (1, 0, 2.5, 2),
        (0, 2, 3.0, 1),
        (1, 1, 5.0, 3),
        (0, 3, 5.0, 2),
        (1, 2, 7.5, 4),
        (1, 3, 10.0, 4),
    ]


def test_who_has_finished_holds_nobody_up() -> None:
    rows = straggling(SampledBarrier(beta=1, base=AllBarrier()))
    assert rows == straggling(AllBarrier())
    assert max(row.end for row in rows) == 10.0


@pytest.mark.parametrize("barrier", [NoBarrier(), AllBarrier(), SampledBarrier(beta=3)])
def test_a_lone_agent(barrier: Barrier) -> None:
    rows = list(planner(1, barrier=barrier, num_steps=3))
    assert rows == [Row(0, t, float(t), t + 1.0, t + 1.0, ()) for t in range(3)]


def test_rows_come_as_they_are_asked_for() -> None:
    rows = list(islice(planner(num_steps=10**12, barrier=AllBarrier()), 40))
    assert rows[-1].step == 9


def test_a_barrier_on_a_ring_follows_its_recursion() -> None:
    """A step ends once its gradient is ready and both neighbors have ended the step before."""
    plan = planner(6, Ring(), compute=ComputeTimes(law=law({"name": "exponential", "mean": 1})), barrier=AllBarrier())
    samplers = [plan.compute.sampler(0, agent) for agent in range(6)]
    ends = np.zeros(6)
    found = {(row.step, row.agent): row.end for row in plan}
    for step in range(plan.num_steps):
        ready = ends + [sampler(0.0) for sampler in samplers]
        ends = np.maximum(ready, np.maximum(np.roll(ends, 1), np.roll(ends, -1)))
        assert [found[step, agent] for agent in range(6)] == pytest.approx(ends, abs=1e-6)


def test_without_a_barrier_agents_keep_their_own_pace() -> None:
    compute = ComputeTimes(law=law({"name": "exponential", "mean": 0.5}), agents={0: law(2)})
    last = {row.agent: row.end for row in planner(3, compute=compute, num_steps=4000)}
    assert last == pytest.approx({0: 8000, 1: 2000, 2: 2000}, rel=0.04)


def test_sampling_more_neighbors_costs_more_time() -> None:
    compute = ComputeTimes(law=law({"name": "exponential", "mean": 1}))

    def seconds(barrier: Barrier) -> float:
        return max(row.end for row in planner(8, compute=compute, barrier=barrier, num_steps=300))

    sampled = [seconds(SampledBarrier(beta=beta)) for beta in (0, 1, 3, 7)]
    assert sampled[0] == seconds(NoBarrier())
    assert sampled[-1] == seconds(AllBarrier())
    assert all(np.diff(sampled) > 0)
