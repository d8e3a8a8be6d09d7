"""What the actor around the scheduler does, apart from Ray."""

from collections.abc import Sequence

from ray_pcasgd.engines.ray.scheduler_actor import SchedulerActor
from ray_pcasgd.records import Event
from ray_pcasgd.schedule.scheduler import Recorded


def said(actor: SchedulerActor, received: int = 0) -> list[Sequence[object]]:
    return [call.said for call in actor.drain(received)]


def test_calls_that_overtake_others_of_their_agent_wait_for_them() -> None:
    actor = SchedulerActor(Recorded(), 2)
    mine = [Event("noted", 0, step, "") for step in range(4)]
    actor.record(0, 0, 0, [mine[0]])
    actor.record(0, 2, 0, [mine[2]])
    actor.record(0, 3, 0, [mine[3]])
    assert said(actor) == [[mine[0]]]
    other = Event("noted", 1, 0, "")
    actor.record(1, 0, 0, [other])
    assert said(actor, received=1) == [[other]]
    actor.record(0, 1, 0, [mine[1]])
    assert said(actor, received=2) == [[mine[1]], [mine[2]], [mine[3]]]


def test_what_the_driver_has_not_confirmed_is_said_again() -> None:
    actor = SchedulerActor(Recorded(), 1)
    actor.record(0, 0, 0, ["first"])  # type: ignore[list-item]
    assert said(actor) == [["first"]]
    assert said(actor) == [["first"]]
    assert actor.record(0, 1, 0, ["second"]) == 0  # type: ignore[list-item]
    assert said(actor, received=1) == [["second"]]
    assert actor.record(0, 2, 0, ["third"]) == 1  # type: ignore[list-item]


def test_a_scheduler_in_the_place_of_a_lost_one_begins_where_the_driver_left_off() -> None:
    actor = SchedulerActor(Recorded(), 1)
    actor.record(0, 7, 6, ["later"])  # type: ignore[list-item]
    actor.record(0, 6, 6, ["earlier"])  # type: ignore[list-item]
    assert said(actor) == [["earlier"], ["later"]]


def test_a_lost_agent_s_gap_does_not_hold_up_its_successor() -> None:
    actor = SchedulerActor(Recorded(), 1)
    actor.record(0, 0, 0, ["before"])  # type: ignore[list-item]
    actor.record(0, 2, 0, ["never complete"])  # type: ignore[list-item]
    actor.forget(0)
    actor.record(0, 1, 1, ["after"])  # type: ignore[list-item]
    assert said(actor) == [["before"], ["after"]]
