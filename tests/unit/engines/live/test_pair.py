"""What a live agent of AD-PSGD decides, in virtual time: whom it asks, gives up, answers, and how it comes back."""

from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.agents.pair import PairSpec
from ray_pcasgd.engines.live.decisions import Ask, Compute, Moment, Over, Rejoin, Take, Wait
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.live.pair import PairPolicy
from ray_pcasgd.records import Event, Read
from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.schedule.barrier import NoBarrier
from ray_pcasgd.schedule.delays import ComputeTimes, LinkDelay
from ray_pcasgd.schedule.plan_pairs import draw_partner

NUM_STEPS = 12
WALL = 5e8
"""By how much the two clocks differ."""
ACTIVE, PASSIVE = 0, 1


@cache
def plan() -> Plan:
    settings: dict[str, Any] = {
        "engine": "local",
        "algorithm": "ad-psgd",
        "num_agents": 6,
        "num_steps": NUM_STEPS,
        "topology": {"name": "complete"},
        "links": [],
        "task": {"model": {"hidden": [4]}},
    }
    return make_plan(load_config(settings))


class Pairs:
    """One agent of a run with its policy and a clock."""

    def __init__(self, agent: int = ACTIVE, links: list[Any] | None = None, extra: float = 0.0, steps: int = 0) -> None:
        spec = plan().specs[agent]
        assert isinstance(spec, PairSpec)
        self.spec = spec
        entries = tuple(LinkDelay.model_validate(entry) for entry in links or [])
        compute = ComputeTimes.model_validate({"stragglers": {agent: extra} if extra else {}})
        self.policy = PairPolicy(spec, InjectedDelays(0, compute, entries, plan().clusters, NoBarrier()), steps)
        self.policy.started_at = WALL
        self.policy.connected(spec.neighbors)
        self.seconds = 0.0
        self.told: list[Event] = []

    @property
    def now(self) -> Moment:
        return Moment(WALL + self.seconds, self.seconds)

    def begin(self, seconds: float = 0.0) -> None:
        """Compute for some seconds."""
        start = self.now.wall
        assert self.policy.decide(self.now) == Compute()
        self.seconds += seconds
        self.policy.computed(start, self.now)

    def decide(self) -> Ask | Take | Wait:
        decision = self.policy.decide(self.now)
        self.told += self.policy.events()
        assert not isinstance(decision, Compute | Over)
        return decision

    def asked(self) -> int:
        """Return who is asked now."""
        decision = self.decide()
        assert isinstance(decision, Ask)
        return decision.agent

    def expected(self, *without: int) -> int | None:
        """Return who is asked at the present step where some neighbors are not there."""
        alive = tuple(k for k in self.spec.neighbors if k not in without)
        return draw_partner(self.spec.recipe.seed, self.spec.agent, self.policy.steps, alive)


def test_each_step_asks_the_partner_that_a_planned_run_would_draw() -> None:
    pairs = Pairs()
    for step in range(NUM_STEPS):
        pairs.begin(0.1)
        k = pairs.asked()
        assert k == pairs.expected()
        pairs.policy.answered(k, 10 * step, pairs.now)
        assert pairs.decide() == Take((Read(k, 10 * step, 0, 0),))
        assert pairs.policy.known(k) == 10 * step
        pairs.policy.stepped(step + 1, pairs.now)
    assert pairs.policy.decide(pairs.now) == Over()


def test_injected_waits_come_after_the_gradient_on_the_way_there_and_on_the_way_back() -> None:
    pairs = Pairs(links=[{"delay": "0.2s"}], extra=0.5)
    pairs.begin(0.1)
    assert pairs.decide() == Wait(pytest.approx(0.6), "its own gradient")
    pairs.seconds = 0.61
    k = pairs.expected()
    assert pairs.decide() == Wait(pytest.approx(0.81), f"the way to agent {k}")
    assert pairs.policy.ready_at == pytest.approx(WALL + 0.61)
    pairs.seconds = 0.82
    assert pairs.asked() == k
    pairs.seconds = 0.9
    pairs.policy.answered(pairs.asked(), 4, pairs.now)
    assert pairs.decide() == Wait(pytest.approx(1.1), f"the answer of agent {k}")
    pairs.seconds = 1.11
    assert isinstance(pairs.decide(), Take)


def test_one_that_leaves_before_it_is_asked_is_not_asked() -> None:
    pairs = Pairs(links=[{"delay": "0.2s"}])
    pairs.begin()
    gone = pairs.expected()
    assert gone is not None
    assert isinstance(pairs.decide(), Wait)
    pairs.policy.lost(gone)
    pairs.seconds = 0.3
    assert pairs.decide() == Wait(0.5, f"the way to agent {pairs.expected(gone)}")
    assert not pairs.told


