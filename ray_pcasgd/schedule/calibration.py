"""Calibration: what a recorded live run's rows say of how long its agents computed and its messages took.

Rows say when agents published and which versions they read, not when messages came. So what is known of a message is
mostly that it took longer than one time and no longer than another: longer than to the read that did not find it yet,
and at most to the one that did. Laws are fitted to such intervals by maximum likelihood.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from ray_pcasgd.records import Row
from ray_pcasgd.schedule.law_base import scipy_stats
from ray_pcasgd.schedule.laws import ConstantLaw, LogNormal

NOISE_SECONDS = 0.002
"""What is no waiting yet: the time that reading itself takes."""
_FITTED = 2000
"""Messages of a group of links that a law is fitted to, at most; more of them change little."""
_ROUNDS = 3
"""How often the last one to arrive is determined anew."""
_SMALLEST = 1e-6

Group = TypeVar("Group", bound=Hashable)


class Bounds(NamedTuple):
    """Between how many seconds a message has taken; both are the same where it is known exactly."""

    above: float
    most: float


@dataclass(frozen=True, kw_only=True)
class Recording:
    """The rows of a live run, and what else says how they are to be understood."""

    rows: Sequence[Row]
    """In the order of the recording."""
    reads_first: frozenset[int]
    """Agents that read at the start of a row: workers, and peers that combine first. Others read at its end."""
    waits: frozenset[int]
    """Agents that may wait for messages: servers, workers, and peers with a barrier."""
    sends_to_all: bool
    """Whether each version is sent to all who read its agent."""
    reads_all: bool
    """Whether each row reads all that has come, instead of the newest versions of some neighbors."""
    waited: Mapping[int, float]
    """Seconds that each agent which reads first has waited in all, as it has measured them."""
    steps_in: Callable[[int, int], int]
    """The mini-batches of an agent's row, by agent and ``Row.step``."""
    evaluates: Callable[[int, int], bool]
    """Whether an agent is evaluated at the end of a row, which no plan counts."""

    def of_each(self) -> dict[int, list[Row]]:
        """Return the rows of each agent, in their order."""
        found: dict[int, list[Row]] = defaultdict(list)
        for row in self.rows:
            found[row.agent].append(row)
        return dict(found)


def compute_seconds(recording: Recording) -> dict[int, list[float]]:
    """Return the seconds that each agent took for a mini-batch, row by row.

    From ``start`` to ``ready``, and what lies between rows without being waited: applying the rule, sending, loading.
    After a row with an evaluation that counts as in the mean of the other rows.
    """
    found: dict[int, list[float]] = {}
    for agent, rows in recording.of_each().items():
        besides = _besides(recording, agent, rows)
        # A server's rows are instants.
        seconds = [
            (row.ready - row.start + besides[row.step]) / recording.steps_in(agent, row.step)
            for row in rows
            if row.kind == "step" and row.ready > row.start
        ]
        if seconds:
            found[agent] = [max(_SMALLEST, one) for one in seconds]
    return found


def evaluation_seconds(recording: Recording) -> dict[int, float]:
    """Return the seconds that each agent's evaluations took in all, which no plan counts; the last one's are not known.

    What lies between rows after an evaluation, beyond what lies between other rows.
    """
    found: dict[int, float] = {}
    for agent, rows in recording.of_each().items():
        besides = _besides(recording, agent, rows)
        found[agent] = sum(
            max(0.0, gap - besides[step]) for step, gap in _gaps(rows).items() if recording.evaluates(agent, step)
        )
    return found


def _gaps(rows: Sequence[Row]) -> dict[int, float]:
    """Return the seconds from each row's end to the next row, by ``Row.step``; not from one before an absence."""
    return {
        before.step: max(0.0, after.start - before.end)
        for before, after in itertools.pairwise(rows)
        if after.kind != "rejoined"
    }


def _besides(recording: Recording, agent: int, rows: Sequence[Row]) -> dict[int, float]:
    """Return the seconds after each row in which the agent was busy, by ``Row.step``."""
    gaps = _gaps(rows)
    counted = [gap for step, gap in gaps.items() if not recording.evaluates(agent, step)]
    mean = float(np.mean(counted)) if counted else 0.0
    if agent in recording.reads_first and agent in recording.waits:
        # Which of them were waiting is not known, but how long they were so together.
        mean = max(0.0, mean - recording.waited.get(agent, 0.0) / max(1, len(gaps)))
        return dict.fromkeys((row.step for row in rows), mean)
    return {row.step: mean if recording.evaluates(agent, row.step) else gaps.get(row.step, mean) for row in rows}


class _Sighting(NamedTuple):
    """One row's reads: those that it found first, and whether it has waited for the last of them."""

    found: tuple[tuple[int, float, Bounds], ...]
    """The neighbor, when it published what was read, and the bounds, for versions that no earlier row has read."""
    has_waited: bool


def message_seconds(
    recording: Recording, group: Callable[[int, int], Group], guess: Mapping[Group, float]
) -> dict[Group, LogNormal | ConstantLaw | None]:
    """Return the law of the seconds that messages took, for each group of links; see ``message_bounds``.

    ``None`` where nothing says so: no message was ever waited for, or was missing at a read.
    """
    return {key: fitted(found) for key, found in message_bounds(recording, group, guess).items()}


