"""Membership of live runs in virtual time: events go in, and what the driver would have to do comes out."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_pcasgd.agents.participant import LearnerSpec
from ray_pcasgd.engines.base import InterruptionError, RunError
from ray_pcasgd.engines.live import agent_events as happened
from ray_pcasgd.engines.live import driver_actions as act
from ray_pcasgd.engines.live.commands import Command, Heal, Isolate, Join, Leave, SetDelay
from ray_pcasgd.engines.live.membership import RETURN_SECONDS, Membership
from ray_pcasgd.engines.live.presence import Presence
from ray_pcasgd.engines.live.timetable import Timetable
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.schedule.delays import LinkDelay
from ray_pcasgd.schedule.laws import ConstantLaw
from ray_pcasgd.schedule.membership import Away
from tests.unit.engines.live.test_timetable import times_away

P = Presence
FAMILIES: dict[str, dict[str, Any]] = {
    "peers": {"algorithm": "d-asgd", "num_agents": 5, "topology": "ring"},
    "push-sum": {"algorithm": "sgp", "num_agents": 5, "topology": "directed-exponential"},
    "pairs": {"algorithm": "ad-psgd", "num_agents": 4},
    "servers": {"algorithm": {"name": "server", "shards": 2}, "num_agents": 3},
}
SERVERS = (3, 4)
STEPS_LATE = SetDelay(entry=LinkDelay(delay=ConstantLaw(value=20), links=((0, 1),)))
SECONDS_LATE = SetDelay(entry=LinkDelay(delay=ConstantLaw(value=1), unit="seconds", links=((0, 1),)))


@cache
def specs_of(family: str) -> tuple[LearnerSpec, ...]:
    tree = {"engine": "local", "num_steps": 4, "evaluate_every": 4, "links": [], "task": {"model": {"hidden": [4]}}}
    return tuple(make_plan(load_config(tree | FAMILIES[family])).specs)


def lost(agent: int) -> happened.Lost:
    return happened.Lost(agent, InterruptionError(f"agent {agent} was lost: killed", agent))


def begun(family: str, max_failures: int = -1, absent: Sequence[int] = (), unknown: Sequence[int] = ()) -> Membership:
    """Return the membership of a run whose agents train."""
    membership = Membership(specs_of(family), max_failures, absent, unknown)
    membership.handle(happened.Starting(), 0.0)
    membership.handle(happened.Began({}), 0.0)
    return membership


def after(membership: Membership, *events: happened.AgentEvent, now: float = 0.0) -> list[act.DriverAction]:
    """Return what follows from the last one of several events."""
    return [membership.handle(event, now) for event in events][-1]


def asked(command: Command, number: int = 7) -> happened.Asked:
    return happened.Asked(number, command)


def neighbors(family: str, agent: int) -> tuple[int, ...]:
    """Return who reads an agent or is read by it."""
    specs = specs_of(family)
    return tuple(k for k in range(len(specs)) if agent in {*specs[k].neighbors, *specs[k].receivers})


def test_a_run_begins_without_those_who_join_later_and_with_those_of_whom_nothing_was_kept() -> None:
    membership = Membership(specs_of("peers"), -1, absent=(1,), unknown=(3,))
    assert membership.those(P.STARTING) == membership.there == (0, 2, 4)
    assert membership.handle(happened.Starting(), 0.0) == [
        act.Announce("agent_left", 1, "agent 1 has not joined yet; 'ray-pcasgd join' lets it come in")
    ]
    assert membership.handle(happened.Began({}), 0.0) == [
        act.Train((0, 2, 4)),
        act.TellLost(1, (0, 2)),
        act.TellLost(3, (2, 4)),
        act.Make(3),
    ]
    assert membership.presence == [P.TRAINING, P.AWAY, P.TRAINING, P.RETURNING, P.TRAINING]
    assert membership.failures == 0


def test_an_agent_that_is_lost_while_the_run_starts_does_not_train_and_is_made_again() -> None:
    membership = Membership(specs_of("peers"), -1)
    error = InterruptionError("agent 2 was lost: killed", 2)
    assert membership.handle(happened.Began({2: error}), 0.0) == [
        act.Train((0, 1, 3, 4)),
        act.Announce("agent_lost", 2, "agent 2 was lost: killed"),
        act.TellLost(2, (1, 3)),
        act.Forget(2),
        act.Make(2),
    ]
    assert membership.failures == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lost_agent_is_made_again_and_joins_those_who_are_there(family: str) -> None:
    membership = begun(family, max_failures=1)
    around = neighbors(family, 0)
    assert after(membership, lost(0)) == [
        act.Announce("agent_lost", 0, "agent 0 was lost: killed"),
        act.TellLost(0, around),
        act.Forget(0),
        act.Make(0),
    ]
    assert 0 not in membership.there
    assert after(membership, happened.Built(0, "process 7")) == [
        act.Announce("agent_started", 0, "process 7"),
        act.Rejoin(0, around),
    ]
    assert membership.presence[0] is P.TRAINING


def test_who_joins_is_told_of_those_who_have_finished_and_not_of_those_who_are_away() -> None:
    membership = begun("peers")
    after(membership, lost(0), happened.Finished(1), lost(4))
    assert after(membership, happened.Built(0, "here"))[-1] == act.Rejoin(0, (1,))


@pytest.mark.parametrize("max_failures", [0, 1, 2])
def test_no_more_agents_are_made_again_than_the_run_may_lose(max_failures: int) -> None:
    membership = begun("peers", max_failures)
    made = [act.Make(agent) in after(membership, lost(agent)) for agent in range(4)]
    assert made == [number < max_failures for number in range(4)]
    assert membership.presence[3] is P.AWAY
    assert after(membership, happened.Tick()) == []


def test_a_lost_scheduler_counts_and_ends_the_run_where_too_much_was_lost() -> None:
    membership = begun("peers", max_failures=2)
    announced = act.Announce("scheduler_lost", -1, "the scheduler was lost: killed")
    assert after(membership, happened.SchedulerLost("killed")) == [announced, act.ReplaceScheduler()]
    after(membership, lost(0))
    first, end = after(membership, happened.SchedulerLost("killed"))
    assert first == announced
    assert isinstance(end, act.End)
    assert type(end.error) is RunError
    assert str(end.error) == "the scheduler was lost; allowed are max_failures = 2 (killed)"


def test_any_number_of_losses_is_allowed_where_none_is_set() -> None:
    membership = begun("peers", max_failures=-1)
    for _ in range(20):
        assert act.Make(0) in after(membership, lost(0))
        assert act.ReplaceScheduler() in after(membership, happened.SchedulerLost("killed"))
        after(membership, happened.Built(0, "here"))


def test_a_silent_agent_is_ended_and_only_then_lost() -> None:
    membership = begun("peers", max_failures=1)
    assert after(membership, happened.Silent(2)) == [act.Kill(2)]
    assert membership.presence[2] is P.TRAINING
    assert membership.failures == 0
    assert act.Make(2) in after(membership, lost(2))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_error_of_a_user_s_code_stops_the_others_and_ends_the_run(family: str) -> None:
    membership, error = begun(family), ValueError("wrong")
    others = tuple(range(2, len(specs_of(family))))
    after(membership, happened.Finished(0))
    assert after(membership, happened.Failed(1, error)) == [act.Stop(others), act.End(error)]


def test_an_agent_that_cannot_be_built_again_ends_the_run() -> None:
    membership = begun("peers")
    stop, end = after(membership, lost(0), happened.Failed(0, ValueError("wrong")))
    assert stop == act.Stop((1, 2, 3, 4))
    assert isinstance(end, act.End)
    assert type(end.error) is RunError
    assert str(end.error) == "agent 0 could not be built again: wrong"


def test_a_lost_server_ends_the_run_at_once_and_counts_for_nothing() -> None:
    membership, event = begun("servers"), lost(4)
    assert after(membership, event) == [act.End(event.error)]
    assert membership.failures == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_an_agent_that_leaves_is_no_failure_and_neighbors_are_told_where_it_does_not_do_so_itself(family: str) -> None:
    membership = begun(family, max_failures=0)
    assert after(membership, asked(Leave(agent=1))) == [
        act.Answer(7, "agent 1 is asked to leave"),
        act.Announce("command_leave", -1, "agent 1 is asked to leave"),
        act.AskToLeave(1),
    ]
    assert 1 in membership.training
    told = [] if family == "peers" else [act.TellLost(1, neighbors(family, 1))]
    assert after(membership, happened.Finished(1)) == told
    assert membership.presence[1] is P.AWAY
    assert membership.failures == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_only_those_who_push_shares_to_an_agent_are_told_of_its_end(family: str) -> None:
    membership = begun(family)
    after(membership, lost(0))
    pushing = tuple(k for k in range(1, len(specs_of(family))) if 2 in specs_of(family)[k].receivers)
    done = after(membership, happened.Finished(2))
    assert done == ([act.TellDone(2, pushing)] if family == "push-sum" else [])
    assert set(pushing) != set(neighbors(family, 2)) or family != "push-sum"


@pytest.mark.parametrize("is_lost", [False, True])
def test_who_has_left_or_is_lost_for_good_joins_when_it_is_asked_to(is_lost: bool) -> None:
    membership = begun("peers", max_failures=0)
    gone = [lost(2)] if is_lost else [asked(Leave(agent=2)), happened.Finished(2)]
    assert after(membership, *gone, asked(Join(agent=2))) == [
        act.Answer(7, "agent 2 is asked to come in"),
        act.Announce("command_join", -1, "agent 2 is asked to come in"),
        act.Forget(2),
        act.Make(2),
    ]
    assert membership.presence[2] is P.RETURNING


def test_one_that_joins_may_finish_though_it_was_asked_to_leave_before() -> None:
    membership = begun("peers")
    after(membership, asked(Leave(agent=2)), lost(2), happened.Built(2, "here"), happened.Finished(2))
    assert membership.presence[2] is P.FINISHED


def test_changed_links_are_said_to_all_who_are_there() -> None:
    membership = begun("peers", max_failures=0)
    after(membership, lost(2), happened.Finished(3), asked(Leave(agent=4)))
    command = Isolate(agents=(0,))
    assert after(membership, asked(command, 3)) == [
        act.Answer(3, "agents [0] are isolated"),
        act.Announce("command_isolate", -1, "agents [0] are isolated"),
        act.ChangeLinks(command, (0, 1, 3, 4)),
    ]


PUSHED = "isolate: allowed are algorithms without push-sum, whose mass would be lost with the messages"
IN_STEPS = "delay in steps: allowed with ad-psgd is seconds; pairs average what both have at that moment"


@pytest.mark.parametrize(
    ("family", "command", "said"),
    [
        ("peers", Isolate(agents=(1,)), None),
        ("push-sum", Isolate(agents=(1,)), PUSHED),
        ("pairs", Isolate(agents=(1,)), "isolate: allowed are runs between peers"),
        ("servers", Isolate(agents=(1,)), "isolate: allowed are runs between peers"),
        ("peers", STEPS_LATE, None),
        ("push-sum", STEPS_LATE, None),
        ("pairs", STEPS_LATE, IN_STEPS),
        ("pairs", SECONDS_LATE, None),
        ("servers", STEPS_LATE, None),
        ("pairs", Heal(), None),
        ("servers", Leave(agent=3), "leave: allowed are workers; agent 3 is a server"),
        ("servers", Join(agent=4), "join: allowed are workers; agent 4 is a server"),
        ("servers", Leave(agent=1), None),
        ("peers", Leave(agent=7), "agent 7; allowed are 0 to 4"),
        ("servers", Join(agent=-1), "agent -1; allowed are 0 to 4"),
        ("pairs", Isolate(agents=(1, 4)), "agent 4; allowed are 0 to 3"),
        ("peers", Join(agent=1), "agent 1 takes part already, or is coming back"),
    ],
)
def test_commands_that_make_no_sense_are_refused(family: str, command: Command, said: str | None) -> None:
    membership = begun(family)
    before = list(membership.presence)
    actions = after(membership, asked(command))
    if said is None:
        assert actions[0] == act.Answer(7, command.describe())
    else:
        assert actions == [act.Answer(7, f"refused: {said}")]
        assert membership.presence == before


MAY_LEAVE = {P.TRAINING, P.LEAVING}


@pytest.mark.parametrize("presence", [P.TRAINING, P.LEAVING, P.FINISHED, P.AWAY, P.RETURNING])
def test_who_may_leave_and_who_may_join(presence: Presence) -> None:
    membership = begun("peers")
    membership.presence[1] = presence
    not_leaving = None if presence in MAY_LEAVE else "agent 1 does not train"
    assert membership.refusal(Leave(agent=1)) == not_leaving
    not_joining = None if presence is P.AWAY else "agent 1 takes part already, or is coming back"
    assert membership.refusal(Join(agent=1)) == not_joining


def finish(membership: Membership, *agents: int) -> None:
    for agent in agents:
        membership.handle(happened.Finished(agent), 0.0)


def test_a_run_ends_once_all_have_finished() -> None:
    membership = begun("peers")
    finish(membership, 0, 1, 2, 3)
    assert after(membership, happened.Tick()) == []
    assert after(membership, happened.Finished(4), happened.Tick()) == [act.End(None)]


def test_a_run_waits_so_long_for_one_that_is_made_again_and_each_time_anew() -> None:
    membership = begun("peers")
    finish(membership, 1, 2, 3, 4)
    membership.handle(lost(0), 5.0)
    assert membership.handle(happened.Tick(), 10.0) == []
    assert membership.handle(happened.Tick(), 10.0 + RETURN_SECONDS - 0.1) == []
    membership.handle(happened.Built(0, "here"), 80.0)
    assert membership.handle(happened.Tick(), 100.0) == []
    membership.handle(lost(0), 200.0)
    assert membership.handle(happened.Tick(), 200.0) == []
    assert membership.handle(happened.Tick(), 200.0 + RETURN_SECONDS) == [act.End(None)]


def test_a_run_that_nobody_has_finished_ends_with_an_error() -> None:
    membership = begun("peers", max_failures=0)
    after(membership, asked(Leave(agent=0)), happened.Finished(0))
    (end,) = after(membership, *(lost(agent) for agent in range(1, 5)), happened.Tick())
    assert isinstance(end, act.End)
    assert type(end.error) is RunError
    assert str(end.error) == "every agent was lost"


def test_a_run_with_servers_does_not_wait_for_a_worker_once_they_are_done() -> None:
    membership = begun("servers")
    after(membership, lost(0))
    finish(membership, 1, 2, 3)
    assert after(membership, happened.Tick()) == []
    assert after(membership, happened.Finished(4), happened.Tick()) == [act.End(None)]


def test_servers_without_a_worker_are_stopped() -> None:
    membership = begun("servers", max_failures=1)
    after(membership, asked(Leave(agent=2)), happened.Finished(2), lost(0))
    assert after(membership, lost(1), happened.Tick()) == []  # the first is being made again
    stop, end = after(membership, happened.Built(0, "here"), lost(0), happened.Tick())
    assert stop == act.Stop(SERVERS)
    assert isinstance(end, act.End)
    assert type(end.error) is RunError
    assert str(end.error) == "every worker was lost, or has left"


def test_settings_let_agents_leave_and_come_in_at_their_second() -> None:
    away = (Away(1, 0.0, 4.0), Away(2, 3.0, math.inf))
    membership = Membership(specs_of("peers"), 0, absent=(4,), unknown=(1,), timetable=Timetable(away))
    assert membership.handle(happened.Starting(), 0.0) == [
        act.Announce("agent_left", 1, "agent 1 is not there before second 4, as membership says"),
        act.Announce("agent_left", 4, "agent 4 has not joined yet; 'ray-pcasgd join' lets it come in"),
    ]
    assert membership.handle(happened.Began({}), 0.0)[0] == act.Train((0, 2, 3))
    assert after(membership, happened.Tick(2.9)) == []
    assert after(membership, happened.Tick(3.0)) == [
        act.Announce("command_leave", -1, "agent 2 is asked to leave at second 3, as membership says"),
        act.AskToLeave(2),
    ]
    assert after(membership, happened.Finished(2), happened.Tick(4.1)) == [
        act.Announce("command_join", -1, "agent 1 is asked to come in at second 4, as membership says"),
        act.Forget(1),
        act.Make(1),
    ]
    assert membership.presence == [P.TRAINING, P.RETURNING, P.AWAY, P.TRAINING, P.AWAY]


def test_a_run_goes_on_while_somebody_is_still_to_come_in() -> None:
    timetable = Timetable((Away(0, 0.0, 300.0), Away(1, 1.0, math.inf)))
    membership = Membership(specs_of("peers"), 0, timetable=timetable)
    membership.handle(happened.Began({}), 0.0)
    finish(membership, 1, 2, 3, 4)
    assert membership.handle(happened.Tick(299.0), 299.0) == []
    assert membership.handle(happened.Tick(300.0), 300.0)[1:] == [act.Forget(0), act.Make(0)]
    assert membership.handle(happened.Tick(301.0), 301.0) == []
    membership.handle(happened.Built(0, "here"), 302.0)
    finish(membership, 0)
    assert membership.handle(happened.Tick(303.0), 303.0) == [act.End(None)]


@pytest.mark.parametrize("are_done", [False, True])
def test_servers_wait_for_a_worker_that_is_to_come_in_unless_they_are_done(are_done: bool) -> None:
    timetable = Timetable((Away(0, 1.0, 50.0), Away(1, 1.0, math.inf), Away(2, 0.0, math.inf)))
    membership = Membership(specs_of("servers"), 0, timetable=timetable)
    membership.handle(happened.Began({}), 0.0)
    assert act.AskToLeave(0) in after(membership, happened.Tick(1.0))
    finish(membership, 0, 1, *(SERVERS if are_done else ()))
    assert after(membership, happened.Tick(2.0)) == ([act.End(None)] if are_done else [])
    if not are_done:
        assert act.Make(0) in after(membership, happened.Tick(50.0))


LEGAL = {
    P.STARTING: {P.TRAINING, P.AWAY, P.RETURNING},
    P.TRAINING: {P.LEAVING, P.FINISHED, P.AWAY, P.RETURNING},
    P.LEAVING: {P.AWAY, P.RETURNING},
    P.FINISHED: set(),
    P.AWAY: {P.RETURNING},
    P.UNKNOWN: {P.RETURNING},
    P.RETURNING: {P.TRAINING, P.AWAY},
}
"""Where an agent may be after one event. One that is lost while it is made again may stay where it is."""


class World:
    """What a driver and its actors would do: it knows which calls have not returned, and believes nothing else."""

    def __init__(
        self, family: str, max_failures: int, absent: Sequence[int], unknown: Sequence[int], away: tuple[Away, ...]
    ) -> None:
        self.family = family
        self.specs = specs_of(family)
        self.servers = set(SERVERS) if family == "servers" else set()
        self.max_failures = max_failures
        timetable = Timetable(away)
        self.membership = Membership(self.specs, max_failures, absent, unknown, timetable)
        self.now = 0.0
        self.training: set[int] = set()
        self.building: set[int] = set()
        self.actors = set(range(len(self.specs))) - {*absent, *unknown, *timetable.absent}
        """Those that take messages, and are not known to be lost."""
        self.asked_to_leave: set[int] = set()
        self.failures = 0
        self.end: act.End | None = None

    def happens(self, event: happened.AgentEvent) -> list[act.DriverAction]:
        """Hand an event in, and do what follows."""
        match event:
            case happened.Lost(agent, _) | happened.Finished(agent) | happened.Failed(agent, _):
                self.training.discard(agent)
                self.building.discard(agent)
        match event:
            case happened.Lost(agent, _):
                self.actors.discard(agent)
                self.failures += agent not in self.servers
            case happened.SchedulerLost(_):
                self.failures += 1
            case happened.Finished(agent) if agent in self.asked_to_leave:
                self.actors.discard(agent)
            case happened.Built(agent, _):
                self.building.discard(agent)
        before = list(self.membership.presence)
        actions = self.membership.handle(event, self.now)
        for old, new in zip(before, self.membership.presence, strict=True):
            assert new is old or new in LEGAL[old]
        for action in actions:
            assert self.end is None
            self.does(action)
        self.check()
        return actions

    def does(self, action: act.DriverAction) -> None:
        match action:
            case act.Train(agents):
                self.training |= {*agents}
            case act.Make(agent):
                assert agent not in self.training | self.building, "it is made twice at once"
                self.asked_to_leave.discard(agent)
                self.building.add(agent)
            case act.Rejoin(agent, others):
                assert agent not in self.training | self.building
                assert set(others) == self.actors & {*self.specs[agent].neighbors, *self.specs[agent].receivers}
                self.training.add(agent)
                self.actors.add(agent)
            case act.AskToLeave(agent) | act.Kill(agent):
                assert agent in self.training
                self.asked_to_leave |= {agent} if isinstance(action, act.AskToLeave) else set()
            case act.TellLost(agent, to):
                assert agent not in self.actors
                assert set(to) == self.actors & {*neighbors(self.family, agent)}
            case act.TellDone(agent, to):
                assert agent in self.actors
                assert set(to) == {k for k in self.actors if agent in self.specs[k].receivers}
            case act.ChangeLinks(_, to):
                assert set(to) == self.actors
            case act.Stop(agents):
                assert set(agents) == self.training
            case act.End():
                self.end = action

    def check(self) -> None:
        if self.end is not None:
            return
        membership = self.membership
        assert set(membership.training) == self.training
        assert set(membership.those(P.RETURNING)) == self.building
        assert set(membership.there) == self.actors
        assert {*membership.those(P.LEAVING)} == self.asked_to_leave & self.training
        assert membership.failures == self.failures

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.happens(happened.Tick(self.now))


@st.composite
def worlds(draw: st.DrawFn) -> World:
    family = draw(st.sampled_from(sorted(FAMILIES)))
    agents = st.sets(st.integers(0, 2), max_size=2)
    absent, unknown = draw(agents), draw(agents)
    away = draw(times_away(2))
    world = World(family, draw(st.integers(-1, 6)), tuple(absent - unknown), tuple(unknown), away)
    starting = sorted(world.membership.those(P.STARTING))
    lost_ones = draw(st.sets(st.sampled_from(starting), max_size=2)) - world.servers
    world.happens(happened.Starting())
    world.actors -= lost_ones
    world.failures += len(lost_ones)
    world.happens(happened.Began({agent: lost(agent).error for agent in lost_ones}))
    return world


def step(world: World, draw: st.DataObject) -> None:
    """Let one thing happen that may happen."""
    training, building = sorted(world.training), sorted(world.building)
    agents = range(len(world.specs))
    kinds = [
        *(["finished", "lost", "silent"] if training else []),
        *(["built", "lost again"] if building else []),
        *("leave", "join", "heal", "tick", "scheduler"),
    ]
    match draw.draw(st.sampled_from(kinds)):
        case "finished":
            world.happens(happened.Finished(draw.draw(st.sampled_from(training))))
        case "silent":
            world.happens(happened.Silent(draw.draw(st.sampled_from(training))))
        case "lost":
            world.happens(lost(draw.draw(st.sampled_from(training))))
        case "lost again":
            world.happens(lost(draw.draw(st.sampled_from(building))))
        case "built":
            world.happens(happened.Built(draw.draw(st.sampled_from(building)), "here"))
        case "leave":
            world.happens(asked(Leave(agent=draw.draw(st.sampled_from(agents)))))
        case "join":
            world.happens(asked(Join(agent=draw.draw(st.sampled_from(agents)))))
        case "heal":
            world.happens(asked(Heal()))
        case "scheduler":
            world.happens(happened.SchedulerLost("killed"))
        case "tick":
            world.tick(draw.draw(st.sampled_from([0.1, 2.0, 20.0, 70.0])))


@settings(max_examples=200)
@given(worlds(), st.data())
def test_whatever_happens_agents_are_where_their_calls_say_and_the_run_comes_to_its_end(
    world: World, data: st.DataObject
) -> None:
    for _ in range(data.draw(st.integers(0, 30))):
        if world.end is None:
            step(world, data)
    # From here on all goes well, but for those of whom no more is heard while they are made again.
    for _ in range(8):
        while world.end is None and world.training:
            world.happens(happened.Finished(min(world.training)))
        if world.end is None:
            world.tick(RETURN_SECONDS + 1.0)
    assert world.end is not None
    gone = world.membership.those(P.AWAY, P.RETURNING)
    finished = world.membership.those(P.FINISHED)
    error = world.end.error
    if error is None:
        assert finished
        assert {*gone, *finished} == {*range(len(world.specs))}
    elif isinstance(error, InterruptionError):
        assert error.agent in world.servers
    elif str(error).startswith("the scheduler was lost"):
        assert 0 <= world.max_failures < world.failures
    elif str(error).startswith("every worker"):
        assert {0, 1, 2} <= {*world.membership.those(P.AWAY)}
        assert world.servers
    else:
        assert str(error) == "every agent was lost"
        assert len(gone) == len(world.specs)
