"""What live servers decide, together with their workers: in virtual time, with random events, without an actor."""

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.agents.mailbox import Delivery, Header, Message, OnceMailbox
from ray_pcasgd.engines.base import InterruptionError
from ray_pcasgd.engines.live.commands import LinkChanges
from ray_pcasgd.engines.live.decisions import Moment, Over, Take, Wait
from ray_pcasgd.engines.live.server import Connect, IsHere, Open, ServerPolicy, Tell
from ray_pcasgd.runs.plan.plan import Plan
from ray_pcasgd.schedule.delays import LinkDelay
from tests.speed import examples
from tests.unit.engines.live.star import NUM_WORKERS, Star, injection_of, plan_of

GATHERINGS: dict[str, Any] = {
    "asgd": "asgd",
    "sync": "sync",
    "k-sync": {"name": "k-sync", "k": 2},
    "k-batch-sync": {"name": "k-batch-sync", "k": 2},
    "k-async": {"name": "k-async", "k": 2},
    "k-batch-async": {"name": "k-batch-async", "k": 2},
    "quorum": {"name": "quorum", "k": 2, "grace_seconds": 0.7},
    "n-softsync": {"name": "n-softsync", "n": 1},
    "ringmaster": {"name": "ringmaster", "delay_threshold": 2},
    "ringmaster, stopping": {"name": "ringmaster", "delay_threshold": 2, "stops": True},
    "rennala": {"name": "rennala", "k": 4},
    "malenia": "malenia",
    "ringleader": "ringleader",
    "ia2sgd": "ia2sgd",
    **{
        f"adasync {base}": {"name": "adasync", "base": base, "every_seconds": 2.0}
        for base in ("k-sync", "k-batch-sync", "k-async", "k-batch-async")
    },
}
LINKS: dict[str, Any] = {
    "no delay": [],
    "steps": [{"delay": {"name": "uniform", "low": 0, "high": 3}}],
    "seconds": [{"delay": {"name": "uniform", "low": 0, "high": 4}, "unit": "seconds"}],
}
ONE_SERVER_ALONE = ("k-async", "adasync k-async", "quorum")
PLANS: dict[tuple[str, str, int], Plan] = (
    {
        (name, delay, shards): plan_of(
            {
                "name": "server",
                "gathering": gathering,
                "shards": shards,
                "correction": "none" if shards > 1 else "dc-asgd-a",
            },
            links=links,
        )
        for name, gathering in GATHERINGS.items()
        for delay, links in LINKS.items()
        for shards in ((1,) if name in ONE_SERVER_ALONE else (1, 2))
    }
    | {
        (f"elastic {name}", delay, 1): plan_of(
            {"name": "elastic-averaging", "gathering": GATHERINGS[name], "period": 2}, links=links
        )
        for name in ("asgd", "sync", "k-async")
        for delay, links in LINKS.items()
    }
    | {
        (f"diloco {name}", delay, 1): plan_of(
            {"name": "diloco", "gathering": gathering}, links=links, local_steps=[2, 1, 3][:NUM_WORKERS]
        )
        for name, gathering in (("quorum", GATHERINGS["quorum"]), ("fedbuff", {"name": "k-batch-async", "k": 5}))
        for delay, links in LINKS.items()
    }
    | {
        (f"diloco {name}, in parts", "seconds", shards): plan_of(
            {"name": "diloco", "gathering": GATHERINGS[name], "shards": shards},
            links=LINKS["seconds"],
            wire={"fragments": 3},
        )
        for name, shards in (("k-async", 1), ("k-batch-async", 2))
    }
    | {
        # It asks for the versions that gradients were computed at, as some corrections do.
        (f"{name}, yellowfin", "seconds", 1): plan_of(
            {"name": "server", "gathering": GATHERINGS[name]}, links=LINKS["seconds"], optimizer="yellowfin"
        )
        for name in ("asgd", "n-softsync")
    }
)
KEYS = pytest.mark.parametrize("key", PLANS, ids=str)


