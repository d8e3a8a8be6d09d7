"""What a live peer decides, in virtual time: what it reads, waits for, tells, and whom it reaches."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.agents.participant import Received
from ray_pcasgd.agents.peer import Peer
from ray_pcasgd.engines.live.commands import LinkChanges
from ray_pcasgd.engines.live.decisions import Compute, Over, Rejoin, Take, Wait
from ray_pcasgd.engines.live.peer import LONGEST_RATIO
from ray_pcasgd.engines.live.reading import is_lagging
from ray_pcasgd.engines.live.watching import Limits
from ray_pcasgd.records import Read
from ray_pcasgd.schedule.barrier import AllBarrier, Barrier, BoundedBarrier, NoBarrier, SampledBarrier
from ray_pcasgd.schedule.delays import LinkDelay
from tests.unit.engines.live.peers import NUM_STEPS, STEP, WALL, Peers, plan_of

BARRIERS: list[Barrier] = [
    NoBarrier(),
    AllBarrier(),
    BoundedBarrier(staleness=2),
    SampledBarrier(beta=1),
    SampledBarrier(beta=1, base=BoundedBarrier(staleness=1)),
]


AGES = st.sampled_from([0.0, 0.01, 0.5, 9.0])


def ops(neighbors: tuple[int, ...]) -> st.SearchStrategy[list[Any]]:
    """Random events: messages, their transfers, passing time, losses, returns, pauses, and steps."""
    who = st.sampled_from(neighbors)
    return st.lists(
        st.one_of(
            st.tuples(st.just("message"), who, st.integers(1, 5), AGES, st.booleans()),
            st.tuples(st.just("transfer"), who),
            st.tuples(st.just("time"), st.sampled_from([0.001, 0.02, 0.5, 2.0, 30.0])),
            st.tuples(st.just("step"), st.sampled_from([0.0, 0.02, 0.3, 5.0])),
            st.tuples(st.just("step"), st.just(0.02)),
            st.tuples(st.sampled_from(["lost", "back", "left", "done"]), who),
        ),
        max_size=60,
    )


class Story:
    """Plays random events to a policy, and checks each decision by what a reader of the rules would say."""

    def __init__(self, peers: Peers) -> None:
        self.peers = peers
        self.sent = Counter[int]()
        self.read = set[tuple[int, int, int]]()
        self.lives = Counter[int]()
        self.gone = set[int]()
        self.left = set[int]()
        self.done = set[int]()
        self.steps = 0

    def play(self, op: tuple[Any, ...]) -> None:
        peers, policy, kind = self.peers, self.peers.policy, op[0]
        if kind == "time":
            peers.seconds += op[1]
        elif kind == "step":
            self.step(op[1])
        elif kind == "transfer":
            peers.here |= {(op[1], version) for version in peers.mailbox.versions(op[1])}
        elif kind == "lost":
            policy.lost(op[1])
            self.gone.add(op[1])
        elif kind == "done":
            policy.finished(op[1])
            self.done.add(op[1])
        elif kind == "back":
            policy.back(op[1], 0)
            self.gone.discard(op[1])
            self.done.discard(op[1])
            self.left.discard(op[1])
            self.lives[op[1]] += 1
        elif self.sent[op[1]] < NUM_STEPS and op[1] not in self.left:
            self.message(*op)

    def message(self, kind: str, k: int, steps: int = 0, age: float = 0.0, is_here: bool = True) -> None:
        if kind == "left":
            self.peers.receive(k, self.sent[k], isolated=True)
            self.left.add(k)
            return
        self.sent[k] = min(self.sent[k] + steps, NUM_STEPS)
        self.peers.receive(k, self.sent[k], age, is_here, final=self.sent[k] == NUM_STEPS)

    def step(self, seconds: float) -> None:
        """Take a step, and wait as the policy says; check that it does not wait longer than it may."""
        peers, policy = self.peers, self.peers.policy
        if policy.version >= NUM_STEPS:
            assert peers.decide() == Over()
            return
        peers.begin(seconds)
        waited = 0.0
        while isinstance(decision := peers.decide(), Wait):
            assert not isinstance(policy.barrier, NoBarrier)
            assert decision.until is not None
            assert decision.until > peers.seconds
            assert not any(f"agent {k}" in decision.missing for k in self.gone | self.left | policy.watch.silent)
            waited += decision.until - peers.seconds
            peers.seconds = decision.until
        assert isinstance(decision, Take)
        assert waited <= len(peers.spec.neighbors) * policy.limits.wait_seconds + 1e-6
        self.check(decision)
        peers.end(decision)
        self.steps += 1

    def check(self, take: Take) -> None:
        """Check what is read."""
        peers, policy, waits = self.peers, self.peers.policy, not isinstance(self.peers.policy.barrier, NoBarrier)
        assert list(take.reads) == sorted(take.reads)
        for read in take.reads:
            k, version = read[:2]
            assert k not in self.gone | self.left | policy.watch.silent
            assert peers.is_here(k, version, policy.spec.recipe.needs_direction(0, read))
            assert read.staleness >= 0
            if policy.pushes:
                assert version < NUM_STEPS
                assert (k, self.lives[k], version) not in self.read
            elif not waits:
                lag = policy.watch.trackers[k].lag(policy.version, peers.now.wall)
                assert not is_lagging(lag, policy.version, policy.limits.max_lag)
            self.read.add((k, self.lives[k], version))
        if not policy.pushes:
            assert len({read.neighbor for read in take.reads}) == len(take.reads)
        for k in peers.spec.receivers if policy.pushes else ():
            is_ahead = self.sent[k] >= NUM_STEPS - 1 and self.sent[k] > policy.version
            ends = k in self.gone | self.done | policy.watch.silent or self.sent[k] == NUM_STEPS or is_ahead
            assert policy.can_reach(k) != ends


@pytest.mark.parametrize("algorithm", ["d-asgd", "pc-asgd", "gossip-push", "sgp-overlap"])
@given(barrier=st.sampled_from(BARRIERS), data=st.data())
def test_whatever_happens_only_what_may_be_read_is_read(algorithm: str, barrier: Barrier, data: st.DataObject) -> None:
    story = Story(Peers(algorithm, barrier, num_agents=4))
    for op in data.draw(ops(story.peers.spec.neighbors)):
        story.play(op)
    assert story.peers.policy.version == story.steps


def test_a_step_computes_first_and_there_are_as_many_as_the_run_has() -> None:
    peers = Peers()
    for version in range(NUM_STEPS):
        assert peers.policy.decide(peers.now) == Compute()
        assert peers.policy.version == version
        peers.begin(STEP)
        take = peers.decide()
        assert isinstance(take, Take)
        peers.end(take)
    assert peers.decide() == Over()
    assert peers.policy.step_seconds == pytest.approx(STEP)


def test_a_straggler_s_gradient_counts_only_after_its_extra_seconds() -> None:
    peers = Peers(stragglers={0: 0.5})
    peers.begin(0.1)
    assert peers.decide() == Wait(pytest.approx(0.6), "its own gradient")
    peers.receive(1, 1)
    assert isinstance(peers.decide(), Wait)
    peers.seconds = 0.61
    assert isinstance(peers.decide(), Take)
    assert peers.policy.ready_at == pytest.approx(WALL + 0.61)


def test_a_barrier_waits_for_what_it_names_and_for_nobody_who_is_gone() -> None:
    peers = Peers(barrier=AllBarrier())
    peers.policy.version = 3
    peers.receive(1, 2)
    peers.begin()
    assert peers.decide() == Wait(3.0, "version 3 of agent 1 and version 3 of agent 2")
    peers.receive(1, 3)
    assert peers.decide() == Wait(3.0, "version 3 of agent 2")
    peers.policy.lost(2)
    take = peers.decide()
    assert isinstance(take, Take)
    assert [read[:2] for read in take.reads] == [(1, 3)]
    assert not peers.told


@pytest.mark.parametrize(("barrier", "allowed"), [(AllBarrier(), 3), (BoundedBarrier(staleness=1), 2)])
def test_a_barrier_waits_for_weights_and_not_only_for_the_word_of_them(barrier: Barrier, allowed: int) -> None:
    """Large weights follow their header; a synchronous run read older ones meanwhile, 2 steps on a slow link."""
    peers = Peers("d-asgd", barrier, version=3)
    for version in range(1, 4):
        peers.receive(1, version)
        peers.receive(2, version, is_here=version < allowed)
    peers.begin()
    assert isinstance(wait := peers.decide(), Wait)
    assert wait.missing == f"version {allowed} of agent 2"
    peers.here.add((2, allowed))
    take = peers.decide()
    assert isinstance(take, Take)
    assert {read.neighbor: read.version for read in take.reads}[2] == allowed


def test_weights_that_have_overtaken_those_that_are_waited_for_do_not_count() -> None:
    peers = Peers("d-asgd", AllBarrier(), num_agents=2, version=3)
    peers.receive(1, 3, is_here=False)
    peers.receive(1, 4)
    peers.begin()
    assert isinstance(peers.decide(), Wait)
    peers.here.add((1, 3))
    take = peers.decide()
    assert isinstance(take, Take)
    assert [read.version for read in take.reads] == [3]


@pytest.mark.parametrize("final", [False, True])
def test_versions_that_were_read_already_or_never_come_are_not_waited_for(final: bool) -> None:
    """A drawn neighbor far ahead, whose older versions were dropped as a newer one was read without a cap."""
    peers = Peers("d-asgd", SampledBarrier(beta=1), num_agents=2, version=10)
    peers.receive(1, 20, final=final)
    peers.policy.taken([Read(1, 20, 0, 0)])
    for _ in range(3):
        peers.begin()
        take = peers.decide()
        assert isinstance(take, Take)
        peers.end(take)


@pytest.mark.parametrize(("own", "first"), [(10, 11), (11, 13)])
def test_a_neighbor_that_comes_back_above_the_agent_s_own_version_is_not_waited_for(own: int, first: int) -> None:
    peers = Peers("d-asgd", AllBarrier(), num_agents=2, version=own)
    peers.policy.back(1, first - 1)
    peers.receive(1, first)
    peers.begin()
    assert isinstance(peers.decide(), Take)


def test_the_weights_of_a_neighbor_that_is_done_are_waited_for_too() -> None:
    peers = Peers("d-asgd", AllBarrier(), num_agents=2, version=NUM_STEPS - 1)
    peers.receive(1, NUM_STEPS - 1, is_here=False)
    peers.receive(1, NUM_STEPS, is_here=False, final=True)
    peers.begin()
    assert isinstance(peers.decide(), Wait)
    peers.here.add((1, NUM_STEPS - 1))
    take = peers.decide()
    assert isinstance(take, Take)
    assert [read.version for read in take.reads] == [NUM_STEPS - 1]


def test_a_wait_ends_where_a_message_that_is_held_back_is_due() -> None:
    peers = Peers(barrier=AllBarrier(), num_agents=2)
    peers.policy.version = 1
    peers.receive(1, 1, latency_seconds=0.4)
    peers.begin()
    assert peers.decide() == Wait(0.4, "version 1 of agent 1")
    peers.seconds = 0.4
    assert isinstance(peers.decide(), Take)


def test_who_is_waited_for_in_vain_is_silent_until_it_is_heard_of() -> None:
    peers = Peers(barrier=BoundedBarrier(staleness=0))
    peers.policy.version = 1
    peers.receive(1, 1)
    peers.begin()
    assert isinstance(peers.decide(), Wait)
    peers.seconds = 3.0
    take = peers.decide()
    assert isinstance(take, Take)
    assert [read.neighbor for read in take.reads] == [1]
    (detail,) = peers.events("neighbor_silent")
    assert detail == "agent 0 waited 3 s at step 1 for version 1 of agent 2; it goes on without the message"
    peers.receive(2, 1)
    assert set(peers.reads_at()) == {1, 2}


def test_a_barrier_that_draws_is_asked_again_only_once_something_has_come() -> None:
    peers = Peers(barrier=SampledBarrier(beta=1), num_agents=4)
    peers.policy.version = 1
    peers.receive(1, 1)
    peers.receive(2, 1)
    drawn = Counter[str]()
    for _ in range(40):
        peers.policy._due = None
        peers.begin()
        first = peers.decide()
        # Waking up draws no other neighbors, else whoever wakes up often hardly waits.
        assert all(peers.decide() == first for _ in range(5)) or isinstance(first, Take)
        drawn[type(first).__name__] += 1
    assert set(drawn) == {"Take", "Wait"}


def test_an_agent_that_was_stopped_leaves_out_what_it_knows_from_before() -> None:
    """One of its neighbors has been heard of since its pause, and the other one not yet."""
    peers = Peers()
    for version in range(1, 91):
        peers.seconds += STEP
        for k in (1, 2):
            peers.receive(k, min(version, 50), 0.001)
    pause = LONGEST_RATIO * STEP + 0.5
    peers.receive(2, 55, -pause)
    assert set(peers.reads_at(50, pause)) == {2}
    assert set(peers.reads_at(50)) == {1, 2}, "only the step that took so long is held up"
    assert not peers.events("neighbor_silent")


@pytest.mark.parametrize("algorithm", ["p-asgd", "pc-asgd"])
def test_what_an_agent_reads_after_its_pause_is_predicted_no_further_than_is_stable(algorithm: str) -> None:
    """Of both neighbors much is known, and what has come whole is as old as the pause."""
    peers = Peers(algorithm)
    for k in (1, 2):
        for version in (1, 2):
            peers.receive(k, version, 0.001)
    pause = LONGEST_RATIO * STEP + 0.5
    for k in (1, 2):
        peers.receive(k, NUM_STEPS - 1, -pause, is_here=False)
    reads = peers.reads_at(2, pause)
    assert {read.version: read.staleness for read in reads.values()} == {1: NUM_STEPS - 2}
    assert all(read.age == 0 for read in reads.values()), "oldest_age cannot tell that it is old"
    moved = {engine: step_after(algorithm, engine, list(reads.values())) for engine in ("local", "live")}
    if algorithm == "pc-asgd":
        assert 0 < moved["local"] == moved["live"] < 4
    else:
        # Of mixing weight W = 2/3: at most 1 + 2 W / r, r at least 1/2; and all 58 steps.
        assert 0 < moved["live"] < 4
        assert moved["local"] == pytest.approx(58 * 2 / 3, rel=1e-3)


def step_after(algorithm: str, engine: str, reads: list[Read]) -> float:
    """Return how many of the neighbors' steps a step goes that reads their direction, all weights being equal."""
    plan = plan_of(algorithm, 3, engine)
    peer = plan.specs[0].build(plan.data)
    assert isinstance(peer, Peer)
    peer.version = 200  # the bound has warmed up
    peer.direction = torch.zeros_like(peer.weights)
    direction = torch.ones_like(peer.weights)
    before = peer.weights.clone()
    peer.apply([Received(read, peer.weights.clone(), peer.buffers, direction) for read in reads])
    return float((before - peer.weights).mean()) / peer.spec.recipe.step_size_at(200)


