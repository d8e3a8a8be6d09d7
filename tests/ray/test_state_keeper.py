"""What keeping a run's state takes counts as its agents' too, who do not train meanwhile."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

from ray_pcasgd.engines.base import Leaving
from ray_pcasgd.engines.ray.agent_state import AgentState
from ray_pcasgd.engines.ray.cuts import portable_state
from ray_pcasgd.engines.ray.live import LiveDriver
from ray_pcasgd.engines.ray.state_keeper import PlannedStates
from ray_pcasgd.schedule.scheduler import Cut

pytestmark = pytest.mark.usefixtures("ray_cluster")


@ray.remote(num_cpus=0)
class Cutting:
    """A scheduler of which nothing but a cut is asked for."""

    def cut(self) -> Cut:
        return Cut(1, 8, (4, 4))


def test_a_planned_state_costs_what_its_slowest_agent_took_for_it_too() -> None:
    group: Any = SimpleNamespace(actors={0: None, 1: None}, driving=SimpleNamespace(answer_seconds=60.0))
    keeper = PlannedStates(group, Cutting.remote(), 0.0, Leaving())  # type: ignore[attr-defined]
    assert list(keeper.pauses({0, 1}, time.time())) == []  # the cut is asked for
    for agent, seconds in enumerate((3.0, 100.0)):
        keeper.take(AgentState(agent, 4, 1, portable_state({"weights": torch.ones(3)}), seconds=seconds))
    (pause,) = keeper.pauses({0, 1}, time.time())
    assert [own["weights"].tolist() for own in pause.state()["agents"]] == [[1.0] * 3] * 2
    assert keeper.cost_seconds >= 100


def test_a_live_agent_gives_its_part_more_rarely_where_that_takes_long() -> None:
    spec, driving = SimpleNamespace(agent=0), SimpleNamespace(state_seconds=1.0)
    actor: Any = SimpleNamespace(spec=spec, driving=driving, version=4, is_isolated=False, unsent=[])
    driver = LiveDriver(actor)
    driver.keep_state({"weights": torch.ones(3)})
    assert [part.version for part in actor.unsent] == [4]
    assert driver.cost_seconds > 0
    driver.kept_at -= 100  # so long ago
    driver.cost_seconds = 0.01
    assert driver.is_time_to_keep
    driver.cost_seconds = 3.0
    assert not driver.is_time_to_keep