@KEYS
@examples(6, whole=10)
@given(seed=st.integers(0, 10**6), lossy=st.booleans())
def test_every_worker_is_answered_and_every_gradient_counted_once_or_cancelled(
    key: tuple[str, str, int], seed: int, lossy: bool
) -> None:
    star = Star(PLANS[key], Random(seed), lossy)
    star.run_until(float("inf"))
    assert star.is_over
    for server in star.servers.values():
        policy = server.policy
        read = [entry[:2] for update in server.updates for entry in update]
        assert len(read) == len(set(read))
        left = server.opened - set(read) - set(policy.losses)
        # What is left came too late, or an update took place without it.
        assert not left or policy.gathering.expires
        steps, wanted = policy.position.steps, star.plan.specs[0].recipe.num_steps
        overshoots = any(name in key[0] for name in ("diloco", "quorum", "rennala", "malenia", "ringleader", "ia2sgd"))
        assert steps >= wanted if overshoots else steps == wanted
        sizes = {len(update) for update in server.updates}
        if policy.gathering.averages != "gradients":
            assert {read.neighbor for read in server.updates[0]} == set(range(NUM_WORKERS))
            assert key[0] == "malenia" or 1 in sizes
        elif policy.gathering.grace:
            assert sizes <= set(range(policy.gatherer.k, NUM_WORKERS + 1))
        else:
            assert sizes == {policy.gatherer.k} or key[0].startswith("adasync")
        assert server.events == []
    if lossy:
        assert not {key for server in star.servers.values() for key in server.opened} & star.lost


FAULTS = st.lists(
    st.tuples(
        st.integers(0, NUM_WORKERS - 1),
        st.sampled_from([0.05, 0.5, 3.0, 10.0]),
        st.one_of(st.none(), st.sampled_from([0.0, 0.5, 3.0])),
        st.booleans(),
    ),
    max_size=5,
)
"""Who is lost, after how many seconds, whether it comes back, after how many, and whether its last row came through."""


@KEYS
@examples(10, whole=15)
@given(seed=st.integers(0, 10**6), faults=FAULTS)
def test_a_lost_worker_holds_nothing_up_and_comes_back_above_all_that_is_known_of_it(
    key: tuple[str, str, int], seed: int, faults: list[tuple[int, float, float | None, bool]]
) -> None:
    star = Star(PLANS[key], Random(seed))
    reported: dict[int, int] = {}
    for worker, seconds, pause, is_reported in faults:
        star.run_until(star.now + seconds)
        if worker in star.workers:
            reported[worker] = star.workers[worker].reported - (not is_reported)
            star.lose(worker)
        if pause is not None and worker not in star.workers:
            star.run_until(star.now + pause)
            star.bring_back(worker, reported[worker])
    star.run_until(float("inf"))
    if not star.workers:  # only then a server waits, for as long as it takes
        star.bring_back(0, reported[0])
        star.run_until(float("inf"))
    assert star.is_over
    for server in star.servers.values():
        assert server.policy.position.steps >= star.plan.specs[0].recipe.num_steps
        assert set(server.policy.given) >= set(star.workers)
        assert {event.kind for event in server.events} <= {"neighbor_lost"}


# One server by itself.


def server_of(
    gathering: Any = "asgd", wait_seconds: float = 5.0, is_here: IsHere = lambda _: True, **more: Any
) -> ServerPolicy:
    plan = plan_of({"name": "server", "gathering": gathering} | more)
    spec: Any = plan.specs[NUM_WORKERS]
    return ServerPolicy(spec, OnceMailbox(spec.neighbors), wait_seconds, injection_of(plan), is_here)


@pytest.mark.parametrize(
    ("settings", "is_refused"),
    [({}, False), ({"correction": "dc-asgd-a"}, True), ({"optimizer": "yellowfin"}, True)],
    ids=["plain", "correction", "yellowfin"],
)
def test_a_gradient_at_weights_that_are_gone_is_refused_where_they_are_needed(
    settings: dict[str, Any], is_refused: bool
) -> None:
    more = {name: value for name, value in settings.items() if name == "optimizer"}
    plan = plan_of({"name": "server", **{name: settings[name] for name in settings.keys() - more.keys()}}, **more)
    spec: Any = plan.specs[NUM_WORKERS]
    server = ServerPolicy(spec, OnceMailbox(spec.neighbors), 5.0, injection_of(plan), lambda _: True)
    header = Header(0, 1, 0.0, 0.0, latency_seconds=0.0, note=Delivery(0, 0, 0.5))
    assert server.problem(header) is None
    server.kept = {1}
    assert (server.problem(header) is not None) == is_refused


def at(seconds: float) -> Moment:
    return Moment(1000.0 + seconds, seconds)


