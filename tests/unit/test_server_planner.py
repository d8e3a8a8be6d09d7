"""Plans around a server: against a slow planner written from the policies' words, and what must always hold."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_pcasgd.laws import Constant, Exponential, Uniform
from ray_pcasgd.records import Read, Row
from ray_pcasgd.schedule.gathering import (
    ASGD,
    AdaSync,
    Gathering,
    KAsync,
    KBatchAsync,
    KBatchSync,
    KSync,
    NSoftsync,
    Sync,
)
from ray_pcasgd.schedule.server_planner import ServerPlanner
from ray_pcasgd.schedule.trace import in_causal_order, trace_hash
from ray_pcasgd.timing import ComputeTimes, LinkDelay

EXPONENTIAL = ComputeTimes(law=Exponential(mean=1.0))


def plan(gathering: Gathering, num_workers: int = 4, **changes: Any) -> ServerPlanner:
    num_servers = changes.get("num_servers", 1)
    values: dict[str, Any] = {
        "num_workers": num_workers,
        "num_servers": num_servers,
        "gathering": gathering,
        "num_steps": 12,
        "local_steps": 1,
        "reads_before": 0,
        "compute": EXPONENTIAL,
        "links": (),
        "clusters": (0,) * (num_workers + num_servers),
        "seed": 0,
    }
    return ServerPlanner(**(values | changes))


def rows_of(planner: ServerPlanner) -> list[Row]:
    rows = list(planner)
    assert all(row is not None for row in rows)
    return [row for row in rows if row is not None]


def slow_rows(planner: ServerPlanner) -> list[Row]:
    """Return the rows of a plan with one server and no delays, by looking for who is ready next.

    What is under way when the run ends is in no row.
    """
    policy, workers = planner.gathering, range(planner.num_workers)
    size = policy.num_gradients(planner.num_workers)
    draw = [planner.compute.sampler(planner.seed, worker) for worker in workers]
    rows: list[Row] = []
    steps, began, reads = [0] * len(workers), [0] * len(workers), [0] * len(workers)
    ends: dict[int, int] = {}
    queue: list[tuple[int, int, int]] = []
    version = 0

    def start(worker: int, now: int) -> None:
        began[worker], reads[worker] = now, version
        ends[worker] = now + round(draw[worker](now / 1e9) * 1e9)

    def stop(worker: int, now: int, kind: Any) -> None:
        read = Read(planner.num_workers, reads[worker], 0, 0)
        rows.append(Row(worker, steps[worker], began[worker] / 1e9, now / 1e9, now / 1e9, (read,), kind))
        steps[worker] += 1
        ends.pop(worker)

    for worker in workers:
        start(worker, 0)
    while version * size < planner.num_steps * planner.num_workers:
        now, first = min((end, worker) for worker, end in ends.items())
        stop(first, now, "step")
        queue.append((first, steps[first], reads[first]))
        again = [] if policy.waits else [first]
        if len(queue) == size:
            taken = sorted(queue)
            server_reads = tuple(Read(k, number, version - at, version - at) for k, number, at in taken)
            rows.append(Row(planner.num_workers, version, now / 1e9, now / 1e9, now / 1e9, server_reads))
            version, queue = version + 1, []
            again = [k for k, _, _ in taken] if policy.waits else again
            if policy.cancels and version * size < planner.num_steps * planner.num_workers:
                for worker in sorted(ends):
                    stop(worker, now, "cancelled")
                again = list(workers)
        for worker in again:
            start(worker, now)
    return rows


def by_key(rows: list[Row]) -> dict[tuple[int, int], Row]:
    return {row[:2]: row for row in rows}


policies = st.integers(1, 6).flatmap(
    lambda workers: st.tuples(
        st.just(workers),
        st.one_of(
            st.just(Sync()),
            st.just(ASGD()),
            st.integers(1, workers).flatmap(
                lambda k: st.sampled_from([KSync(k=k), KBatchSync(k=k), KAsync(k=k), KBatchAsync(k=k), NSoftsync(n=k)])
            ),
        ),
    )
)


@given(policy=policies, seed=st.integers(0, 50))
@settings(max_examples=60)
def test_rows_equal_those_of_the_slow_planner(policy: tuple[int, Gathering], seed: int) -> None:
    planner = plan(policy[1], policy[0], seed=seed)
    assert by_key(rows_of(planner)) == by_key(slow_rows(planner))


@given(
    policy=policies,
    seed=st.integers(0, 50),
    shards=st.integers(1, 3),
    latency=st.sampled_from([0.0, 0.3, 2.0]),
    local_steps=st.integers(1, 3),
)
@settings(max_examples=60)
def test_what_holds_for_every_plan(
    policy: tuple[int, Gathering], seed: int, shards: int, latency: float, local_steps: int
) -> None:
    workers, gathering = policy
    links = (LinkDelay(delay=Uniform(low=0, high=latency), unit="seconds"),) if latency else ()
    planner = plan(gathering, workers, seed=seed, num_servers=shards, links=links, local_steps=local_steps)
    rows = rows_of(planner)
    published: Counter[int] = Counter()
    cancelled, taken = set(), set()
    for row in rows:
        assert row.step == published[row.agent]
        assert row.start <= row.ready <= row.end
        assert list(row.reads) == sorted(row.reads)
        for read in row.reads:
            assert read.version <= published[read.neighbor], "nothing is read before it is published"
        if row.agent >= workers:
            reads_at = {r[:2]: r for r in rows if r.agent < workers}
            for read in row.reads:
                source = reads_at[read.neighbor, read.version - 1]
                assert source.kind == "step"
                at = next(r.version for r in source.reads if r.neighbor == row.agent)
                assert read.staleness == read.age == row.step - at >= 0
                assert (row.agent, read[:2]) not in taken, "a gradient is taken once"
                taken.add((row.agent, read[:2]))
                if gathering.cancels:
                    assert read.staleness == 0
            if gathering.waits:
                assert len({read.neighbor for read in row.reads}) == len(row.reads), "of different workers"
        elif row.kind == "cancelled":
            cancelled.add(row[:2])
        published[row.agent] += 1
    assert not cancelled or gathering.cancels
    for server in range(workers, workers + shards):
        messages = sum(len(row.reads) for row in rows if row.agent == server)
        done = planner.num_steps * workers
        assert done <= messages * local_steps < done + gathering.num_gradients(workers) * local_steps + local_steps
    ordered = in_causal_order(rows, with_directions=False)
    assert by_key(ordered) == by_key(rows)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others() -> None:
    first, again, other = (trace_hash(rows_of(plan(KAsync(k=2), seed=seed))) for seed in (3, 3, 4))
    assert first == again != other


def test_k_async_with_all_workers_equals_k_sync_on_a_deterministic_clock() -> None:
    """Section 4, point 4."""
    even = ComputeTimes(law=Constant(value=1.0), stragglers={2: Constant(value=0.5)})
    hashes = {trace_hash(rows_of(plan(policy, compute=even))) for policy in (KAsync(k=4), KSync(k=4), Sync())}
    assert len(hashes) == 1


@pytest.mark.parametrize("num_workers", [2, 5, 8])
def test_asgd_has_mean_staleness_p_minus_1_whatever_the_law(num_workers: int) -> None:
    """Section 4, point 3. The mean over n updates is off by at most the P gradients under way: P^2 / n, about."""
    for law in (Exponential(mean=1.0), Uniform(low=0.5, high=1.5)):
        planner = plan(ASGD(), num_workers, num_steps=800, compute=ComputeTimes(law=law))
        staleness = [read.staleness for row in rows_of(planner) if row.agent == num_workers for read in row.reads]
        assert sum(staleness) / len(staleness) == pytest.approx(num_workers - 1, abs=0.2)
        assert len(set(staleness)) > 1


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_n_softsync_stays_near_n_and_below_2n(n: int) -> None:
    """Zhang et al. (2016), section 3: for homogeneous workers staleness is about n, and rarely above 2n."""
    even = ComputeTimes(law=Uniform(low=0.9, high=1.1))
    planner = plan(NSoftsync(n=n), 8, num_steps=300, compute=even)
    staleness = [read.staleness for row in rows_of(planner) if row.agent == 8 for read in row.reads]
    assert max(staleness) <= 2 * n
    assert n - 1.05 <= sum(staleness) / len(staleness) <= n


def test_a_delay_in_steps_holds_back_the_server_s_weights_alone() -> None:
    links = (LinkDelay(delay=Constant(value=3.0), unit="steps"),)
    rows = rows_of(plan(Sync(), links=links, compute=ComputeTimes(law=Constant(value=1.0))))
    assert [row.reads[0].version for row in rows if row.agent == 0] == [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert [row.reads[0].staleness for row in rows if row.agent == 4] == [0, 1, 2, *[3] * 9]
    assert [row.end for row in rows if row.agent == 4] == [float(second) for second in range(1, 13)]


def test_elastic_averaging_reads_the_version_before_the_update_that_took_its_weights() -> None:
    rows = rows_of(plan(ASGD(), 3, reads_before=1, local_steps=2))
    taken_at = {read[:2]: row.step for row in rows if row.agent == 3 for read in row.reads}
    for row in rows:
        if row.agent < 3 and row.step:
            assert row.reads[0].version == taken_at[row.agent, row.step]


def test_adasync_waits_for_the_losses_that_it_depends_on() -> None:
    policy = AdaSync(base="k-batch-async", initial_k=1, every_seconds=2)
    results = []
    for falls in (True, False):
        rows = iter(plan(policy, num_steps=40))
        sizes, told, waited = [], 0, 0
        pending: list[Row] = []
        for row in rows:
            if row is None:
                waited += 1
                assert pending, "it waits for rows that it has given out"
                for one in pending:
                    told += 1
                    rows.tell(one, 1.0 / told if falls else 1.0)
                pending = []
            elif row.agent == 4:
                sizes.append(len(row.reads))
            else:
                pending.append(row)
        assert waited
        results.append(sizes)
    falling, constant = results
    assert set(constant) == {1}
    assert falling == sorted(falling)
    assert falling[-1] == 4