def test_of_a_silent_neighbor_nothing_is_read_until_a_new_message_comes() -> None:
    peers = Peers()
    for version in range(1, 40):
        peers.seconds += STEP
        peers.receive(1, version)
        peers.receive(2, version)
    peers.seconds += 1.1
    peers.receive(2, 41)
    assert set(peers.reads_at(41)) == {2}
    (detail,) = peers.events("neighbor_silent")
    assert detail == "no message of agent 1 has come for 1.1 s; it is not read until one comes"
    for _ in range(12):
        peers.receive(1, 41, age=5.0)
        assert 1 not in peers.reads_at(41), "what was sent long ago is not new"
    peers.receive(1, 42)
    assert set(peers.reads_at(41)) == {1, 2}
    assert len(peers.told) == 1


def test_silence_is_told_the_first_the_tenth_and_the_hundredth_time() -> None:
    peers = Peers(num_agents=2)
    for _ in range(120):
        peers.receive(1, 5)
        assert peers.reads_at()
        peers.seconds += 2.0
        assert not peers.reads_at()
    details = peers.events("neighbor_silent")
    assert [detail.rpartition("(")[2] for detail in details[1:]] == [
        "silent so far: 10 times)",
        "silent so far: 100 times)",
    ]
    assert len(details) == 3