def deliver(server: ServerPolicy, worker: int, version: int, computed_at: int, latency: float = 0.0) -> None:
    header = Header(worker, version, 0.0, 0.0, latency_seconds=latency, note=Delivery(computed_at, server.version, 0.5))
    assert server.admit(header) is None
    server.mailbox.put(Message(header, "gradient"), 0.0)


def done(server: ServerPolicy, now: float = 0.0) -> list[Any]:
    """Do what the server decides, until it waits or is at its end; return its decisions."""
    decisions: list[Any] = []
    while not isinstance(decision := server.decide(at(now)), Wait | Over):
        decisions.append(decision)
        match decision:
            case Open(header):
                assert server.problem(header) is None
                server.opened(header, True, at(now))
            case Take():
                server.stepped(server.version + 1, at(now))
    return decisions


def answers(decisions: list[Any]) -> dict[int, tuple[int, int]]:
    """Return of each worker that is told something which version it is to read, and which gradient that answers."""
    told = [pair for one in decisions if isinstance(one, Tell) for pair in one.headers.items()]
    return {worker: (header.version, header.note.answers) for worker, header in told}  # type: ignore[union-attr]


def test_workers_without_which_a_server_updates_are_told_of_its_version_where_it_cancels_their_work() -> None:
    server = server_of({"name": "k-sync", "k": 2})
    deliver(server, 1, 1, 0)
    assert answers(done(server)) == {}
    deliver(server, 0, 1, 0)
    assert answers(done(server)) == {0: (1, 1), 1: (1, 1), 2: (1, 0)}


def test_a_server_that_waits_answers_those_alone_whose_gradients_it_takes() -> None:
    server = server_of({"name": "k-async", "k": 2})
    deliver(server, 1, 1, 0)
    assert answers(done(server)) == {}
    deliver(server, 0, 1, 0)
    assert answers(done(server)) == {0: (1, 1), 1: (1, 1)}


def test_a_gradient_that_is_still_under_way_holds_up_none_that_has_come() -> None:
    """A server fetched the first one that it knew of, and served nobody as long as a slow link took for it."""
    coming = {(0, 1)}
    server = server_of(is_here=lambda header: (header.sender, header.version) not in coming)
    deliver(server, 0, 1, 0)
    deliver(server, 1, 1, 0)
    assert answers(done(server)) == {1: (1, 1)}
    assert isinstance(server.decide(at(1.0)), Wait)
    coming.clear()
    assert answers(done(server, 1.0)) == {0: (2, 1)}


def test_a_gradient_that_is_still_under_way_is_not_waited_for_once_its_worker_is_gone() -> None:
    server = server_of(is_here=lambda header: header.sender != 0)
    deliver(server, 0, 1, 0)
    assert done(server) == []
    server.lost(0)
    assert answers(done(server)) == {}
    deliver(server, 1, 1, 0)
    assert answers(done(server)) == {1: (1, 1)}


def test_a_gradient_that_cannot_be_opened_is_answered_and_never_taken() -> None:
    server = server_of()
    deliver(server, 1, 1, 0)
    (header,) = [one.header for one in [server.decide(at(0))] if isinstance(one, Open)]
    server.opened(header, False, at(0))
    assert answers(done(server)) == {1: (0, 1)}
    assert server.version == 0


def test_a_loss_can_make_an_update_due() -> None:
    server = server_of("sync")
    for worker in (0, 1):
        deliver(server, worker, 1, 0)
    assert answers(done(server)) == {}
    server.lost(2)
    server.lost(2)
    decisions = done(server)
    assert [type(one) for one in decisions] == [Take, Tell]
    assert answers(decisions) == {0: (1, 1), 1: (1, 1)}
    assert [(event.kind, event.step, event.detail) for event in server.events()] == [
        ("neighbor_lost", 0, "worker 2 is gone")
    ]


def test_a_worker_that_is_back_is_connected_before_it_is_answered() -> None:
    server = server_of()
    server.lost(2)
    server.back(2, 7)
    decisions = done(server)
    assert decisions[:2] == [Tell({}), Connect(2)]
    assert answers(decisions) == {2: (0, 7)}


