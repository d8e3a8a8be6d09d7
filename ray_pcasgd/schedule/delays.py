"""Compute times and delays of messages: their settings, and what they say link by link."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from ray_pcasgd.base.randomness import generator
from ray_pcasgd.base.settings import Settings
from ray_pcasgd.schedule.law_base import Sampler
from ray_pcasgd.schedule.law_text import Unit, read_law
from ray_pcasgd.schedule.laws import ConstantLaw, Law, LawOfSeconds


class ComputeTimes(Settings):
    """Seconds that a step's gradient takes."""

    law: LawOfSeconds = ConstantLaw(value=1.0)
    """Law of one step's seconds in planned runs; live runs take the time that they need."""
    agents: dict[int, LawOfSeconds] = Field(default_factory=dict)
    """Laws of single agents, by their numbers, in place of ``law``."""
    stragglers: dict[int, LawOfSeconds] = Field(default_factory=dict)
    """Laws of the extra seconds that single agents take; in live runs they really wait that long at each step."""

    def sampler(self, seed: int, agent: int) -> Callable[[float], float]:
        """Return what draws the seconds of the agent's next step in a planned run."""
        base = self.agents.get(agent, self.law).sampler(generator(seed, "compute", agent))
        extra = self.extra_sampler(seed, agent)
        return lambda now: base(now) + extra(now)

    def mean(self, agent: int) -> float:
        """Return the agent's mean seconds for a step; may be infinite."""
        extra = self.stragglers.get(agent)
        return self.agents.get(agent, self.law).expectation() + (0.0 if extra is None else extra.expectation())

    def extra_sampler(self, seed: int, agent: int) -> Callable[[float], float]:
        """Return what draws the extra seconds of the agent's next step."""
        law = self.stragglers.get(agent, ConstantLaw(value=0.0))
        return law.sampler(generator(seed, "straggler", agent))


class LinkDelay(Settings):
    """How late messages are on some links; of several entries for one link and unit, the last one counts."""

    delay: Law
    """The delay, in ``unit``, which it may also say itself: ``200ms``, ``pareto(2, 0.1s)``, ``10 steps``."""
    unit: Unit | None = None
    """``seconds``: the message arrives later by the delay. ``steps``: it arrives at once, and its weights are held back
    until its sender has taken that many more steps (with ``local_steps``, to the end of that round); drawn delays are
    rounded to whole steps. Not given: the unit that the delay says itself, else steps, or seconds for ad-psgd, which
    has no delays in steps."""
    between: Literal["all", "clusters"] | tuple[tuple[int, ...], ...] = "all"
    """The links that the entry applies to: all, those between the run's clusters, or those between listed groups."""
    links: tuple[tuple[int, int], ...] | None = None
    """Pairs of agents whose links these are, in both directions, in place of ``between``."""
    from_step: int = Field(0, ge=0)
    """First step of the sender from which on the entry applies to its versions."""
    from_second: float = Field(0.0, ge=0)
    """Second of the run from which on the entry applies to messages that are sent."""

    @model_validator(mode="before")
    @classmethod
    def _in_one_unit(cls, values: Any) -> Any:
        """Take the unit that a delay says itself."""
        if not isinstance(values, Mapping) or "delay" not in values:
            return values
        given, unit = values["delay"], values.get("unit")
        try:
            delay, said = read_law(given)
        except ValueError as error:
            raise ValueError(f"delay = {given!r}: {error}") from None
        if said is not None and unit in get_args(Unit) and said != unit:
            raise ValueError(
                f"unit = {unit!r}: the delay, {given!r}, is in {said}; allowed is {said}, or a delay without a unit"
            )
        return {**values, "delay": delay, "unit": said or unit}

    @model_validator(mode="after")
    def _one_place(self) -> "LinkDelay":
        if self.links is not None and self.between != "all":
            raise ValueError(f"between = {self.between!r}: allowed is one of between and links, not both")
        if isinstance(self.between, tuple):
            members = [agent for group in self.between for agent in group]
            if len(self.between) < 2 or not all(self.between) or len(set(members)) < len(members):
                raise ValueError(f"between = {self.between!r}: allowed are two groups or more, with no agent in two")
        for pair in self.links or ():
            if pair[0] == pair[1]:
                raise ValueError(f"links: the pair {list(pair)}; allowed are two different agents")
        return self

    def covers(self, sender: int, receiver: int, clusters: Sequence[int]) -> bool:
        """Return whether the entry is about this link."""
        if self.links is not None:
            return (sender, receiver) in self.links or (receiver, sender) in self.links
        if self.between == "all":
            return True
        if self.between == "clusters":
            return clusters[sender] != clusters[receiver]
        place = {agent: number for number, group in enumerate(self.between) for agent in group}
        return sender in place and receiver in place and place[sender] != place[receiver]


class LinkTimes:
    """What the entries say of one directed link, message by message.

    Streams are named by link, unit and the entry's place among those of that link and unit, so that entries about one
    link shift the draws of no other.
    """

    def __init__(
        self, links: Sequence[LinkDelay], clusters: Sequence[int], seed: int, sender: int, receiver: int
    ) -> None:
        covering = [entry for entry in links if entry.covers(sender, receiver, clusters)]
        self._laws: dict[str, list[tuple[LinkDelay, Sampler]]] = {
            unit: [
                (entry, entry.delay.sampler(generator(seed, unit, sender, receiver, place)))
                for place, entry in enumerate(entry for entry in covering if (entry.unit or "steps") == unit)
            ]
            for unit in ("seconds", "steps")
        }

    def latency_seconds(self, step: int, sent_at: float) -> float:
        """Return the seconds that the message of a sender's ``step``, sent at second ``sent_at`` of the run, takes."""
        return self._draw("seconds", step, sent_at, moment=sent_at)

    def hold_steps(self, step: int, sent_at: float) -> int:
        """Return the steps for which the weights of a sender's ``step`` are held back; halves are rounded to even."""
        return round(self._draw("steps", step, sent_at, moment=float(step)))

    def _draw(self, unit: str, step: int, sent_at: float, moment: float) -> float:
        for entry, sampler in reversed(self._laws[unit]):
            if step >= entry.from_step and sent_at >= entry.from_second:
                return sampler(moment)
        return 0.0


def check_timing(compute: ComputeTimes, links: Sequence[LinkDelay], num_agents: int) -> None:
    """Raise ``ValueError`` where an agent is named that the run does not have."""
    named = [("compute.agents", agent) for agent in compute.agents]
    named += [("compute.stragglers", agent) for agent in compute.stragglers]
    for place, entry in enumerate(links):
        groups = entry.between if isinstance(entry.between, tuple) else ()
        named += [(f"links.{place}.between", agent) for group in groups for agent in group]
        named += [(f"links.{place}.links", agent) for pair in entry.links or () for agent in pair]
    for setting, agent in named:
        if not 0 <= agent < num_agents:
            raise ValueError(f"{setting}: agent {agent}; allowed are 0 to {num_agents - 1}")
