"""What a planned agent's actor does while its agent is away, apart from Ray."""

from typing import Any

import pytest

from ray_pcasgd.agents.mailbox import Header, Message
from ray_pcasgd.engines.base import InterruptionError
from ray_pcasgd.engines.ray.actor import Actor
from ray_pcasgd.engines.ray.mail import Driving
from ray_pcasgd.engines.ray.planned import PlannedDriver
from ray_pcasgd.records import Read, Row
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import load_config

SETTINGS: dict[str, Any] = {"engine": "local", "num_agents": 3, "task": {"model": {"hidden": [4]}}}
BACK = Row(0, 6, 7.0, 7.0, 7.0, (Read(1, 7, 0, 0), Read(2, 5, 0, 0)), "rejoined")


def actor_of(wait_seconds: float = 60.0, falls_back: bool = False) -> Actor:
    plan = make_plan(load_config(SETTINGS))
    scheduler: Any = None  # nothing is reported here
    driving = Driving(wait_seconds, 1, None, None, None, 2**16, falls_back)
    actor = Actor(plan.specs[0], plan.data, driving, scheduler, PlannedDriver)
    actor.begin()
    return actor


def receive(actor: Actor, sender: int, version: int) -> None:
    """Let a message come; its contents do not matter."""
    start = actor.mailbox.get(sender, 0)
    contents = start.contents if start else None
    header = Header(sender, version, 0.0, 0.0)
    actor.received[sender] += 1
    actor.mailbox.put(Message(header, contents), 0.0)
    actor.on_message(header)


@pytest.mark.parametrize(("falls_back", "kept"), [(False, {1: [7, 8], 2: []}), (True, {1: [*range(9)], 2: [0]})])
def test_while_an_agent_is_away_its_actor_keeps_what_it_comes_back_with(
    falls_back: bool, kept: dict[int, list[int]]
) -> None:
    actor = actor_of(falls_back=falls_back)
    assert isinstance(actor.driver, PlannedDriver)
    actor.driver.awaited = BACK
    for version in range(1, 9):
        receive(actor, 1, version)
    assert {k: sorted(actor.mailbox.versions(k)) for k in (1, 2)} == kept
    for version in range(1, 6):
        receive(actor, 2, version)
    assert not actor.driver.is_missing(BACK.reads[1])


def test_who_takes_no_row_any_more_keeps_only_the_newest_message() -> None:
    actor = actor_of()
    assert isinstance(actor.driver, PlannedDriver)
    actor.driver.is_over = True
    for version in range(1, 9):
        receive(actor, 1, version)
    assert actor.mailbox.versions(1) == [8]


@pytest.mark.parametrize("kind", ["rejoined", "step"])
def test_one_that_is_away_waits_as_long_as_others_send(kind: Any) -> None:
    actor, waits = actor_of(wait_seconds=0.02), []

    def has_come() -> bool:
        """Let a message come each time that it is looked for."""
        waits.append(None)
        receive(actor, 1, len(waits))
        return len(waits) == 4

    with actor.changed:
        if kind == "rejoined":
            actor.wait_until(has_come, lambda: "version 7", while_others_send=True)
        else:
            with pytest.raises(InterruptionError, match=r"agent 0 waited 0.02 s at step 0 for version 7"):
                actor.wait_until(has_come, lambda: "version 7")
    assert (len(waits) == 4) == (kind == "rejoined")


def test_one_that_is_away_does_not_wait_for_ever() -> None:
    actor = actor_of(wait_seconds=0.02)
    with actor.changed, pytest.raises(InterruptionError, match="waited"):
        actor.wait_until(lambda: False, lambda: "version 7", while_others_send=True)
