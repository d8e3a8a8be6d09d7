"""Compute times, delays of messages and bandwidths of links: their settings, and what they say link by link."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from pydantic import Field, model_validator

from ray_pcasgd.base.randomness import generator
from ray_pcasgd.base.settings import Settings
from ray_pcasgd.base.text import one_line
from ray_pcasgd.schedule.bandwidth import Bandwidth
from ray_pcasgd.schedule.law_base import BaseLaw, InBlocks, Sampler
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
        if agent not in self.stragglers:
            return base
        extra = self.extra_sampler(seed, agent)
        if isinstance(base, InBlocks) and isinstance(extra, InBlocks):
            return InBlocks(lambda size: base.many(size) + extra.many(size))
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
    """How late messages are on some links; of several entries for one link and unit, the last one counts.

    Likewise of several entries that give a bandwidth the last one does, whatever they say of delays.
    """

    delay: Law | None = None
    """The delay, in ``unit``, which it may also say itself: ``200ms``, ``pareto(2, 0.1s)``, ``10 steps``. May be left
    out where a bandwidth is given: what other entries say of delays then counts, or else there is none."""
    bandwidth: Bandwidth | None = None
    """Bandwidth of each direction of each of these links, such as ``200 Mbit/s`` or ``25 MB/s``, in planned runs. A
    direction transmits its messages one after another, in the order in which they are sent; the delay follows. Not
    given: what other entries say, or else unlimited."""
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
        if not isinstance(values, Mapping) or values.get("delay") is None:
            return values
        given, unit = values["delay"], values.get("unit")
        try:
            delay, said = read_law(given)
        except ValueError as error:
            raise ValueError(f"delay = {one_line(repr(given), 80)}: {error}") from None
        if said is not None and unit in get_args(Unit) and said != unit:
            raise ValueError(
                f"unit = {unit!r}: the delay, {one_line(repr(given), 80)}, is in {said}; allowed is {said}, or a delay "
                "without a unit"
            )
        return {**values, "delay": delay, "unit": said or unit}

    @model_validator(mode="after")
    def _some_time(self) -> "LinkDelay":
        if self.delay is None and self.bandwidth is None:
            raise ValueError("delay: is required, or bandwidth; write delay: 200ms, or bandwidth: 20 Mbit/s")
        if self.delay is None and self.unit is not None:
            raise ValueError(f"unit = {self.unit!r}: allowed with a delay only; a bandwidth says its unit itself")
        return self

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

    @property
    def covers_all(self) -> bool:
        """Whether the entry is about all links."""
        return self.links is None and self.between == "all"

    def covers(self, sender: int, receiver: int, clusters: Sequence[int]) -> bool:
        """Return whether the entry is about this link."""
        if self.covers_all:
            return True
        if self.links is not None:
            return (sender, receiver) in self._directed
        if self.between == "clusters":
            return clusters[sender] != clusters[receiver]
        place = self._group_of
        return sender in place and receiver in place and place[sender] != place[receiver]

    @cached_property
    def _directed(self) -> frozenset[tuple[int, int]]:
        return frozenset((a, b) for pair in self.links or () for a, b in (pair, pair[::-1]))

    @cached_property
    def _group_of(self) -> dict[int, int]:
        groups = self.between if isinstance(self.between, tuple) else ()
        return {agent: number for number, group in enumerate(groups) for agent in group}


_Said = TypeVar("_Said")


class LinkTimes:
    """What the entries say of one directed link, message by message.

    Streams are named by link, unit and the entry's place among those of that link and unit, so that entries about one
    link shift the draws of no other.
    """

    def __init__(
        self, links: Sequence[LinkDelay], clusters: Sequence[int], seed: int, sender: int, receiver: int
    ) -> None:
        covering = [entry for entry in links if entry.covers(sender, receiver, clusters)]
        late = [(entry, entry.delay) for entry in covering if entry.delay is not None]
        self._seconds, self._steps = (
            [
                (entry.from_step, entry.from_second, _said(law, seed, unit, sender, receiver, place))
                for place, (entry, law) in enumerate(one for one in late if (one[0].unit or "steps") == unit)
            ][::-1]
            for unit in ("seconds", "steps")
        )
        self._limits = [
            (entry.from_step, entry.from_second, entry.bandwidth)
            for entry in reversed(covering)
            if entry.bandwidth is not None
        ]

    @property
    def has_lasting_latency(self) -> bool:
        """Whether all messages have the same delay in seconds, or none has any."""
        return _is_lasting(self._seconds) and not (self._seconds and callable(self._seconds[0][2]))

    @property
    def has_lasting_bandwidth(self) -> bool:
        """Whether all messages have the same bandwidth, or none is limited."""
        return _is_lasting(self._limits)

    @property
    def has_steps(self) -> bool:
        """Whether messages are ever held back by steps."""
        return bool(self._steps)

    def latency_seconds(self, step: int, sent_at: float) -> float:
        """Return the seconds that the message of a sender's ``step``, sent at second ``sent_at`` of the run, takes."""
        said = _last_of(self._seconds, step, sent_at)
        return 0.0 if said is None else said(sent_at) if callable(said) else said

    @property
    def lasting_hold(self) -> int | None:
        """The steps for which all messages are held back; ``None`` where they differ."""
        if not _is_lasting(self._steps) or (self._steps and callable(self._steps[0][2])):
            return None
        return self.hold_steps(0, 0.0)

    @property
    def draws(self) -> bool:
        """Whether anything of the link is drawn, from streams of its own."""
        return any(callable(said) for _, _, said in (*self._seconds, *self._steps))

    def many_latencies(self, steps: np.ndarray, sent_at: np.ndarray) -> np.ndarray:
        """Return ``latency_seconds`` of one message after another, shape (number,)."""
        return _said_of_many(self._seconds, steps, sent_at, sent_at)

    def many_holds(self, steps: np.ndarray, sent_at: np.ndarray) -> np.ndarray:
        """Return what ``hold_steps`` rounds, of one message after another, shape (number,)."""
        return _said_of_many(self._steps, steps, sent_at, steps)

    def many_bandwidths(self, steps: np.ndarray, sent_at: np.ndarray) -> list[str | None]:
        """Return ``bandwidth`` of one message after another."""
        return [self.bandwidth(*message) for message in zip(steps.tolist(), sent_at.tolist(), strict=True)]

    def hold_steps(self, step: int, sent_at: float) -> int:
        """Return the steps for which the weights of a sender's ``step`` are held back; halves are rounded to even."""
        said = _last_of(self._steps, step, sent_at)
        return 0 if said is None else round(said(float(step)) if callable(said) else said)

    def bandwidth(self, step: int, sent_at: float) -> str | None:
        """Return the bandwidth at which such a message is transmitted; ``None``: unlimited."""
        return _last_of(self._limits, step, sent_at)