def test_a_neighbor_that_is_done_is_read_however_long_ago_that_was() -> None:
    peers = Peers()
    peers.receive(1, 59, age=99.0)
    peers.receive(1, 60, age=98.0, final=True)
    read = peers.reads_at(0, 5.0)[1]
    assert (read.version, read.staleness) == (60, 0)
    assert not peers.events("neighbor_silent")


def test_a_few_short_steps_are_no_silence() -> None:
    peers = Peers()
    for version in range(1, 40):
        peers.seconds += 0.003
        peers.receive(1, version, step_seconds=0.003)
    peers.policy.step_seconds = 0.003
    peers.seconds += 0.5
    assert 1 in peers.reads_at()
    assert not peers.told


def test_a_neighbor_that_is_far_behind_is_not_read_until_it_has_caught_up() -> None:
    peers = Peers()
    peers.receive(1, 20)
    peers.receive(2, 17)
    assert set(peers.reads_at(20)) == {1}
    peers.receive(2, 18)
    assert set(peers.reads_at(20)) == {1, 2}
    assert set(peers.reads_at(3)) == {1, 2}


def test_of_a_neighbor_that_stays_behind_there_is_an_event() -> None:
    peers = Peers()
    for step in range(3, 60):
        peers.receive(1, step)
        peers.reads_at(step)
    (detail,) = peers.events("neighbor_behind")
    assert detail == "agent 2 is 52 steps behind; it is not read until it has caught up (engine.max_lag)"


