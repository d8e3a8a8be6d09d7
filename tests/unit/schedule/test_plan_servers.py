"""The planner around servers: against a slow one, by hand, and against what theory says of time and staleness."""

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import islice, pairwise
from math import gamma
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from ray_pcasgd.records import Read, Row
from ray_pcasgd.rules.balanced import IA2SGD, Malenia, Ringleader
from ray_pcasgd.rules.delay_threshold import Rennala, Ringmaster
from ray_pcasgd.rules.gathering import (
    ASGD,
    AdaSync,
    Gathering,
    KAsync,
    KBatchAsync,
    KBatchSync,
    KSync,
    NSoftsync,
    Quorum,
    Sync,
)
from ray_pcasgd.schedule.delays import ComputeTimes, LinkDelay
from ray_pcasgd.schedule.laws import Law
from ray_pcasgd.schedule.ordering import in_causal_order
from ray_pcasgd.schedule.parquet import trace_hash
from ray_pcasgd.schedule.plan_servers import ServerPlanner
from tests.speed import examples
from tests.unit.server_planning import check_rows, slow_rows


def law(value: Any) -> Any:
    return TypeAdapter(Law).validate_python(value)


def planner(gathering: Gathering, num_workers: int = 4, num_servers: int = 1, **changes: Any) -> ServerPlanner:
    defaults: dict[str, Any] = {
        "num_steps": 12,
        "local_steps": (1,) * num_workers,
        "reads_before": 0,
        "compute": ComputeTimes(),
        "links": (),
        "clusters": (0,) * (num_workers + num_servers),
        "seed": 0,
    }
    return ServerPlanner(num_workers=num_workers, num_servers=num_servers, gathering=gathering, **(defaults | changes))


def rows_of(plan: ServerPlanner) -> list[Row]:
    rows = list(plan)
    assert None not in rows
    return [row for row in rows if row is not None]


def updates(rows: list[Row], num_workers: int) -> list[Row]:
    return [row for row in rows if row.agent >= num_workers]


RANDOM = ComputeTimes(law=law({"name": "exponential", "mean": 1}))
# Multiples of a half make many events coincide; the others hardly any.
NUMBERS = st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0])
LIGHT = st.one_of(
    NUMBERS,
    NUMBERS,
    st.just({"name": "uniform", "low": 0, "high": 3}),
    st.just({"name": "exponential", "mean": 1.5}),
).map(law)
LAWS = st.one_of(*[LIGHT] * 4, st.just(law({"name": "pareto", "shape": 1.2, "scale": 0.3})))
SECONDS = st.builds(
    LinkDelay,
    delay=st.one_of(*[LIGHT] * 4, st.just(law({"name": "pareto", "shape": 3, "scale": 0.3}))),
    unit=st.just("seconds"),
    between=st.sampled_from(["all", "clusters", ((0,), (1, 2))]),
    from_step=st.sampled_from([0, 0, 4]),
)
STEPS = st.builds(LinkDelay, delay=LAWS, unit=st.just("steps"), from_second=st.sampled_from([0.0, 3.0]))
LINKS = st.one_of(st.just(()), st.lists(st.one_of(SECONDS, SECONDS, STEPS), max_size=3).map(tuple))


@st.composite
def plans(draw: st.DrawFn, links: st.SearchStrategy[Any] = LINKS) -> ServerPlanner:
    num_workers, num_servers = draw(st.integers(1, 5)), draw(st.sampled_from([1, 1, 2, 3]))
    k = draw(st.integers(1, num_workers))
    many = draw(st.integers(1, 2 * num_workers))
    gatherings: list[Gathering] = [Sync(), ASGD(), KSync(k=k), KBatchSync(k=many), KBatchAsync(k=many), NSoftsync(n=k)]
    gatherings += [Ringmaster(delay_threshold=many, stops=draw(st.booleans())), Rennala(k=many)]
    target = draw(st.sampled_from([1, 1, 1.5, 2]))
    gatherings += [Malenia(target=target), Ringleader(target=target), IA2SGD()]
    elastic: list[Gathering] = [Sync(), ASGD()]
    # Servers that gather for themselves must not let some workers wait: refused by the settings.
    if num_servers == 1 or k in (1, num_workers):
        gatherings += [KAsync(k=k), Quorum(k=k, grace_seconds=draw(st.sampled_from([0.0, 0.5, 1.0, 2.5])))]
        elastic.append(KAsync(k=k))
    reads_before = draw(st.sampled_from([0, 0, 0, 1]))
    gathering = draw(st.sampled_from(elastic if reads_before else gatherings))
    # Who is fast does not stop where all workers count alike, so that one who is slow makes very many rows.
    laws = LAWS if gathering.averages == "gradients" else LIGHT
    return planner(
        gathering,
        num_workers,
        num_servers,
        num_steps=draw(st.integers(1, 8)),
        local_steps=draw(st.one_of(st.just((1,) * num_workers), st.tuples(*[st.integers(1, 3)] * num_workers))),
        reads_before=reads_before,
        compute=ComputeTimes(
            law=draw(laws), agents={1: draw(laws)}, stragglers=draw(st.sampled_from([{}, {0: law(0.5)}]))
        ),
        links=draw(links),
        clusters=tuple(i % 2 for i in range(num_workers)) + (0,) * num_servers,
        seed=draw(st.integers(0, 1000)),
    )