def message_bounds(
    recording: Recording, group: Callable[[int, int], Group], guess: Mapping[Group, float]
) -> dict[Group, list[Bounds]]:
    """Return between how many seconds messages have taken, for each group of links.

    Args:
        recording: The rows.
        group: Returns the group of a link, given sender and receiver.
        guess: Seconds that messages of a group may take, to begin with; 0 for others.

    **Choice**: an agent that waited has gone on as the last of what it read arrived. Which one that was is not
    recorded; it is taken to be the one whose arrival was to be expected last, by the laws fitted so far.

    """
    sightings = {agent: list(_sightings(recording, rows)) for agent, rows in recording.of_each().items()}
    expected = dict(guess)
    bounds: dict[Group, list[Bounds]] = {}
    for number in range(_ROUNDS):
        if number:
            laws = {key: fitted(found) for key, found in bounds.items()}
            expected = {key: 0.0 if law is None else law.expectation() for key, law in laws.items()}
        bounds = defaultdict(list)
        for agent, rows in sightings.items():
            for row in rows:
                for neighbor, one in _bounded(row, [expected.get(group(k, agent), 0.0) for k, _, _ in row.found]):
                    bounds[group(neighbor, agent)].append(one)
    return dict(bounds)


def _sightings(recording: Recording, rows: Sequence[Row]) -> Iterable[_Sighting]:
    published = _publishing(recording)
    besides = _besides(recording, rows[0].agent, rows)
    seen: dict[int, tuple[int, float]] = {}
    last_end, last_read_at = rows[0].start, -math.inf
    for row in rows:
        agent, reads_first = row.agent, row.agent in recording.reads_first
        read_at = row.start if reads_first else row.end
        waited = row.start - last_end - besides.get(row.step - 1, 0.0) if reads_first else row.end - row.ready
        is_instant = row.end == row.start  # a server's: it does nothing but wait
        has_waited = agent in recording.waits and (is_instant or waited > NOISE_SECONDS)
        found = []
        for read in row.reads:
            version, looked_at = seen.get(read.neighbor, (0, -math.inf))
            before = last_read_at if recording.reads_all else looked_at
            # Those in between have come as well, and no earlier.
            for one in range(version + 1 if recording.sends_to_all else read.version, read.version + 1):
                if (at := published.get((read.neighbor, one))) is not None:
                    # Whoever waits may not have been free to read what was there.
                    above = 0.0 if agent in recording.waits else max(0.0, before - at)
                    found.append((read.neighbor, at, Bounds(above, max(_SMALLEST, read_at - at))))
        for read in row.reads:
            seen[read.neighbor] = (max(read.version, seen.get(read.neighbor, (0, 0.0))[0]), read_at)
        last_end, last_read_at = row.end, read_at
        if row.kind == "step":
            yield _Sighting(tuple(found), has_waited)


def _publishing(recording: Recording) -> dict[tuple[int, int], float]:
    """Return when each agent published each version."""
    return {(row.agent, row.step + 1): row.end for row in recording.rows}


def _bounded(row: _Sighting, expected: Sequence[float]) -> Iterable[tuple[int, Bounds]]:
    """Yield what a row says of each message that it found first; of the last to arrive, exactly how long it took."""
    last = -1
    if row.has_waited and row.found:
        last = int(np.argmax([at + more for (_, at, _), more in zip(row.found, expected, strict=True)]))
    for place, (neighbor, _, bounds) in enumerate(row.found):
        yield neighbor, Bounds(bounds.most, bounds.most) if place == last else bounds


def fitted(bounds: Sequence[Bounds]) -> LogNormal | ConstantLaw | None:
    """Return the log-normal law that is likeliest to have given such seconds; ``None`` where they have no lower bound.

    A constant where all of them are the same.
    """
    if not any(one.above > 0 for one in bounds):
        return None
    # In proportion, but at least one of those that have a lower bound, which tell the most and may be few.
    stride = max(1.0, len(bounds) / _FITTED)
    kinds = ([one for one in bounds if one.above > 0], [one for one in bounds if one.above == 0])
    some = [kind[int(place)] for kind in kinds for place in np.arange(0, len(kind), stride)]
    exact = [one.most for one in some if one.above == one.most]
    below = [one.most for one in some if one.above == 0]
    between = [one for one in some if 0 < one.above < one.most]
    if exact and not between and max(exact) - min(exact) <= 1e-9 and all(most >= exact[0] for most in below):
        return ConstantLaw(value=exact[0])
    stats = scipy_stats()
    data = stats.CensoredData(exact, left=below, interval=np.array(between).reshape(-1, 2))
    middle = float(np.median([*exact, *((one.above + one.most) / 2 for one in between)]))
    try:
        with np.errstate(divide="ignore", invalid="ignore"):  # of parameters so wrong that they are left again
            sigma, _, median = stats.lognorm.fit(data, 0.5, scale=middle, floc=0)
    except stats.FitError:
        raise ValueError(f"no law fits the times of its {len(bounds)} messages") from None
    return LogNormal(median=float(median), sigma=min(20.0, float(sigma)))
