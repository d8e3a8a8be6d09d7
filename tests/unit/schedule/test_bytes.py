"""Bandwidths and hosts in plans: against slow planners, by hand, and what no pipe may do."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_pcasgd.rules import OverlapSGP
from ray_pcasgd.rules.exchange import AllNeighbors
from ray_pcasgd.rules.gathering import ASGD, KSync, Sync
from ray_pcasgd.schedule.bandwidth import bits_per_second, transmission_nanoseconds
from ray_pcasgd.schedule.delays import ComputeTimes, LinkDelay
from ray_pcasgd.schedule.hosts import Host, check_hosts
from ray_pcasgd.schedule.plan_pairs import PairPlanner
from ray_pcasgd.schedule.plan_peers import Planner
from ray_pcasgd.schedule.plan_servers import ServerPlanner
from ray_pcasgd.schedule.simulation import Calendar, Channel, Timing
from ray_pcasgd.schedule.transfers import HostPipes, Pipe
from tests.speed import examples
from tests.unit import planning, server_planning
from tests.unit.schedule.test_plan_peers import BARRIERS, LAWS, SAMPLED, law, planner, plans
from tests.unit.schedule.test_plan_servers import planner as server_planner
from tests.unit.schedule.test_plan_servers import plans as server_plans

SECOND = 1_000_000_000
KILOBYTE = 1000
"""At 8 kbit/s, a second."""

# Whole seconds and halves make many events coincide; the others hardly any.
BANDWIDTHS = st.sampled_from(["8 kbit/s", "16 kbit/s", "2 kB/s", "4 kbit/s", "7 kbit/s", "1 Gbit/s"])
LIMITED = st.lists(
    st.builds(
        LinkDelay,
        delay=st.one_of(st.none(), LAWS),
        unit=st.none(),
        bandwidth=BANDWIDTHS,
        between=st.sampled_from(["all", "clusters", ((0,), (1, 2))]),
        from_step=st.sampled_from([0, 0, 4]),
        from_second=st.sampled_from([0.0, 0.0, 3.0]),
    ).map(lambda link: link if link.delay is None else link.model_copy(update={"unit": "seconds"})),
    max_size=2,
).map(tuple)


@st.composite
def hosts(draw: st.DrawFn, num_agents: int) -> tuple[Host, ...]:
    """Some agents on up to two hosts, the others on none."""
    host_of = [draw(st.sampled_from([0, 0, 1, None])) for _ in range(num_agents)]
    found = []
    for number in (0, 1):
        agents = tuple(agent for agent, host in enumerate(host_of) if host == number)
        up, down = draw(st.one_of(st.none(), BANDWIDTHS)), draw(st.one_of(st.none(), BANDWIDTHS))
        if agents and (up or down):
            found.append(Host(agents=agents, up=up, down=down))
    return tuple(found)


@st.composite
def plans_with_bytes(draw: st.DrawFn) -> Planner:
    plan = draw(plans(st.one_of(BARRIERS, SAMPLED)))
    return dataclasses.replace(
        plan,
        num_steps=min(plan.num_steps, 8),
        links=(*plan.links, *draw(LIMITED)),
        hosts=draw(hosts(len(plan.neighbors))),
        message_bytes=draw(st.sampled_from([0, KILOBYTE, KILOBYTE, 777])),
        exchange=draw(st.sampled_from([AllNeighbors(), AllNeighbors(), OverlapSGP()])),
    )


@examples(40, 100)
@given(plans_with_bytes())
def test_rows_equal_those_of_the_slow_planner(plan: Planner) -> None:
    assert list(plan) == planning.slow_rows(plan)


@settings(max_examples=50)
@given(plans_with_bytes())
def test_messages_without_bytes_cost_nothing(plan: Planner) -> None:
    unlimited = tuple(link.model_copy(update={"bandwidth": None}) for link in plan.links if link.delay is not None)
    plain = dataclasses.replace(plan, links=unlimited, hosts=())
    assert list(dataclasses.replace(plan, message_bytes=0)) == list(plain)


@st.composite
def server_plans_with_bytes(draw: st.DrawFn) -> ServerPlanner:
    plan = draw(server_plans())
    sizes = st.tuples(*[st.sampled_from([0, KILOBYTE, 500])] * plan.num_servers)
    return dataclasses.replace(
        plan,
        num_steps=min(plan.num_steps, 5),
        links=(*plan.links, *draw(LIMITED)),
        hosts=draw(hosts(plan.num_workers + plan.num_servers)),
        gradient_bytes=draw(sizes),
        weights_bytes=draw(sizes),
    )


@settings(max_examples=50)
@given(server_plans_with_bytes())
def test_rows_with_servers_equal_those_of_the_slow_planner(plan: ServerPlanner) -> None:
    assert list(plan) == server_planning.slow_rows(plan)


TRANSFERS = st.lists(st.tuples(*[st.integers(0, 5)] * 3), max_size=20)


@given(TRANSFERS)
def test_a_pipe_transmits_one_message_after_another(given_: list[tuple[int, int, int]]) -> None:
    """None starts before it comes, nor before its forerunner is through; no more comes out than there was time for."""
    pipe, now, busy = Pipe(), 0, 0
    done: list[tuple[int, int]] = []
    for gap, lasts, takes in given_:
        now += gap
        came = (now, now + lasts)
        first, last = pipe.carry(*came, takes)
        assert first >= max(came[0], busy)
        assert last >= max(came[1], first + takes)
        # It is never idle while something waits.
        assert first == max(came[0], busy)
        busy = first + takes
        done.append((last, takes))
    for moment, _ in done:
        assert sum(takes for end, takes in done if end <= moment) <= moment


def constant(seconds: float, bandwidth: str | None = None, **where: Any) -> LinkDelay:
    return LinkDelay(delay=law(seconds), unit="seconds", bandwidth=bandwidth, **where)


def two_agents(*links: LinkDelay, **settings: Any) -> list[tuple[int, int]]:
    """Return which version agent 1 reads of agent 0, and how stale, step by step of a second each."""
    rows = planner(2, links=links, message_bytes=KILOBYTE, num_steps=12, **settings)
    return [row.reads[0][1:3] for row in rows if row.agent == 1]


def test_a_message_takes_its_bytes_over_the_bandwidth_and_then_the_delay() -> None:
    # Version v is sent at second v, is on the wire until v + 1 and there at v + 1.5: as a delay of 1.5 seconds.
    reads = two_agents(constant(0.5, "8 kbit/s"))
    assert [version for version, _ in reads] == [0, 0, *range(1, 11)]
    assert reads == two_agents(constant(1.5))
    assert reads == two_agents(constant(0.5), LinkDelay(bandwidth="1 kB/s"))


def test_where_messages_are_more_than_the_link_carries_staleness_grows_without_end() -> None:
    # Version v leaves the link at second 1 + 2 v.
    assert two_agents(LinkDelay(bandwidth="4 kbit/s")) == [(t // 2, t - t // 2) for t in range(12)]


def test_local_steps_relieve_a_link() -> None:
    reads = two_agents(LinkDelay(bandwidth="4 kbit/s"), local_steps=(2, 2))
    # A round is two seconds, as is a message: what was sent at the end of the last round is read at that of the next.
    assert reads == [(v, 0) for v in (0, 1, 2, 3, 4, 5)]


def test_the_last_entry_that_gives_a_bandwidth_counts_and_likewise_for_delays() -> None:
    links = (constant(3, "8 kbit/s"), LinkDelay(bandwidth="4 kbit/s", from_step=5), constant(0.5, from_second=2))
    channel = Channel(timing(*links), 0, 1, KILOBYTE)
    sent = [channel.send(step, step * 10 * SECOND)[1] for step in (0, 1, 5)]
    assert sent == [4 * SECOND, 11.5 * SECOND, 52.5 * SECOND]


def timing(*links: LinkDelay, hosts: tuple[Host, ...] = ()) -> Timing:
    return Timing(num_steps=1, compute=ComputeTimes(), links=links, clusters=(0,) * 9, seed=0, hosts=hosts)


def channels(plan: Timing, *links: tuple[int, int]) -> list[Channel]:
    pipes = HostPipes(plan.hosts)
    return [Channel(plan, sender, receiver, KILOBYTE, pipes) for sender, receiver in links]


def arrivals(plan: Timing, sent: list[tuple[tuple[int, int], int]]) -> list[tuple[int, int]]:
    """Return when what is sent arrives, and its place, by links and moments; in the order in which it arrives."""
    links = list(dict.fromkeys(link for link, _ in sent))
    found, calendar = dict(zip(links, channels(plan, *links), strict=True)), Calendar[int]()
    for place, (link, moment) in enumerate(sent):
        calendar.send(found[link], 1, moment, place, 0)
    return list(iter(calendar.pop, None))


def test_agents_of_a_host_share_its_uplink() -> None:
    plan = timing(hosts=(Host(agents=(0, 1), up="8 kbit/s"),))
    one, other, inside, back = channels(plan, (0, 2), (1, 2), (0, 1), (2, 0))
    assert one.send(1, 0) == (0, SECOND)
    assert inside.send(1, 0) == (0, 0)
    assert other.send(1, 0) == (SECOND, 2 * SECOND)
    assert back.send(1, 0) == (0, 0)
    assert one.downlink is None
    assert one.send(2, 5 * SECOND) == (5 * SECOND, 6 * SECOND)


def test_the_slowest_of_uplink_link_and_downlink_decides() -> None:
    for up, link, down in (("8", "16", "4"), ("4", "8", "16"), ("16", "4", "8")):
        plan = timing(
            constant(0.25, f"{link} kbit/s"),
            hosts=(Host(agents=(0,), up=f"{up} kbit/s"), Host(agents=(1,), down=f"{down} kbit/s")),
        )
        assert arrivals(plan, [((0, 1), 0)]) == [(2.25 * SECOND, 0)]


def test_a_downlink_takes_first_what_comes_first() -> None:
    plan = timing(constant(0.5), constant(3, links=((0, 2),)), hosts=(Host(agents=(2,), down="8 kbit/s"),))
    sent = [((0, 2), 0), ((1, 2), SECOND), ((1, 2), 2 * SECOND)]
    assert arrivals(plan, sent) == [(2.5 * SECOND, 1), (3.5 * SECOND, 2), (4.5 * SECOND, 0)]


def test_of_messages_that_come_at_once_a_downlink_takes_first_what_was_sent_first() -> None:
    plan = timing(hosts=(Host(agents=(2,), down="8 kbit/s"),))
    assert arrivals(plan, [((1, 2), 0), ((0, 2), 0)]) == [(SECOND, 0), (2 * SECOND, 1)]


def test_messages_that_come_slowly_leave_a_downlink_to_others() -> None:
    plan = timing(LinkDelay(bandwidth="1 kbit/s"), hosts=(Host(agents=(8,), down="8 kbit/s"),))
    # Eight seconds each on links of their own, and a second each of the downlink.
    found = arrivals(plan, [((sender, 8), 0) for sender in range(8)])
    assert {moment for moment, _ in found} == {8 * SECOND}


def test_a_pair_waits_for_the_bytes_of_request_and_answer() -> None:
    plan = PairPlanner(
        partners=((1,), ()), num_steps=2, compute=ComputeTimes(), links=(constant(0.25, "8 kbit/s"),),
        clusters=(0, 0), seed=0, message_bytes=KILOBYTE, hosts=(Host(agents=(1,), up="4 kbit/s", down="1 Gbit/s"),),
    )  # fmt: skip
    asked = [row.end for row in plan if row.kind == "passive"]
    assert asked == pytest.approx([2.25, 6.75], abs=1e-4)
    assert [row.end for row in plan if row.agent == 0] == pytest.approx([4.5, 9.0], abs=1e-4)


@pytest.mark.parametrize(("gathering", "seconds"), [(Sync(), 1 + 2 + 2), (ASGD(), 1 + 2 + 1), (KSync(k=2), 5)])
def test_a_servers_host_transmits_what_its_workers_send_one_after_another(gathering: Any, seconds: int) -> None:
    plan = server_planner(gathering, num_workers=2, num_steps=1)
    plan = dataclasses.replace(
        plan,
        gradient_bytes=(KILOBYTE,),
        weights_bytes=(KILOBYTE,),
        hosts=(Host(agents=(2,), up="8 kbit/s", down="8 kbit/s"),),
        num_steps=2,
    )
    # Gradients of second 1 come at 2 and 3; the first answer, of 1 kB too, leaves at once.
    starts = [row.start for row in plan if row is not None and row.agent == 0]
    assert starts[1] == {5: 4, 4: 3}[seconds]


def test_servers_and_pairs_without_bandwidths_ask_for_no_bytes() -> None:
    plan = server_planner(Sync(), num_workers=2, num_steps=2)
    assert isinstance(plan, ServerPlanner)
    assert list(plan) == list(dataclasses.replace(plan, gradient_bytes=(KILOBYTE,), weights_bytes=(KILOBYTE,)))


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("200 Mbit/s", 2e8),
        ("1 Gbit/s", 1e9),
        ("25 MB/s", 2e8),
        ("25MB/s", 2e8),
        ("1.5 kbit/s", 1500),
        ("8e3 bit/s", 8000),
    ],
)
def test_bandwidths_in_text(text: str, bits: float) -> None:
    assert bits_per_second(text) == bits
    assert LinkDelay(bandwidth=text).bandwidth == text
    assert transmission_nanoseconds(1000, text) == round(8000 / bits * 1e9)


@pytest.mark.parametrize("text", ["", "5", "fast", "20 Mbps", "20 mbit/s", "1 MiB/s", "1 Mbit", "-1 bit/s", "0 B/s"])
def test_what_is_no_bandwidth_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="allowed"):
        bits_per_second(text)


def test_hosts_hold_agents_of_the_run_once() -> None:
    one = Host(agents=(0, 1), up="1 Gbit/s")
    check_hosts([one, Host(agents=(2,), down="1 Gbit/s")], 3)
    with pytest.raises(ValueError, match=r"hosts\.0\.agents: agent 1; allowed are 0 to 0"):
        check_hosts([one], 1)
    with pytest.raises(ValueError, match=r"hosts\.1\.agents: agent 1 is on host 0 too; allowed is one"):
        check_hosts([one, Host(agents=(1,), up="1 Gbit/s")], 3)
