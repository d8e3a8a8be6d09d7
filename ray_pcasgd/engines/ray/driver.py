"""What drives an actor: the base class of the drivers by planned rows and by live policies."""

from collections.abc import Mapping, Sequence
from typing import Any

from ray.actor import ActorHandle

from ray_pcasgd.agents.mailbox import Answer, Header
from ray_pcasgd.agents.participant import Published
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.messages import Contents


class Driver:
    """Decides what an actor does next: by planned rows, or by a live policy.

    ``run``, ``on_isolated``, ``on_leave`` and ``come_back`` are called in the training thread, without the actor's
    lock; the others mostly in its mail thread, with the lock held. By default each does nothing.
    """

    note: type[Answer] | None = None
    """What its servers' messages say to a worker besides their versions; ``None`` in planned runs."""

    def begin(self) -> None:
        """Take in that the run begins (``actor.started_at``)."""

    def run(self) -> None:
        """Take all steps that are left.

        Raises:
            StoppedError: the run is being stopped.

        """
        raise AssertionError("Driver is abstract")

    def on_isolated(self, published: Published | None) -> None:
        """Tell the neighbors that the agent has left the run, with what it owes them of its last version; of peers."""

    def on_leave(self) -> None:
        """Take in that the agent was stopped before its end."""

    def connected(self, neighbors: Mapping[int, ActorHandle[Any]]) -> None:
        """Take in the actors of those to whom messages are sent."""

    def on_message(self, header: Header) -> None:
        """Take in that a message has come, which lies in the mailbox."""

    def check_turn(self, header: Header) -> None:
        """Raise ``RejectedError`` where a message cannot be its sender's next."""

    def should_wake(self) -> bool:
        """Return whether the training thread has something to do about the messages that have come."""
        return True

    def set_links(self, injection: InjectedDelays) -> None:
        """Take in what an injection says of links."""

    def leave(self) -> None:
        """Take in that the agent is asked to leave the run on purpose."""

    def lost(self, neighbor: int) -> None:
        """Take in that another agent is gone."""

    def send_whole(self, reader: int) -> None:
        """Take in that a receiver has lost what differences follow on, and asks for a whole copy."""

    def finished(self, neighbor: int) -> None:
        """Take in that a receiver has taken all its steps."""

    def known(self, neighbor: int) -> int:
        """Return the newest version of another agent that is known here."""
        raise AssertionError("only live agents are asked")

    def welcome(self, neighbor: int, handle: ActorHandle[Any], version: int) -> Any:
        """Take in another agent that comes back, and return what it has to know."""
        raise AssertionError("only live agents are asked")

    def come_back(self, neighbors: Mapping[int, ActorHandle[Any]], at_least: int) -> bool:
        """Come back into a run; return whether there is still something to do."""
        raise AssertionError("only live agents are asked")

    def exchange(
        self, header: Header, times: tuple[float, float], contents: Contents, pieces: Sequence[Any]
    ) -> list[Any]:
        """Average with an agent that asks; called without the lock."""
        raise AssertionError("only live agents are asked")