def test_a_server_gives_up_where_no_worker_delivers_and_waits_on_where_there_is_none() -> None:
    server = server_of(wait_seconds=5.0)
    assert server.decide(at(1)) == Wait(6.0, "a gradient of any worker")
    with pytest.raises(InterruptionError, match="agent 3 waited 5 s at step 0 for a gradient of any worker"):
        server.decide(at(6))
    for worker in range(NUM_WORKERS):
        server.lost(worker)
    done(server, 6.0)
    assert server.decide(at(11)) == Wait(16.0, "a gradient of any worker")
    deliver(server, 0, 1, 0)
    assert server.decide(at(12)) == Wait(17.0, "a gradient of any worker")


def test_a_gradient_that_a_link_holds_back_wakes_the_server_as_it_comes() -> None:
    server = server_of()
    deliver(server, 0, 1, 0, latency=2.0)
    assert server.decide(at(1)) == Wait(2.0, "a gradient of any worker")
    assert isinstance(server.decide(at(2)), Open)


def test_a_server_knows_of_a_worker_what_a_link_still_holds_back() -> None:
    server = server_of()
    deliver(server, 0, 1, 0, latency=2.0)
    assert server.known(0) == 1


def test_a_delay_in_steps_that_an_operator_sets_asks_for_no_version_that_is_gone() -> None:
    plan = plan_of({"name": "server"})
    server = server_of()
    for version in range(1, 5):
        deliver(server, 0, version, server.given[0])
        done(server)
    assert (server.version, server.given[1], server.oldest) == (4, 0, 4)
    delay = LinkDelay.model_validate({"delay": 2, "unit": "steps"})
    server.links(injection_of(plan).changed(LinkChanges(entries=(delay,))))
    deliver(server, 1, 1, 0)
    told = answers(done(server))
    assert told == {1: (4, 1)}
    for version in range(5, 12):
        deliver(server, 0, version, server.given[0])
        done(server)
    assert server.given[0] < server.version
    assert server.oldest == server.given[1] == 4


def test_an_honest_worker_whose_news_are_late_is_admitted() -> None:
    """It began at version 1, and was cancelled twice, at 2 and at 3, after a gradient that had come at 3."""
    server = server_of({"name": "k-batch-sync", "k": 1})
    for version in range(1, 4):
        deliver(server, 0, version, server.given[0])
        done(server)
    assert server.admit(Header(1, 2, 0.0, 0.0, note=Delivery(1, 1, 0.5))) is None
    done(server)
    assert server.admit(Header(1, 5, 0.0, 0.0, note=Delivery(3, 3, 0.5))) is None
    assert server.admit(Header(1, 7, 0.0, 0.0, note=Delivery(3, 3, 0.5))) == "its version is 7; allowed are 6 to 6"


def test_a_quorum_waits_for_its_grace_and_no_longer() -> None:
    server = server_of({"name": "quorum", "k": 2, "grace_seconds": 2.0}, wait_seconds=5.0)
    for worker in (0, 1):
        deliver(server, worker, 1, 0)
    taken_in(server, 0, at(1.0))
    taken_in(server, 1, at(1.0))
    assert server.decide(at(1.0)) == Wait(3.0, "gradients of other workers, for a while")
    assert isinstance(server.decide(at(2.999)), Wait)
    decision = server.decide(at(3.0))
    assert isinstance(decision, Take)
    assert [read.neighbor for read in decision.reads] == [0, 1]
    server.stepped(1, at(3.0))
    told = server.decide(at(3.0))
    assert isinstance(told, Tell)
    assert sorted(told.headers) == [0, 1]
    # The next update's grace is its own.
    deliver(server, 2, 1, 0)
    taken_in(server, 2, at(4.0))
    deliver(server, 0, 2, 1)
    taken_in(server, 0, at(9.0))
    assert server.decide(at(9.0)) == Wait(11.0, "gradients of other workers, for a while")
    # All have come.
    deliver(server, 1, 2, 1)
    taken_in(server, 1, at(9.5), leads_to=Take)


def taken_in(server: ServerPolicy, worker: int, now: Moment, leads_to: Any = None) -> None:
    """Let a gradient come in that was delivered; up to ``leads_to`` it is answered by nothing."""
    decision = server.decide(now)
    assert isinstance(decision, Open)
    assert decision.header.sender == worker
    server.opened(decision.header, True, now)
    following = server.decide(now)
    if leads_to is not None:
        assert isinstance(following, leads_to)
    else:
        assert isinstance(following, Tell)
        assert not following.headers