@examples(100, 250)
@given(plans())
def test_rows_equal_those_of_the_slow_planner(plan: ServerPlanner) -> None:
    assert rows_of(plan) == slow_rows(plan)


@examples(60, 150)
@given(plans())
def test_rows_can_be_executed_and_are_consistent(plan: ServerPlanner) -> None:
    rows = rows_of(plan)
    check_rows(rows, plan.num_workers)
    assert all(early.end <= late.end for early, late in pairwise(rows))
    for server in range(plan.num_workers, plan.num_workers + plan.num_servers):
        own = [row for row in rows if row.agent == server]
        batches = np.cumsum([sum(plan.local_steps[read.neighbor] for read in row.reads) for row in own])
        assert batches[-1] >= plan.num_steps * plan.num_workers
        assert len(batches) == 1 or batches[-2] < plan.num_steps * plan.num_workers
    ordered = in_causal_order(reversed(rows), with_directions=False)
    assert set(ordered) == set(rows)
    check_rows(ordered, plan.num_workers)


@examples(60, 150)
@given(plans())
def test_every_update_takes_what_its_policy_says(plan: ServerPlanner) -> None:
    """How many, of how many workers, how stale; and only policies that cancel do so."""
    rows = rows_of(plan)
    k = plan.gathering.num_gradients(plan.num_workers)
    holds = any(entry.unit == "steps" for entry in plan.links)
    for row in updates(rows, plan.num_workers):
        if plan.gathering.averages == "gradients":
            assert len(row.reads) == k or (plan.gathering.grace and k < len(row.reads) <= plan.num_workers)
        elif plan.gathering.averages == "workers" or row.step == 0:
            assert {read.neighbor for read in row.reads} == set(range(plan.num_workers))
        if plan.gathering.waits:
            assert len({read.neighbor for read in row.reads}) == len(row.reads)
        if plan.gathering.expires and not holds:
            assert max(read.staleness for read in row.reads) < plan.gathering.expires
    if not plan.gathering.cancels:
        assert {row.kind for row in rows} == {"step"}