def _said(law: BaseLaw, seed: int, unit: str, *place: int) -> float | Sampler:
    """Return what draws a link's delays; of a law of one value that value, since a stream takes long to make."""
    value = law.only_value
    return law.sampler(generator(seed, unit, *place)) if value is None else value


def _last_of(entries: Sequence[tuple[int, float, _Said]], step: int, sent_at: float) -> _Said | None:
    """Return what the last entry says that applies to a message; they are given in the opposite order."""
    for from_step, from_second, said in entries:
        if step >= from_step and sent_at >= from_second:
            return said
    return None


def _said_of_many(
    entries: Sequence[tuple[int, float, float | Sampler]],
    steps: np.ndarray,
    sent_at: np.ndarray,
    moments: np.ndarray,
) -> np.ndarray:
    """Return what the last entry that applies to a message says of it, message by message; drawn at these moments."""
    if entries and _is_lasting(entries) and isinstance(entries[0][2], InBlocks):
        return entries[0][2].many(len(steps))
    values = np.zeros(len(steps))
    is_open = np.ones(len(steps), dtype=bool)
    for from_step, from_second, said in entries:
        applies = is_open & (steps >= from_step) & (sent_at >= from_second)
        is_open &= ~applies
        if isinstance(said, InBlocks):
            values[applies] = said.many(int(np.count_nonzero(applies)))
        elif callable(said):
            values[applies] = [said(float(moment)) for moment in moments[applies].tolist()]
        else:
            values[applies] = said
    return values


def _is_lasting(entries: Sequence[tuple[int, float, object]]) -> bool:
    """Return whether entries say the same of all messages: the last one applies from the start, or there is none."""
    return not entries or entries[0][:2] == (0, 0.0)


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
