"""What a live worker decides: whom it waits for, what it gives up, when it is out of the run."""

from typing import Any

import pytest

from ray_pcasgd.agents.mailbox import Answer, Delivery, Header, Message, OnceMailbox
from ray_pcasgd.engines.base import InterruptionError
from ray_pcasgd.engines.live.decisions import Moment, Over, Rejoin, Take, Wait
from ray_pcasgd.engines.live.worker import WorkerPolicy
from ray_pcasgd.records import Read
from tests.unit.engines.live.star import NUM_WORKERS, injection_of, plan_of

ONE, OTHER = NUM_WORKERS, NUM_WORKERS + 1
"""The servers."""


def worker_of(gathering: Any = "asgd", **settings: Any) -> WorkerPolicy:
    plan = plan_of({"name": "server", "gathering": gathering, "shards": 2}, **settings)
    spec: Any = plan.specs[0]
    mailbox: OnceMailbox[Any] = OnceMailbox(spec.neighbors)
    for server in spec.neighbors:
        mailbox.start(Message(Header(server, 0, 0.0, 0.0), "weights"))
    return WorkerPolicy(spec, mailbox, 5.0, injection_of(plan))


def at(seconds: float) -> Moment:
    return Moment(1000.0 + seconds, seconds)


def tell(worker: WorkerPolicy, server: int, version: int, answers: int, **more: Any) -> None:
    """Let a server's answer arrive, with weights unless they are given as ``None``."""
    contents = more.pop("contents", "weights")
    newest = more.pop("newest", version)
    worker.mailbox.put(Message(Header(server, version, 0.0, 0.0, note=Answer(newest, answers), **more), contents), 0.0)


def begun(worker: WorkerPolicy) -> tuple[Read, ...]:
    decision = worker.decide(at(0))
    assert isinstance(decision, Take)
    return decision.reads


def test_a_worker_begins_at_its_servers_first_versions() -> None:
    assert begun(worker_of()) == (Read(ONE, 0, 0, 0), Read(OTHER, 0, 0, 0))


def test_it_waits_for_the_answers_of_all_its_servers_and_says_whose_are_missing() -> None:
    worker = worker_of()
    begun(worker)
    worker.stepped(1, at(0))
    assert worker.decide(at(1)) == Wait(6.0, "an answer of server 3 and server 4")
    tell(worker, ONE, 1, answers=1)
    assert worker.decide(at(2)) == Wait(6.0, "an answer of server 4")
    tell(worker, OTHER, 2, answers=1, newest=4, latency_seconds=3.0)
    assert worker.decide(at(2)) == Wait(3.0, "an answer of server 4")
    assert worker.decide(at(3)) == Take((Read(ONE, 1, 0, 0), Read(OTHER, 2, 2, 0)))


def test_it_gives_up_where_an_answer_does_not_come() -> None:
    worker = worker_of()
    worker.stepped(1, at(0))
    worker.decide(at(1))
    with pytest.raises(InterruptionError, match="agent 0 waited 5 s at step 1 for an answer of server 3 and server 4"):
        worker.decide(at(6))


def test_a_server_that_has_taken_its_last_step_is_waited_for_no_more() -> None:
    worker = worker_of()
    worker.stepped(5, at(0))
    tell(worker, ONE, 3, answers=5)
    assert isinstance(worker.decide(at(0)), Wait)
    tell(worker, OTHER, 4, answers=2, final=True)
    assert isinstance(worker.decide(at(0)), Take)


def test_a_run_is_over_once_all_servers_have_taken_their_last_steps() -> None:
    worker = worker_of()
    worker.stepped(5, at(0))
    tell(worker, ONE, 4, answers=3, final=True)
    assert isinstance(worker.decide(at(0)), Wait)
    tell(worker, OTHER, 4, answers=2, final=True)
    assert worker.decide(at(0)) == Over()


def test_work_is_cancelled_once_all_servers_have_a_newer_version() -> None:
    worker = worker_of({"name": "k-sync", "k": 2})
    begun(worker)
    tell(worker, ONE, 1, answers=0)
    assert not worker.is_cancelled(at(0))
    tell(worker, OTHER, 1, answers=0)
    assert worker.is_cancelled(at(0))
    worker.stepped(1, at(0))
    assert begun(worker) == (Read(ONE, 1, 0, 0), Read(OTHER, 1, 0, 0))
    assert not worker.is_cancelled(at(0))