@settings(max_examples=60)
@given(plans(links=st.lists(SECONDS, max_size=2).map(tuple)), st.sampled_from([1, 1.5, 3]))
def test_a_round_of_ringleader_is_one_update_for_each_worker_none_late_by_more_than_two_rounds(
    plan: ServerPlanner, target: float
) -> None:
    """And each worker gets new weights once: a public simulator gives fast workers the newest ones all the time."""
    n = plan.num_workers
    plan = replace(plan, gathering=Ringleader(target=target), reads_before=0, num_servers=1, clusters=(0,) * (n + 1))
    rows = rows_of(plan)
    own = updates(rows, n)
    points: dict[int, set[int]] = defaultdict(set)
    for place, row in enumerate(own):
        workers = [read.neighbor for read in row.reads]
        assert set(workers) == set(range(n)) if place % n == 0 else len(workers) == 1
        assert max(read.staleness for read in row.reads) <= 2 * n - 2
        renewed = {one.reads[0].neighbor for one in own[place - place % n + 1 : place + 1]}
        assert len(renewed) == place % n
    for row in rows:
        if row.agent < n:
            points[row.agent].add(row.reads[0].version)
    for versions in points.values():
        assert all(later // n > earlier // n for earlier, later in pairwise(sorted(v - 1 for v in versions if v)))


@settings(max_examples=40)
@given(plans())
def test_the_same_plan_gives_the_same_rows(plan: ServerPlanner) -> None:
    assert rows_of(plan) == rows_of(plan)


@examples(25, 60)
@given(plans(links=st.just(())))
def test_without_latency_servers_agree(plan: ServerPlanner) -> None:
    rows = rows_of(plan)
    by_server = defaultdict(list)
    for row in updates(rows, plan.num_workers):
        by_server[row.agent].append((row.step, row.end, row.reads))
    assert len(by_server) == plan.num_servers
    assert all(found == by_server[plan.num_workers] for found in by_server.values())


POLICIES = [Sync(), KSync(k=2), KBatchSync(k=2), KAsync(k=2), KBatchAsync(k=2), ASGD(), NSoftsync(n=2)]


@pytest.mark.parametrize("gathering", [policy for policy in POLICIES if policy.name != "sync"], ids=lambda g: g.name)
def test_another_seed_gives_another_schedule(gathering: Gathering) -> None:
    hashes = {trace_hash(rows_of(planner(gathering, compute=RANDOM, seed=seed))) for seed in range(10)}
    assert len(hashes) == 10


def test_rows_come_as_they_are_asked_for() -> None:
    rows = list(islice(planner(ASGD(), num_steps=10**12), 40))
    assert rows[-1].end == 5.0


# By hand: two workers, one of which is 2.5 times as slow.


def straggling(gathering: Gathering, num_steps: int = 2) -> list[Row]:
    compute = ComputeTimes(law=law(1), agents={1: law(2.5)})
    return rows_of(planner(gathering, num_workers=2, compute=compute, num_steps=num_steps))


def told(rows: list[Row]) -> list[tuple[Any, ...]]:
    return [(row.agent, row.step, row.end, row.kind, *(read[:3] for read in row.reads)) for row in rows]


def test_asgd_by_hand() -> None:
    assert told(straggling(ASGD())) == [
        (0, 0, 1.0, "step", (2, 0, 0)),
        (2, 0, 1.0, "step", (0, 1, 0)),
        (0, 1, 2.0, "step", (2, 1, 0)),
        (2, 1, 2.0, "step", (0, 2, 0)),
        (1, 0, 2.5, "step", (2, 0, 0)),
        (2, 2, 2.5, "step", (1, 1, 2)),
        (0, 2, 3.0, "step", (2, 2, 0)),
        (2, 3, 3.0, "step", (0, 3, 1)),
    ]


def test_k_sync_by_hand() -> None:
    """The slow worker starts four times and never finishes."""
    rows = straggling(KSync(k=1))
    assert told(rows)[:6] == [
        (0, 0, 1.0, "step", (2, 0, 0)),
        (2, 0, 1.0, "step", (0, 1, 0)),
        (1, 0, 1.0, "cancelled", (2, 0, 0)),
        (0, 1, 2.0, "step", (2, 1, 0)),
        (2, 1, 2.0, "step", (0, 2, 0)),
        (1, 1, 2.0, "cancelled", (2, 1, 0)),
    ]
    assert [row.end for row in updates(rows, 2)] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("gathering", [Rennala(k=4), Malenia()], ids=str)
def test_where_nobody_is_faster_who_ignores_older_work_is_sync(gathering: Gathering) -> None:
    """Nobody begins again at what the last gradient of the same instant replaces: no second is thrown away."""
    assert rows_of(planner(gathering)) == rows_of(planner(Sync()))


def test_k_batch_sync_by_hand() -> None:
    """The fast worker delivers twice at one version, and the slow one's work is given up."""
    assert told(straggling(KBatchSync(k=2)))[:5] == [
        (0, 0, 1.0, "step", (2, 0, 0)),
        (0, 1, 2.0, "step", (2, 0, 0)),
        (2, 0, 2.0, "step", (0, 1, 0), (0, 2, 0)),
        (1, 0, 2.0, "cancelled", (2, 0, 0)),
        (0, 2, 3.0, "step", (2, 1, 0)),
    ]


def test_k_batch_async_by_hand() -> None:
    assert told(straggling(KBatchAsync(k=2), num_steps=3)) == [
        (0, 0, 1.0, "step", (2, 0, 0)),
        (0, 1, 2.0, "step", (2, 0, 0)),
        (2, 0, 2.0, "step", (0, 1, 0), (0, 2, 0)),
        (1, 0, 2.5, "step", (2, 0, 0)),
        (0, 2, 3.0, "step", (2, 1, 0)),
        (2, 1, 3.0, "step", (0, 3, 0), (1, 1, 1)),
        (0, 3, 4.0, "step", (2, 2, 0)),
        (0, 4, 5.0, "step", (2, 2, 0)),
        (2, 2, 5.0, "step", (0, 4, 0), (0, 5, 0)),
    ]


def test_k_async_by_hand() -> None:
    """Three workers, K = 2: who has delivered waits for another one; the slow one's gradient comes stale."""
    compute = ComputeTimes(law=law(1), agents={1: law(1.5), 2: law(3.25)})
    rows = rows_of(planner(KAsync(k=2), num_workers=3, compute=compute, num_steps=2))
    assert told(rows) == [
        (0, 0, 1.0, "step", (3, 0, 0)),
        (1, 0, 1.5, "step", (3, 0, 0)),
        (3, 0, 1.5, "step", (0, 1, 0), (1, 1, 0)),
        (0, 1, 2.5, "step", (3, 1, 0)),
        (1, 1, 3.0, "step", (3, 1, 0)),
        (3, 1, 3.0, "step", (0, 2, 0), (1, 2, 0)),
        (2, 0, 3.25, "step", (3, 0, 0)),
        (0, 2, 4.0, "step", (3, 2, 0)),
        (3, 2, 4.0, "step", (0, 3, 0), (2, 1, 2)),
    ]


def test_latencies_delay_news_and_gradients() -> None:
    links = (LinkDelay(delay=law(0.25), unit="seconds"),)
    rows = rows_of(planner(ASGD(), num_workers=1, links=links, num_steps=3))
    assert [row.end for row in rows] == [1.0, 1.25, 2.5, 2.75, 4.0, 4.25]
    assert [row.start for row in rows[::2]] == [0.0, 1.5, 3.0]


# The checks of section 4.


@pytest.mark.parametrize("compute", [ComputeTimes(), ComputeTimes(agents={1: law(2), 2: law(1.5)}), RANDOM])
def test_k_async_with_all_workers_is_k_sync_with_all_workers(compute: ComputeTimes) -> None:
    rows = rows_of(planner(KAsync(k=4), compute=compute))
    assert rows == rows_of(planner(KSync(k=4), compute=compute)) == rows_of(planner(Sync(), compute=compute))
    assert {read.staleness for row in rows for read in row.reads} == {0}


def test_n_softsync_with_n_workers_updates_on_every_gradient() -> None:
    rows = rows_of(planner(NSoftsync(n=4), compute=RANDOM))
    assert {len(row.reads) for row in updates(rows, 4)} == {1}
    assert rows == rows_of(planner(ASGD(), compute=RANDOM))


def test_k_async_really_applies_stale_gradients() -> None:
    for gathering in (KAsync(k=2), KBatchAsync(k=2), NSoftsync(n=2)):
        rows = updates(rows_of(planner(gathering, compute=RANDOM, num_steps=50)), 4)
        assert len({read.staleness for row in rows for read in row.reads}) > 2


@pytest.mark.parametrize("gathering", [KBatchAsync(k=2), NSoftsync(n=2), KBatchSync(k=2)], ids=lambda g: g.name)
def test_one_worker_may_fill_two_slots(gathering: Gathering) -> None:
    compute = ComputeTimes(law=law({"name": "exponential", "mean": 1}), agents={0: law(0.1)})
    filled = [Counter(read.neighbor for read in row.reads) for row in rows_of(planner(gathering, compute=compute))]
    assert max(count for one in filled for worker, count in one.items() if worker < 4) == 2


EVEN = {
    "exponential": {"name": "exponential", "mean": 1},
    "shifted": {"name": "shifted-exponential", "shift": 1, "mean": 1},
    "pareto": {"name": "pareto", "shape": 2, "scale": 1},
    "constant": {"name": "uniform", "low": 0.99, "high": 1.01},
}


@pytest.mark.parametrize(
    ("name", "tail"), [("exponential", 35), ("shifted", 20), ("pareto", 34), ("constant", 8)], ids=list(EVEN)
)
def test_staleness_of_asgd_has_mean_p_minus_1_and_a_tail_that_depends_on_the_law(name: str, tail: int) -> None:
    plan = planner(ASGD(), num_workers=8, compute=ComputeTimes(law=law(EVEN[name])), num_steps=1500)
    staleness = np.array([row.reads[0].staleness for row in updates(rows_of(plan), 8)])[800:]
    assert staleness.mean() == pytest.approx(7, rel=0.01)
    assert np.percentile(staleness, 99) == pytest.approx(tail, rel=0.1)


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_n_softsync_stays_near_n_and_below_2n(n: int) -> None:
    """Zhang et al. (2016), section 3: for homogeneous workers staleness is about n, and rarely above 2n."""
    even = ComputeTimes(law=law({"name": "uniform", "low": 0.9, "high": 1.1}))
    rows = updates(rows_of(planner(NSoftsync(n=n), 8, num_steps=300, compute=even)), 8)
    staleness = [read.staleness for row in rows for read in row.reads]
    assert max(staleness) <= 2 * n
    assert n - 1.05 <= sum(staleness) / len(staleness) <= n


@pytest.mark.parametrize("hold", [0, 1, 3])
def test_a_constant_hold_gives_every_gradient_the_same_staleness(hold: int) -> None:
    links = (LinkDelay(delay=law(hold), unit="steps"),)
    for gathering in (Sync(), KSync(k=3)):
        rows = updates(rows_of(planner(gathering, num_workers=3, links=links, compute=RANDOM)), 3)
        assert [{read.staleness for read in row.reads} for row in rows] == [{min(hold, row.step)} for row in rows]
    alone = updates(rows_of(planner(ASGD(), num_workers=1, links=links)), 1)
    assert [row.reads[0].staleness for row in alone] == [min(hold, row.step) for row in alone]


def test_a_hold_counts_steps_of_a_peer() -> None:
    """Four workers, one after another: the newest version that was there when h rounds fewer had been taken."""
    links = (LinkDelay(delay=law(2), unit="steps"),)
    rows = updates(rows_of(planner(ASGD(), links=links)), 4)[20:]
    by_worker = {
        worker: {row.reads[0].staleness for row in rows if row.reads[0].neighbor == worker} for worker in range(4)
    }
    # Worker k's gradient is update 4 j + k; it was told at update 4 (j - 1) + k + 1 to read version 4 (j - 2) - 1,
    # and worker 3 one round later.
    assert by_worker == {0: {9}, 1: {10}, 2: {11}, 3: {8}}


@pytest.mark.parametrize("gathering", [Sync(), ASGD(), KAsync(k=2)], ids=lambda g: g.name)
def test_elastic_averaging_reads_the_version_before_the_update_that_took_its_weights(gathering: Gathering) -> None:
    rows = rows_of(planner(gathering, compute=RANDOM, reads_before=1, local_steps=(2,) * 4, num_steps=40))
    taken_at = {
        (read.neighbor, read.version): row.step for row in updates(rows, 4) for read in row.reads
    }  # the server's version before the update
    later = [row for row in rows if row.agent < 4 and row.step > 0]
    assert len(later) > 30
    assert all(row.reads[0].version == taken_at[row.agent, row.step] for row in later)


def test_a_message_of_several_mini_batches_takes_as_long_as_all_of_them_and_counts_as_many() -> None:
    rows = rows_of(planner(Sync(), local_steps=(3,) * 4, reads_before=1, num_steps=6))
    assert [row.end for row in updates(rows, 4)] == [3.0, 6.0]


def test_in_a_quorum_s_grace_others_join_and_the_rest_are_late() -> None:
    """Workers of 1, 2, 3 and 10 seconds; two are enough, and 1.5 seconds more are waited."""
    compute = ComputeTimes(agents={k: law(seconds) for k, seconds in enumerate([1, 2, 3, 10])})
    rows = updates(rows_of(planner(Quorum(k=2, grace_seconds=1.5), compute=compute, num_steps=6)), 4)
    taken = [(row.end, [(read.neighbor, read.staleness) for read in row.reads]) for row in rows[:3]]
    # From 2 to 3.5 worker 2 joins; all three begin anew then, and worker 3 comes when it comes.
    assert taken[0] == (3.5, [(0, 0), (1, 0), (2, 0)])
    assert taken[1] == (7.0, [(0, 0), (1, 0), (2, 0)])
    assert taken[2] == (10.0, [(0, 0), (1, 0), (2, 0), (3, 2)])


def test_once_all_have_come_the_grace_is_over_and_without_one_it_is_k_async() -> None:
    patient = rows_of(planner(Quorum(k=2, grace_seconds=100.0), compute=RANDOM))
    assert patient == rows_of(planner(Sync(), compute=RANDOM))
    assert rows_of(planner(Quorum(k=2, grace_seconds=0.0), compute=RANDOM)) == rows_of(
        planner(KAsync(k=2), compute=RANDOM)
    )


# Seconds of an update, in theory.


def harmonic(n: int) -> float:
    return sum(1 / i for i in range(1, n + 1))


def pareto_order_statistic(k: int, p: int, alpha: float) -> float:
    return gamma(p + 1) * gamma(p - k + 1 - 1 / alpha) / (gamma(p - k + 1) * gamma(p + 1 - 1 / alpha))


@pytest.mark.parametrize(
    ("gathering", "name", "expected"),
    [
        (KSync(k=3), "exponential", harmonic(8) - harmonic(5)),
        (KSync(k=3), "shifted", 1 + harmonic(8) - harmonic(5)),
        (KSync(k=6), "pareto", pareto_order_statistic(6, 8, 2)),
        (Sync(), "exponential", harmonic(8)),
        (KBatchSync(k=3), "exponential", 3 / 8),
        (KAsync(k=3), "exponential", harmonic(8) - harmonic(5)),
        (KBatchAsync(k=3), "exponential", 3 / 8),
        (KBatchAsync(k=3), "shifted", 3 * 2 / 8),
        (NSoftsync(n=2), "exponential", 4 / 8),
        (ASGD(), "shifted", 2 / 8),
        (ASGD(), "pareto", 2 / 8),
    ],
    ids=lambda value: getattr(value, "name", value) if not isinstance(value, float) else f"{value:.3f}",
)
def test_seconds_of_an_update_are_those_of_theory(gathering: Gathering, name: str, expected: float) -> None:
    plan = planner(gathering, num_workers=8, compute=ComputeTimes(law=law(EVEN[name])), num_steps=1000)
    found = updates(rows_of(plan), 8)
    assert found[-1].end / len(found) == pytest.approx(expected, rel=0.05)


# AdaSync.


def losses_fall(row: Row) -> float:
    return 4.0 * 0.8**row.start


@pytest.mark.parametrize(
    ("base", "num_servers"),
    # Not k-async on two servers, which the settings refuse.
    [("k-async", 1), *((base, n) for base in ("k-sync", "k-batch-sync", "k-batch-async") for n in (1, 2))],
)
def test_adasync_s_rows_do_not_depend_on_when_losses_are_told(base: Any, num_servers: int) -> None:
    links = (LinkDelay(delay=law({"name": "uniform", "low": 0, "high": 1}), unit="seconds"),)
    gathering = AdaSync(base=base, every_seconds=2.0)
    plan = planner(gathering, 5, num_servers, compute=RANDOM, links=links, num_steps=30)
    schedules = []
    for is_eager in (True, False):
        rows, untold, stops = [], [], 0
        iterator = iter(plan)
        for row in iterator:
            if row is None:
                stops += 1
                assert untold
                for old in reversed(untold):
                    iterator.tell(old, losses_fall(old))
                untold = []
            else:
                rows.append(row)
                if row.agent < 5 and row.kind == "step":
                    untold.append(row)
                    if is_eager:
                        iterator.tell(row, losses_fall(row))
                        untold = []
        assert is_eager == (stops == 0)
        schedules.append(rows)
    assert schedules[0] == schedules[1]
    check_rows(schedules[0], 5)
    for server in range(5, 5 + num_servers):
        sizes = [len(row.reads) for row in schedules[0] if row.agent == server]
        assert sizes == sorted(sizes)
        assert (sizes[0], sizes[-1]) == (1, 5)
        assert len(set(sizes)) > 2


def test_reads_are_sorted_by_worker_and_version() -> None:
    row = next(row for row in straggling(KBatchAsync(k=2), num_steps=3) if len(row.reads) == 2 and row.step == 1)
    assert row.reads == (Read(0, 3, 0, 0), Read(1, 1, 1, 1))