def test_without_a_limit_a_neighbor_is_read_however_far_it_is_behind() -> None:
    peers = Peers(limits=Limits(3.0, 20.0, None))
    peers.receive(2, 1)
    assert peers.reads_at(59)[2].version == 1


def test_what_was_read_of_a_neighbor_that_is_done_is_not_read_again() -> None:
    peers = Peers()
    peers.receive(1, 59)
    assert [peers.reads_at(30)[1].version for _ in range(2)] == [59, 59]
    peers.receive(1, 60, final=True)
    assert peers.reads_at(31)[1].version == 60
    assert 1 not in peers.reads_at(32)
    assert peers.policy.newest()[1] == 60


def test_gossip_that_is_pushed_is_read_once() -> None:
    peers = Peers("gossip-push")
    peers.receive(1, 1)
    assert 1 in peers.reads_at()
    assert 1 not in peers.reads_at()
    peers.receive(1, 2)
    assert peers.reads_at()[1].version == 2


def test_a_version_that_is_replaced_is_dropped_once_the_newer_one_is_here() -> None:
    peers = Peers()
    for version in (1, 2, 3):
        peers.receive(1, version)
    peers.receive(1, 4, is_here=False)
    assert sorted(peers.mailbox.versions(1)) == [2, 3, 4]
    assert peers.reads_at()[1].version == 3
    peers.here.add((1, 4))
    assert peers.reads_at()[1].version == 4