@pytest.mark.parametrize(("waited", "words"), [(None, ""), (3.0, " for 3 s")])
def test_one_that_does_not_answer_is_given_up_and_another_one_asked(waited: float | None, words: str) -> None:
    pairs = Pairs()
    pairs.begin()
    gone = []
    while isinstance(decision := pairs.decide(), Ask):
        assert decision.agent == pairs.expected(*gone)
        gone.append(decision.agent)
        pairs.policy.unanswered(decision.agent, waited)
    assert decision == Take()
    assert sorted(gone) == sorted(pairs.spec.neighbors)
    assert [one.detail for one in pairs.told] == [
        f"agent {k} does not answer{words}; it is asked no more" for k in gone
    ]
    assert {one.kind for one in pairs.told} == {"neighbor_lost"}


def test_one_that_has_come_back_while_it_was_asked_is_not_given_up() -> None:
    pairs = Pairs()
    pairs.begin()
    k = pairs.asked()
    pairs.policy.lost(k)
    pairs.policy.back(k, 0)
    pairs.policy.unanswered(k, None)
    assert pairs.asked() == k
    pairs.policy.unanswered(k, None)
    assert pairs.asked() != k


def test_with_an_answer_that_is_rejected_the_step_is_taken_alone() -> None:
    pairs = Pairs()
    pairs.begin()
    k = pairs.asked()
    pairs.policy.rejected()
    assert pairs.decide() == Take()
    assert pairs.policy.known(k) == 0
    pairs.policy.stepped(1, pairs.now)
    pairs.begin()
    assert pairs.asked() == pairs.expected()


def test_a_passive_agent_asks_nobody_and_takes_what_it_is_asked_for_into_its_record() -> None:
    pairs = Pairs(PASSIVE)
    asker = pairs.spec.neighbors[0]
    pairs.policy.back(asker, 0)
    pairs.begin(1.0)
    assert pairs.decide() == Take()
    pairs.policy.stepped(1, pairs.now)
    pairs.seconds = 2.0
    header = Header(asker, 7, WALL + 0.5, 0.0)
    assert pairs.policy.asked(header, 2, pairs.now) == Read(asker, 7, 0, 1)
    assert pairs.policy.asked(header._replace(version=8), 3, pairs.now) == Read(asker, 8, 0, 2)
    assert pairs.policy.known(asker) == 8
    assert (pairs.policy.version, pairs.policy.steps) == (3, 1)


def test_a_lost_agent_comes_back_above_all_that_is_known_of_it_and_with_its_own_steps() -> None:
    pairs = Pairs(steps=5)
    plan = pairs.policy.rejoin({3: 30, 1: 10}, [17, 12], 9)
    assert plan == Rejoin(18, (Read(1, 10, 0, 0), Read(3, 30, 0, 0)))
    assert pairs.policy.rejoin({}, [], 9) == Rejoin(9, ())
    pairs.policy.rejoined(*plan)
    (event,) = pairs.policy.events()
    assert event[:3] == ("agent_returned", ACTIVE, 5)
    assert event.detail == "agent 0 is back at its own step 5, as the mean of agent 1 and agent 3"
    pairs.begin()
    assert pairs.asked() == pairs.expected()
    pairs.policy.rejoined(9, ())
    assert pairs.policy.events()[0].detail.endswith("with the first weights: no neighbor is there")


def test_an_agent_that_was_asked_to_leave_says_where_it_was() -> None:
    pairs = Pairs()
    pairs.begin()
    pairs.policy.rejected()
    pairs.policy.stepped(4, pairs.now)
    pairs.policy.left()
    (event,) = pairs.policy.events()
    assert event == ("agent_left", ACTIVE, 1, "agent 0 has left at its own step 1, as it was asked to")


WHO = st.sampled_from([1, 3, 5])
OPS = ["lost", "back", "answer", "gone", "late", "reject", "time"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["lost", "back", "answer", "gone", "late", "reject", "time"]), WHO), max_size=60
    ),
    st.sampled_from([[], [{"delay": "0.2s"}], [{"delay": "exponential(0.3s)"}]]),
)
def test_whatever_happens_only_those_alive_are_asked_and_every_step_is_taken(
    ops: list[tuple[str, int]], links: list[Any]
) -> None:
    pairs, alive, taken, is_new = Pairs(links=links), {1, 3, 5}, 0, False
    for op, who in ops:
        decision = pairs.policy.decide(pairs.now)
        if isinstance(decision, Compute):
            pairs.begin(0.01)
        elif isinstance(decision, Take):
            assert decision.reads or not alive or is_new
            taken, is_new = taken + 1, False
            pairs.policy.stepped(taken, pairs.now)
        elif isinstance(decision, Ask):
            assert decision.agent in alive
            if op == "answer":
                pairs.policy.answered(decision.agent, 1, pairs.now)
                is_new = True
            elif op == "reject":
                pairs.policy.rejected()
                is_new = True
            elif op in ("gone", "late"):
                pairs.policy.unanswered(decision.agent, 3.0 if op == "late" else None)
                alive.discard(decision.agent)
        elif isinstance(decision, Wait):
            assert decision.until is not None
            assert decision.until > pairs.seconds
            pairs.seconds = decision.until if op == "time" else pairs.seconds
        if op == "lost":
            pairs.policy.lost(who)
            alive.discard(who)
        elif op == "back":
            pairs.policy.back(who, 0)
            alive.add(who)
    assert pairs.policy.steps == taken
    assert pairs.policy.alive == alive
