"""An agent's part of a run's state, as it is on the way from the agent through the scheduler to the driver."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ray_pcasgd.agents.mailbox import Message
from ray_pcasgd.engines.messages import Contents


class AgentState(NamedTuple):
    """What one agent adds to the run's state."""

    agent: int
    version: int
    cut: int
    """The cut's number; 0 where the agent chose the moment by itself."""
    state: Any
    """A reference to the agent's own state."""
    messages: tuple[Message[Contents], ...] = ()
    """Those that it has before the cut, and may still read after it."""
    left: Mapping[int, int] = {}
    """Neighbors that have left the run, and their last versions."""
    is_isolated: bool = False
    """Whether the agent itself has left the run."""
    share: tuple[int, ...] = ()
    """Which part of its neighbors' messages it gets, where not all of them get the same."""
    seconds: float = 0.0
    """How long the agent took to give it; it does not train meanwhile."""