def test_a_version_with_its_direction_stays_until_a_newer_one_has_its_own() -> None:
    peers = Peers("p-asgd")
    for version in (4, 5):
        peers.receive(1, version, age=STEP)
    # It is one step behind, and so is to be predicted from: the direction of 5 has not come.
    peers.policy.watch.trackers[1].take(Header(1, 6, WALL, STEP), WALL)
    assert peers.reads_at(6)[1].version == 4
    peers.receive(1, 6, age=STEP)
    peers.receive(1, 15, age=STEP)  # those between were left out, or are not transferred
    peers.policy.watch.trackers[1].take(Header(1, 16, WALL, STEP), WALL)
    assert peers.reads_at(17)[1].version == 5
    peers.receive(1, 16, age=STEP)
    peers.policy.watch.trackers[1].take(Header(1, 17, WALL, STEP), WALL)
    assert peers.reads_at(18)[1].version == 15


@pytest.mark.parametrize("barrier", [AllBarrier(), SampledBarrier(beta=1)], ids=["all", "sampled"])
def test_versions_that_a_barrier_may_ask_for_are_not_replaced(barrier: Barrier) -> None:
    peers = Peers(barrier=barrier)
    for version in (1, 2, 3):
        peers.receive(1, version)
    assert sorted(peers.mailbox.versions(1)) == [0, 1, 2, 3]


def test_push_sum_reads_every_version_once_and_never_the_last() -> None:
    peers = Peers("sgp-overlap", num_agents=2)
    peers.policy.version = 58
    peers.receive(1, 58)
    peers.receive(1, 59)
    peers.receive(1, 60, final=True)
    peers.begin()
    take = peers.decide()
    assert isinstance(take, Take)
    assert [read.version for read in take.reads] == [0, 58, 59]
    peers.end(take)
    peers.begin()
    assert peers.decide() == Take()


