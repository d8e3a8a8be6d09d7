"""What the actor around the scheduler does, apart from Ray."""

from ray_pcasgd.engines.ray.scheduler_actor import SchedulerActor
from ray_pcasgd.records import Event
from ray_pcasgd.schedule.scheduler import Recorded


def test_reports_that_overtake_others_of_their_agent_wait_for_them() -> None:
    actor = SchedulerActor(Recorded(), 2)
    mine = [Event("noted", 0, step, "") for step in range(4)]
    actor.record(0, 1, [mine[1]])
    actor.record(0, 2, [mine[2], mine[3]])
    assert actor.drain() == []
    other = Event("noted", 1, 0, "")
    actor.record(1, 0, [other])
    assert actor.drain() == [other]
    actor.record(0, 0, [mine[0]])
    assert actor.drain() == mine
