"""A message's whole way without a cluster: published, checked, put into a mailbox, read, and mixed by a real peer."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ray_pcasgd.agents.mailbox import Header, Mailbox, Message
from ray_pcasgd.agents.participant import Received
from ray_pcasgd.agents.peer import AgentSpec, Peer
from ray_pcasgd.engines.local.engine import LocalEngine, LocalSettings
from ray_pcasgd.engines.loopback import LoopBack
from ray_pcasgd.engines.messages import Contents, RejectedError
from ray_pcasgd.engines.validation import Expected, check_header, checked_contents
from ray_pcasgd.records import Read, Row, StepReport
from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.settings.loading import load_config

CPU = torch.device("cpu")


def plan(**settings: Any) -> Plan:
    small: dict[str, Any] = {"num_agents": 3, "clusters": 3, "num_steps": 12, "batch_size": 8, "engine": "local"}
    late = {"links": [{"delay": "uniform(0, 4)"}], "task": {"model": {"hidden": [12]}}, "evaluate_every": 12}
    return make_plan(load_config(small | late | settings))


class Agent:
    """A peer with its mailbox, driven by rows, as the actors of Ray drive one."""

    def __init__(self, spec: AgentSpec, plan: Plan) -> None:
        self.spec = spec
        self.peer = Peer(spec, plan.data)
        self.transport = LoopBack()
        self.mailbox: Mailbox[Contents] = Mailbox(spec.neighbors)
        sizes = (self.peer.weights.numel(), self.peer.buffers.numel())
        self.expected = Expected(spec.neighbors, spec.recipe.num_steps, *sizes)
        self.has_computed = False

    def connect(self, others: dict[int, "Agent"]) -> None:
        self.outbox = self.transport.outbox({k: others[k] for k in self.spec.receivers})
        start = self.transport.publish(self.peer.weights, self.peer.buffers)
        for k in self.spec.neighbors:
            self.mailbox.start(Message(Header(k, 0, 0.0, 0.0), start))

    def receive(self, header: Header, contents: Contents | None, *pieces: Any) -> None:
        check_header(self.expected, header)
        whole = checked_contents(self.transport, self.expected, header, contents, pieces)
        self.mailbox.put(Message(header, whole), 0.0)

    def take_mark(self, neighbor: int, cut: int, sent: int) -> None:
        raise AssertionError("there are no cuts here")

    def is_here(self, read: Read) -> bool:
        following = self.mailbox.following(read.neighbor, read.version)
        needs = self.spec.recipe.needs_direction(self.spec.agent, read)
        return self.mailbox.get(read.neighbor, read.version) is not None and (following is not None or not needs)

    def open(self, read: Read) -> Received:
        message = self.mailbox.get(read.neighbor, read.version)
        assert message is not None
        assert message.contents is not None
        size, direction = self.expected.weights, None
        if self.spec.recipe.needs_direction(self.spec.agent, read):
            following = self.mailbox.following(*read[:2])
            assert following is not None
            direction = self.transport.open("direction", following.direction, size, "float32", CPU)
        weights = self.transport.open("weights", message.contents.weights, size, "float32", CPU)
        buffers = self.transport.open("buffers", message.contents.buffers, self.expected.buffers, "float32", CPU)
        return Received(read, weights, buffers, direction, message.header.mass)

    def take(self, row: Row) -> None:
        peer = self.peer
        peer.compute()
        received = [self.open(read) for read in row.reads]
        for read in row.reads:
            self.mailbox.forget(read.neighbor, read.version)
        peer.apply(received)
        direction = peer.direction if self.spec.recipe.rule.needs_directions else None
        header = Header(self.spec.agent, peer.version, 0.0, 0.0, mass=peer.mass)
        self.outbox.send(
            dict.fromkeys(peer.receivers(), header),
            self.transport.publish(peer.weights, peer.buffers, direction),
            may_skip=False,
        )


def connected(plan: Plan) -> dict[int, Agent]:
    agents = {spec.agent: Agent(spec, plan) for spec in plan.specs if isinstance(spec, AgentSpec)}
    for agent in agents.values():
        agent.connect(agents)
    return agents


def executed(agents: dict[int, Agent], rows: list[Row]) -> Iterator[Row]:
    """Yield rows once they are taken; each is as soon as its agent's turn is there and all that it reads is here."""
    while rows:
        turns = {row.agent: row for row in reversed(rows)}
        row = next(row for row in turns.values() if all(map(agents[row.agent].is_here, row.reads)))
        agents[row.agent].take(row)
        rows.remove(row)
        yield row


@pytest.mark.parametrize("algorithm", ["pc-asgd", "d-asgd", "d-psgd"])
def test_agents_that_send_each_other_messages_come_to_the_bits_of_the_local_engine(algorithm: str) -> None:
    made = plan(algorithm=algorithm)
    agents = connected(made)
    rows = [row for row in made.schedule if row is not None]
    assert len(list(executed(agents, list(rows)))) == 3 * 12
    local = LocalEngine(LocalSettings(batched="never"), made.schedule)
    reports = [one for one in local.run(made.specs, made.data) if isinstance(one, StepReport)]
    last = {one.row.agent: one.snapshot for one in reports if one.progress == 12}
    assert any(read.staleness > 0 for row in rows for read in row.reads)
    for number, agent in agents.items():
        snapshot = last[number]
        assert snapshot is not None
        assert torch.equal(agent.peer.weights, snapshot.weights)
        assert torch.equal(agent.peer.buffers, snapshot.buffers)


def test_a_version_is_kept_once_for_all_its_readers_and_no_longer_than_by_the_last_of_them() -> None:
    agents = connected(plan(algorithm="pc-asgd"))
    transport, readers = agents[0].transport, agents[0].spec.receivers
    assert len(transport) == 2  # weights and buffers of the start
    contents = transport.publish(torch.zeros(agents[0].expected.weights or 0), torch.zeros(0))
    agents[0].outbox.send(dict.fromkeys(readers, Header(0, 1, 0.0, 0.0)), contents, may_skip=False)
    del contents
    assert len(readers) == 2
    assert len(transport) == 4
    for k in readers:
        assert len(transport) == 4
        agents[k].mailbox.discard(0, 1)
    assert len(transport) == 2


def test_a_message_that_is_not_what_it_must_be_does_not_come_into_the_mailbox() -> None:
    agents = connected(plan(algorithm="pc-asgd"))
    size = agents[0].expected.weights or 0
    for tensor in (torch.zeros(size - 1), torch.full((size,), float("nan"))):
        contents = agents[0].transport.publish(tensor, torch.zeros(0))
        with pytest.raises(RejectedError, match="its weights have"):
            agents[0].outbox.send({1: Header(0, 1, 0.0, 0.0)}, contents, may_skip=False)
    with pytest.raises(RejectedError, match="its version is 13; allowed are 0 to 12"):
        agents[0].outbox.send({1: Header(0, 13, 0.0, 0.0)}, None, may_skip=False)
    assert agents[1].mailbox.versions(0) == [0]