def test_push_sum_keeps_the_share_of_a_neighbor_that_is_at_its_last_step_already() -> None:
    peers = Peers("sgp-overlap")
    peers.policy.version = 58
    peers.receive(1, 59)
    peers.receive(2, 58)
    assert not peers.policy.can_reach(1)
    assert peers.policy.can_reach(2)
    peers.policy.version = 59
    peers.receive(2, 59)
    assert peers.policy.can_reach(2)
    peers.policy.finished(2)
    assert not peers.policy.can_reach(2)
    peers.policy.back(2, 0)
    assert peers.policy.can_reach(2)
    peers.policy.lost(2)
    assert not peers.policy.can_reach(2)


def test_who_is_gone_is_still_sent_to_where_nothing_is_lost_by_it() -> None:
    peers = Peers("d-asgd")
    peers.policy.lost(1)
    peers.policy.finished(2)
    assert [peers.policy.can_reach(k) for k in (1, 2)] == [True, True]


def test_links_that_an_operator_changes_count_from_then_on() -> None:
    peers = Peers()
    peers.receive(1, 1)
    message = peers.mailbox.get(1, 1)
    assert message is not None
    assert peers.policy.addressed(message.header, 2) == message.header
    entry = LinkDelay.model_validate({"delay": "0.3s"})
    peers.policy.links(peers.injection.changed(LinkChanges(entries=(entry,), isolated=(1,))))
    assert peers.policy.addressed(message.header, 2).latency_seconds == 0.3
    assert [peers.policy.can_reach(k) for k in (1, 2)] == [False, True]


def test_of_a_neighbor_that_comes_back_nothing_is_read_that_it_was_before() -> None:
    peers = Peers()
    peers.receive(1, 7)
    peers.policy.lost(1)
    assert set(peers.reads_at()) == {2}
    assert peers.policy.known(1) == 7
    peers.policy.back(1, 0)
    assert set(peers.reads_at()) == {2}
    peers.receive(1, 9)
    assert peers.reads_at()[1].version == 9


def test_an_agent_comes_back_as_the_mean_of_its_neighbors_after_all_that_is_known_of_it() -> None:
    peers = Peers()
    peers.policy.connected([1, 2])
    plan = peers.policy.rejoin({2: 11, 1: 20}, [3, 5], 4)
    assert plan == Rejoin(15, (Read(1, 20, 0, 0), Read(2, 11, 0, 0)))
    assert peers.policy.rejoin({1: 20, 2: 11}, [30], 4).version == 31
    assert peers.policy.rejoin({1: 20, 2: 11}, [99], 4).version == NUM_STEPS
    peers.policy.rejoined(15, plan.reads)
    assert peers.policy.decide(peers.now) == Compute()
    assert peers.policy.version == 15
    (event,) = peers.policy.events()
    assert event[:3] == ("agent_returned", 0, 15)
    assert event.detail == "agent 0 is back at step 15, as the mean of agent 1 and agent 2"


def test_an_agent_whose_state_is_newer_than_its_neighbors_comes_back_as_it_was() -> None:
    peers = Peers(version=30, is_restored=True)
    peers.policy.connected([1])
    assert peers.policy.gone == {2}
    assert peers.policy.rejoin({1: 29}, [30], 0) == Rejoin(31, ())
    assert peers.policy.rejoin({1: 40}, [30], 0) == Rejoin(40, (Read(1, 40, 0, 0),))
    assert peers.policy.rejoin({}, (), 0) == Rejoin(31, ())
    peers.policy.rejoined(31, ())
    assert peers.policy.events()[0].detail == "agent 0 is back at step 31, as it was when its state was kept"


def test_an_agent_that_was_asked_to_leave_says_where_it_was() -> None:
    peers = Peers(version=7)
    peers.policy.left()
    (event,) = peers.policy.events()
    assert event == ("agent_left", 0, 7, "agent 0 has left at step 7, as it was asked to")
    assert peers.policy.events() == []


@pytest.mark.parametrize("barrier", BARRIERS, ids=str)
def test_a_message_is_left_out_only_where_nobody_waits_for_it(barrier: Barrier) -> None:
    policy = Peers(barrier=barrier).policy
    header = Header(0, 7, 0.0, 0.0)
    # With a barrier, two that each wait for a version which was left out would send no more.
    assert policy.may_skip(header) == isinstance(barrier, NoBarrier)
    assert not policy.may_skip(header._replace(final=True))
    assert not policy.may_skip(header._replace(isolated=True))
    policy.rejoined(7, ())
    assert not policy.may_skip(header)
