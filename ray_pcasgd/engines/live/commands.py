"""What an operator says to a live run; it travels as JSON, and counts only where it is one of these."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from ray_pcasgd.base.settings import Settings
from ray_pcasgd.schedule.delays import LinkDelay


class SetDelay(Settings):
    """Make messages late on some links from now on, in place of what the settings say of them."""

    name: Literal["delay"] = "delay"
    entry: LinkDelay
    """Which links, and how late."""

    def describe(self) -> str:
        """Return what it does, in words."""
        where = self.entry.between if self.entry.links is None else [list(pair) for pair in self.entry.links]
        assert self.entry.delay is not None  # what is changed is the delay
        law = self.entry.delay.model_dump()
        numbers = ", ".join(
            f"{value:g}" if isinstance(value, float) else str(value) for key, value in law.items() if key != "name"
        )
        return f"links {where}: {law['name']}({numbers}) {self.entry.unit or 'steps'}"


class Isolate(Settings):
    """Cut all links of some agents: what they and their neighbors send each other is lost."""

    name: Literal["isolate"] = "isolate"
    agents: tuple[int, ...] = Field(min_length=1)
    """Which."""

    def describe(self) -> str:
        """Return what it does, in words."""
        return f"agents {list(self.agents)} are isolated"


class Heal(Settings):
    """Take back every change of links."""

    name: Literal["heal"] = "heal"

    def describe(self) -> str:
        """Return what it does, in words."""
        return "all links are as the settings have them"


class Leave(Settings):
    """Let an agent leave the run."""

    name: Literal["leave"] = "leave"
    agent: int
    """Which."""

    def describe(self) -> str:
        """Return what it does, in words."""
        return f"agent {self.agent} is asked to leave"


class Join(Settings):
    """Let an agent come in that has left, was lost for good, or was not started with the run."""

    name: Literal["join"] = "join"
    agent: int
    """Which."""

    def describe(self) -> str:
        """Return what it does, in words."""
        return f"agent {self.agent} is asked to come in"


Command = SetDelay | Isolate | Heal | Leave | Join

_COMMAND: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="name")])
_LONGEST_COMMAND = 64 * 1024
"""Characters."""


def encoded(command: Command) -> str:
    """Return a command as it travels."""
    return command.model_dump_json()


def decoded(text: Any) -> Command:
    """Return the command that came as a text.

    Raises:
        ValueError: it is not a command.

    """
    if not isinstance(text, str) or len(text) > _LONGEST_COMMAND:
        raise ValueError(f"allowed are commands as JSON, of up to {_LONGEST_COMMAND} characters")
    try:
        tree = json.loads(text)
        entry = tree.get("entry") if isinstance(tree, Mapping) else None
        delay = entry.get("delay") if isinstance(entry, Mapping) else None
        if isinstance(delay, Mapping) and delay.get("name") in ("measured", "trace"):
            raise ValueError(f"delay.name = {delay['name']!r}: allowed are laws that need no file")
        return _COMMAND.validate_python(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        raise ValueError(f"{place or 'command'}: {first['msg']}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


class LinkChanges(Settings):
    """What commands have changed about links."""

    entries: tuple[LinkDelay, ...] = ()
    """Delays, after those of the settings."""
    isolated: tuple[int, ...] = ()
    """Agents all of whose links are cut."""

    def after(self, command: SetDelay | Isolate | Heal) -> "LinkChanges":
        """Return what holds after a further command."""
        if isinstance(command, SetDelay):
            return self.model_copy(update={"entries": (*self.entries, command.entry)})
        if isinstance(command, Isolate):
            return self.model_copy(update={"isolated": tuple(sorted({*self.isolated, *command.agents}))})
        return LinkChanges()

    def cuts(self, agent: int, neighbor: int) -> bool:
        """Return whether the link between two agents is cut."""
        return agent in self.isolated or neighbor in self.isolated


def agents_named(command: Command) -> Sequence[int]:
    """Return the agents that a command names."""
    if isinstance(command, Isolate):
        return command.agents
    if isinstance(command, Leave | Join):
        return (command.agent,)
    if isinstance(command, SetDelay):
        groups = command.entry.between if isinstance(command.entry.between, tuple) else ()
        return [agent for group in (*groups, *(command.entry.links or ())) for agent in group]
    return ()