def test_without_cancelling_only_the_end_of_the_run_makes_work_void() -> None:
    worker = worker_of()
    begun(worker)
    for server in (ONE, OTHER):
        tell(worker, server, 1, answers=0)
    assert not worker.is_cancelled(at(0))
    for server in (ONE, OTHER):
        tell(worker, server, 2, answers=0, final=True)
    assert worker.is_cancelled(at(0))


def test_an_answer_whose_weights_were_rejected_is_one_at_the_weights_before_it() -> None:
    worker = worker_of()
    begun(worker)
    worker.stepped(1, at(0))
    tell(worker, ONE, 3, answers=1, contents=None)
    tell(worker, OTHER, 3, answers=1)
    assert begun(worker) == (Read(ONE, 0, 3, 0), Read(OTHER, 3, 0, 0))


def test_what_is_older_than_the_weights_it_computes_at_is_dropped() -> None:
    worker = worker_of()
    begun(worker)
    worker.stepped(1, at(0))
    for server in (ONE, OTHER):
        tell(worker, server, 2, answers=1)
    begun(worker)
    assert [worker.mailbox.versions(server) for server in (ONE, OTHER)] == [[2], [2]]


def test_a_straggler_waits_until_its_seconds_are_over_and_wakes_for_what_comes() -> None:
    worker = worker_of(compute={"stragglers": {0: 3.0}})
    begun(worker)
    assert worker.slowed(at(1)) == 4.0
    tell(worker, ONE, 1, answers=0, latency_seconds=2.5)
    assert worker.slowed(at(2)) == 2.5
    assert worker.slowed(at(3)) == 4.0
    assert worker.slowed(at(4)) is None
    assert worker_of().slowed(at(0)) is None


def test_its_messages_name_what_it_was_computed_at_and_what_was_known_as_it_began() -> None:
    worker = worker_of(links=[{"delay": 0.5, "unit": "seconds"}])
    worker.started_at = 1000.0
    begun(worker)
    worker.stepped(1, at(0))
    tell(worker, ONE, 1, answers=1, newest=3)
    tell(worker, OTHER, 2, answers=1)
    begun(worker)
    worker.stepped(2, at(7))
    tell(worker, ONE, 4, answers=0)
    assert worker.headers(0.25, at(7)) == {
        ONE: Header(0, 2, 7.0, 0.0, latency_seconds=0.5, note=Delivery(1, 3, 0.25)),
        OTHER: Header(0, 2, 7.0, 0.0, latency_seconds=0.5, note=Delivery(2, 2, 0.25)),
    }


def test_it_comes_back_above_all_that_is_known_of_it_once_its_servers_have_answered() -> None:
    worker = worker_of()
    assert worker.rejoin([3, 6], at_least=5) == 7
    assert worker_of().rejoin([3, 6], at_least=9) == 9
    assert isinstance(worker.decide(at(0)), Wait)
    for server in (ONE, OTHER):
        tell(worker, server, 8, answers=7)
    reads = (Read(ONE, 8, 0, 0), Read(OTHER, 8, 0, 0))
    assert worker.decide(at(0)) == Rejoin(7, reads)
    worker.rejoined()
    assert [(event.kind, event.step) for event in worker.events()] == [("agent_returned", 7)]
    assert begun(worker) == reads


def test_an_answer_to_what_it_sent_before_it_was_lost_takes_none_back() -> None:
    worker = worker_of()
    worker.rejoin([3], at_least=5)
    for server in (ONE, OTHER):
        tell(worker, server, 8, answers=5)
    tell(worker, ONE, 9, answers=3)
    assert worker.decide(at(0)) == Rejoin(5, (Read(ONE, 9, 0, 0), Read(OTHER, 8, 0, 0)))


def test_one_that_leaves_says_so() -> None:
    worker = worker_of()
    worker.stepped(5, at(0))
    worker.left()
    (event,) = worker.events()
    assert (event.kind, event.agent, event.step) == ("agent_left", 0, 5)
    assert event.detail == "worker 0 has left at step 5, as it was asked to"
    assert worker.events() == []
