"""The mailbox against a plain list of everything that was ever put."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ray_pcasgd.agents.mailbox import FALLBACK_VERSIONS, Header, Mailbox, Message, OnceMailbox

NEIGHBORS = (1, 4)


def message(sender: int, version: int, hold: int = 0, latency: float = 0.0, **flags: bool) -> Message[str]:
    header = Header(sender, version, float(version), 1.0, latency_seconds=latency, hold_steps=hold, **flags)
    return Message(header, f"contents {sender} {version}")


class MailboxMachine(RuleBasedStateMachine):
    """Model: every message ever put, with the moment from which it counts as arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.mailbox: Mailbox[str] = Mailbox(NEIGHBORS)
        self.now = 0.0
        self.put: dict[int, list[tuple[float, Message[str]]]] = {k: [] for k in NEIGHBORS}
        self.forgotten = dict.fromkeys(NEIGHBORS, 0)

    @rule(sender=st.sampled_from(NEIGHBORS), hold=st.integers(0, 3), latency=st.sampled_from([0.0, 0.5, 2.0]))
    def send(self, sender: int, hold: int, latency: float) -> None:
        sent = message(sender, len(self.put[sender]), hold, latency)
        earlier = [due for due, _ in self.put[sender]]
        self.put[sender].append((max([self.now + latency, *earlier]), sent))
        self.mailbox.put(sent, self.now)

    @rule(seconds=st.sampled_from([0.25, 1.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.mailbox.advance(self.now)

    @rule(sender=st.sampled_from(NEIGHBORS), slack=st.sampled_from([FALLBACK_VERSIONS, 0, -1]))
    def read_newest_and_forget(self, sender: int, slack: int) -> None:
        version = self.mailbox.readable(sender, None)
        if version is not None:
            self.mailbox.forget(sender, version, slack)
            self.forgotten[sender] = max(self.forgotten[sender], version - slack)

    def arrived(self, k: int) -> list[Message[str]]:
        return [m for due, m in self.put[k] if due <= self.now]

    @invariant()
    def agrees_with_the_model(self) -> None:
        for k in NEIGHBORS:
            arrived = self.arrived(k)
            newest = self.mailbox.newest(k)
            assert (newest.version if newest else None) == (arrived[-1].header.version if arrived else None)
            kept = [m for m in arrived if m.header.version >= self.forgotten[k]]
            assert sorted(self.mailbox.versions(k)) == [m.header.version for m in kept]
            for cap in (None, 1):
                known = len(arrived) - 1 if cap is None else min(len(arrived) - 1, cap)
                visible = [m.header.version for m in kept if m.header.version + m.header.hold_steps <= known]
                assert self.mailbox.readable(k, cap) == max(visible, default=None)

    @invariant()
    def next_due_is_the_earliest_message_in_flight(self) -> None:
        flying = [due for queue in self.put.values() for due, _ in queue if due > self.now]
        assert self.mailbox.next_due() == min(flying, default=None)
        assert self.mailbox.num_held == len(flying) + sum(len(self.mailbox.versions(k)) for k in NEIGHBORS)


TestMailbox = MailboxMachine.TestCase
TestMailbox.settings = settings(max_examples=60, stateful_step_count=30)


def test_a_direction_comes_with_the_message_after_its_version() -> None:
    mailbox: Mailbox[str] = Mailbox((1,))
    mailbox.put(message(1, 0), 0.0)
    assert mailbox.following(1, 0) is None
    mailbox.put(message(1, 1), 0.0)
    assert mailbox.following(1, 0) == "contents 1 1"


def test_versions_after_the_last_of_an_isolated_neighbor_are_gone() -> None:
    mailbox: Mailbox[str] = Mailbox((1,))
    mailbox.put(message(1, 3), 0.0)
    mailbox.put(message(1, 3, isolated=True), 0.0)
    assert mailbox.left(1)
    assert not mailbox.isolated(1, 3)
    assert mailbox.isolated(1, 4)


def test_an_inbox_tells_what_has_come_once_and_in_order() -> None:
    inbox: OnceMailbox[str] = OnceMailbox(NEIGHBORS)
    inbox.put(message(4, 1, latency=1.0), 0.0)
    inbox.put(message(1, 1), 0.0)
    assert [header[:2] for header in inbox.news()] == [(1, 1)]
    assert not inbox.has_news
    inbox.advance(1.0)
    assert inbox.has_news
    assert [header[:2] for header in inbox.news()] == [(4, 1)]
    assert inbox.news() == []


def test_an_inbox_drops_what_is_still_to_come_too() -> None:
    """A worker whose work is always cancelled runs ahead of its server's versions, and must not keep them all."""
    inbox: OnceMailbox[str] = OnceMailbox(NEIGHBORS)
    inbox.put(message(1, 0), 0.0)
    inbox.put(message(1, 1), 0.0)
    inbox.drop(1, 3)
    assert len(inbox) == 0
    for version in range(2, 6):
        inbox.put(message(1, version), 0.0)
        inbox.put(message(4, version), 0.0)
    assert inbox.versions(1) == [4, 5]
    assert inbox.versions(4) == [2, 3, 4, 5]
    inbox.drop(1, 2)
    assert inbox.versions(1) == [4, 5]
    assert len(inbox.news()) == 10


def test_what_is_held_for_steps_is_let_go_once_its_sender_takes_no_longer_for_them() -> None:
    """Of a sender that takes a second a step: version 3, sent at second 3 and held for 5 steps, at second 8."""
    mailbox: Mailbox[str] = Mailbox((1,))
    mailbox.put(message(1, 0), 0.0)
    mailbox.put(message(1, 3, hold=5), 3.0)
    assert [mailbox.readable(1, None, now) for now in (3.0, 7.9, 8.0)] == [0, 0, 3]
    assert mailbox.readable(1, None) == 0  # without a second, by its messages alone
    assert mailbox.readable(1, 2, 8.0) == 0
    mailbox.put(message(1, 8, hold=5), 8.0)
    assert mailbox.readable(1, None) == 3
    mailbox.put(message(1, 9, hold=50, final=True), 9.0)
    assert mailbox.readable(1, None, 9.0) == 9
