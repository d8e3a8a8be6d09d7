"""Slow references of the rules in float64, element by element and step by step, written from the formulas alone.

Notation of the papers: agent i, neighbor k, step t; x weights, u directions, w mixing weights, tau staleness.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.unit.scenarios import Link, Scenario

Vector = list[float]
Row = dict[int, float]


@dataclass
class Method:
    """Settings of a reference run, in plain values."""

    theta: Callable[[int, int], float] | None = None
    """theta of (agent, step); not given: plain averaging, D-ASGD."""
    bound: float | None = None
    """Given: c of the stability bound, which theta follows from where it is not given."""
    sharpness: float | None = None
    """Given: the bound is the whole stability condition at so many times the step size times the curvature."""
    reach: str | float = "full"
    """`full`, `damped` with 0.9, `stable`, or a largest number of steps."""
    bounded: bool = False
    """Whether a reach at a theta that is given is cut as `stable` is."""
    drag: float = 0.0
    guard: bool = False
    own_drift: bool = False
    lambda_0: float = 0.04
    decay: float | None = None
    """Given: adaptive lambda."""
    relative: bool = False
    """lambda in units of the direction's length."""
    renormalize: bool = False
    oldest_age: int = 64
    condition: str | None = None
    """Given: the practical variant."""
    candidates: tuple[float, ...] = (0.0, 1.0)
    probe_every: int = 1


@dataclass
class Memory:
    """What one agent remembers."""

    mean_square: dict[int, Vector] = field(default_factory=dict)
    smoothed: Vector = field(default_factory=list)
    choice: float = 0.0
    gain: float = 1.0
    usual: float = 0.0


@dataclass
class Result:
    weights: list[list[Vector]]
    """By version and agent."""
    thetas: list[list[float]]
    """By step and agent."""
    choosing: list[list[bool]]


class Moment(NamedTuple):
    """What one agent knows at one of its steps."""

    agent: int
    step: int
    links: Sequence[Link]
    path: list[Vector]
    """Its own versions up to the present one."""
    direction: Vector
    heard: dict[int, Vector]
    """What it reads of its neighbors, by neighbor."""
    directions: dict[int, Vector]
    """Theirs at what it reads, of those who are late."""
    mixing: Row
    own_mixing: float
    step_size: float
    probe: Callable[[Vector], float]
    """The loss on an independent mini-batch."""
    curvature: float = 0.0
    """The loss's, along what is predicted; 0 as long as it is not known."""
    trust: float = 1.0
    """The share of the bound that counts at this step."""


def run_reference(method: Method, scenario: Scenario) -> Result:
    """Run every agent for every step of the scenario, all in step."""
    num_agents, size = scenario.start.shape
    versions: list[list[Vector]] = [[[float(v) for v in row] for row in scenario.start]]
    directions: list[list[Vector]] = []
    memories = [Memory(smoothed=[0.0] * size, choice=method.candidates[0]) for _ in range(num_agents)]
    result = Result(versions, [], [])

    def moment(i: int, t: int) -> Moment:
        links = scenario.links[t][i]

        def probe(x: Vector) -> float:
            far = zip(x, scenario.curvature[i], scenario.probe_target[t, i], strict=True)
            return float(sum(curvature * (value - target) ** 2 / 2 for value, curvature, target in far))

        return Moment(
            i,
            t,
            links,
            [versions[s][i] for s in range(t + 1)],
            directions[t][i],
            {link.neighbor: versions[t - link.age][link.neighbor] for link in links},
            {link.neighbor: directions[t - link.age][link.neighbor] for link in links},
            {link.neighbor: float(scenario.mixing[i, link.neighbor]) for link in links},
            float(scenario.mixing[i, i]),
            scenario.step_size,
            probe,
        )

    for t in range(len(scenario.links)):
        gradients = []
        for i in range(num_agents):
            u = []
            for d in range(size):
                slope = scenario.curvature[i, d] * (versions[t][i][d] - scenario.target[i, d])
                u.append(float(slope + scenario.noise[t, i, d]))
            gradients.append(u)
        directions.append(gradients)
        moved = [step_of(method, moment(i, t), memories[i]) for i in range(num_agents)]
        versions.append([x for x, _, _ in moved])
        result.thetas.append([theta for _, theta, _ in moved])
        result.choosing.append([choosing for _, _, choosing in moved])
    return result


def step_of(method: Method, now: Moment, memory: Memory) -> tuple[Vector, float, bool]:
    """Return an agent's next weights, its theta, and whether it had to choose one."""
    links, u, path, heard, weights = now.links, now.direction, now.path, now.heard, now.mixing
    x, eta, own_mixing = path[-1], now.step_size, now.own_mixing
    size = len(x)

    def average(row: Row, own: float, others: dict[int, Vector]) -> Vector:
        averaged = []
        for d in range(size):
            total = own * x[d]
            for k in row:
                total += row[k] * others[k][d]
            averaged.append(total - eta * u[d])
        return averaged

    if method.theta is None and method.condition is None and method.bound is None:
        return average(weights, own_mixing, heard), math.nan, False

    late = [link for link in links if not link.reliable and link.age <= method.oldest_age]
    guessed = {link.neighbor for link in late}
    reliable = {link.neighbor for link in links if link.reliable}
    row, _ = _keep(method, weights, own_mixing, reliable | guessed)
    set_theta = method.theta(now.agent, now.step) if method.theta else math.nan
    theta, cap = _theta_and_cap(method, row, late, set_theta, memory.gain, now)
    predicted = dict(heard)
    for link in late:
        u_k = now.directions[link.neighbor]
        predicted[link.neighbor] = _rolled(method, memory, heard[link.neighbor], u_k, path, link, eta, cap)
    clipped = average(*_keep(method, weights, own_mixing, reliable), heard)
    forward = average(*_keep(method, weights, own_mixing, reliable | guessed), predicted)

    def blend(theta: float) -> Vector:
        return [theta * forward[d] + (1 - theta) * clipped[d] for d in range(size)]

    if method.guard:
        still = average(*_keep(method, weights, own_mixing, reliable | guessed), heard)
        added = math.sqrt(sum((theta * (f - s)) ** 2 for f, s in zip(forward, still, strict=True)))
        _watch(memory, added, eta * math.sqrt(sum(g * g for g in u)))

    if method.condition is not None:
        memory.smoothed = [0.9 * s + 0.1 * g for s, g in zip(memory.smoothed, u, strict=True)]
        if guessed and (method.condition != "probe" or now.step % method.probe_every == 0):
            memory.choice = max((_score(method, now, memory, blend(one)), one) for one in method.candidates)[1]
        theta = memory.choice
    return blend(theta), theta, bool(guessed)


def _rolled(
    method: Method, memory: Memory, x_k: Vector, u_k: Vector, path: list[Vector], link: Link, eta: float, cap: float
) -> Vector:
    """Return a late neighbor's weights as they are predicted."""
    steps = min(_steps(method, link.staleness), cap)
    strength = _lambda(method, memory, link, u_k, path)
    if method.own_drift:
        return _own_drift(x_k, path, link, steps)
    if steps == link.staleness:
        return _predict(x_k, u_k, strength, path, link, eta)
    return _predict_some(x_k, u_k, strength, path, link, eta, steps)


def _steps(method: Method, tau: float) -> float:
    if method.reach == "damped":
        return sum(0.9**power for power in range(1, int(tau) + 1))
    return tau if isinstance(method.reach, str) else min(tau, method.reach)


def _theta_and_cap(
    method: Method, row: Row, late: list[Link], theta: float, gain: float, now: Moment
) -> tuple[float, float]:
    """Return theta, and the longest reach that the bound allows at it."""
    far = sum(row[link.neighbor] for link in late)
    if method.bound is None or not late or far == 0:
        return (1.0 if math.isnan(theta) else theta), math.inf
    c = method.bound * gain
    if method.theta is None:
        product = sum(row[link.neighbor] * _steps(method, link.staleness) for link in late)
        strength = c / (product / far) if product else math.inf
        if method.sharpness is not None:
            r = max(0.5, method.sharpness * now.step_size * now.curvature)
            strength = now.trust * (c * stable_strength(product / far, r) if now.curvature else strength)
        if method.own_drift:
            strength = c * min(1 / 4, 2 / (product / far + 2))
        if method.reach == "stable":
            tau = sum(row[link.neighbor] * link.staleness for link in late) / far
            # At this weight, (1 + c) / (1 + g tau) is 1 - drag.
            strength = ((1 + strength * tau) / (1 - method.drag) - 1) / tau if tau else math.inf
        theta = min(1.0, strength / far)
    is_cut = method.reach == "stable" or (method.bounded and method.theta is not None)
    if not is_cut or theta == 0:
        return theta, math.inf
    if method.own_drift:
        weight = theta * far / c
        return theta, 0.0 if weight > 1 / 4 else 2 / weight - 2
    return theta, c / (theta * far)


def stable_strength(s: float, r: float) -> float:
    """Return the largest weight g in [0, 1] with ``|1 - g - e| + g |1 - s e| <= 1`` for all e in (0, r], by bisection.

    The left side is convex in e, and 1 at e = 0, so that e = r decides; it is convex in g, too, so that the g that are
    stable are all up to the largest.
    """

    def is_stable(g: float) -> bool:
        return abs(1 - g - r) + g * abs(1 - s * r) <= 1

    if r >= 2 or is_stable(1.0):
        return float(r < 2)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if is_stable(middle) else (low, middle)
    return low


def _watch(memory: Memory, predicted: float, own_step: float) -> None:
    """Halve the gain where prediction has added more than four usual steps, else let it rise by a fiftieth."""
    limit = 4 * (memory.usual or own_step)
    if predicted > limit:
        memory.gain = max(memory.gain / 2, 2**-10)
        memory.usual = memory.usual or own_step
        return
    memory.gain = min(1.0, memory.gain * 1.02)
    memory.usual = 0.9 * memory.usual + 0.1 * own_step if memory.usual else own_step


def _own_drift(x_k: Vector, path: list[Vector], link: Link, steps: float) -> Vector:
    t = len(path) - 1
    end, begin = path[t - link.age], path[max(0, t - 2 * link.age)]
    scale = steps / link.age if link.age else 0.0
    return [x + scale * (b - a) for x, a, b in zip(x_k, begin, end, strict=True)]


def _predict_some(
    x_k: Vector, u_k: Vector, strength: Vector, path: list[Vector], link: Link, eta: float, steps: float
) -> Vector:
    """Roll x_k forward over a part of the missed steps."""
    t = len(path) - 1
    rolled = []
    for d in range(len(x_k)):
        mean = sum(path[t - link.age + r][d] - path[t - link.age][d] for r in range(link.age)) / max(1, link.age)
        rolled.append(x_k[d] - eta * steps * (u_k[d] + strength[d] * u_k[d] * u_k[d] * mean))
    return rolled


def _keep(method: Method, weights: Row, own: float, kept: set[int]) -> tuple[Row, float]:
    row = {k: weights[k] for k in weights if k in kept}
    if not method.renormalize:
        return row, own + sum(weights[k] for k in weights if k not in kept)
    left = own + sum(row.values())
    return {k: row[k] / left for k in row}, own / left


def _lambda(method: Method, memory: Memory, link: Link, u_k: Vector, path: list[Vector]) -> Vector:
    if method.relative:
        start = len(path) - 1 - link.age
        curved, length = 0.0, 0.0
        for d, u in enumerate(u_k):
            mean = sum(path[start + r][d] - path[start][d] for r in range(link.age)) / max(1, link.age)
            curved += (u * u * mean) ** 2
            length += u * u
        return [method.lambda_0 * math.sqrt(length / curved) if curved else 0.0 for _ in u_k]
    if method.decay is None:
        return [method.lambda_0 for _ in u_k]
    squares = memory.mean_square.setdefault(link.neighbor, [0.0] * len(u_k))
    if link.staleness > 0:
        for d in range(len(u_k)):
            squares[d] = method.decay * squares[d] + (1 - method.decay) * u_k[d] * u_k[d]
    return [method.lambda_0 / math.sqrt(square + 1e-7) for square in squares]


def _predict(x_k: Vector, u_k: Vector, strength: Vector, path: list[Vector], link: Link, eta: float) -> Vector:
    """Roll x_k forward over the missed steps, one by one where own and neighbor's steps correspond."""
    t = len(path) - 1
    tau, age = link.staleness, link.age
    rolled = []
    for d in range(len(x_k)):
        value = x_k[d]
        if tau == age:
            for r in range(tau):
                displacement = path[t - tau + r][d] - path[t - tau][d]
                value -= eta * (u_k[d] + strength[d] * u_k[d] * u_k[d] * displacement)
        else:
            mean = 0.0
            for r in range(age):
                mean += (path[t - age + r][d] - path[t - age][d]) / age
            for _ in range(tau):
                value -= eta * (u_k[d] + strength[d] * u_k[d] * u_k[d] * mean)
        rolled.append(value)
    return rolled


def _score(method: Method, now: Moment, memory: Memory, candidate: Vector) -> float:
    displacement = [c - v for c, v in zip(candidate, now.path[-1], strict=True)]
    downhill = [-v for v in now.direction]
    match method.condition:
        case "probe":
            return -now.probe(candidate)
        case "descent":
            return _cosine(displacement, downhill)
        case "gradient":
            return -_cosine(displacement, downhill)
        case "smoothed":
            return _cosine(displacement, [-v for v in memory.smoothed])
        case "pull":
            pulled = [v + now.step_size * g for v, g in zip(displacement, now.direction, strict=True)]
            if max(map(abs, pulled)) < 1e-14:  # Zero but for rounding: no neighbor pulls.
                return 0.0
            return _cosine(pulled, downhill)
    raise AssertionError(method.condition)


def _cosine(a: Vector, b: Vector) -> float:
    product = sum(p * q for p, q in zip(a, b, strict=True))
    length = math.sqrt(sum(p * p for p in a)) * math.sqrt(sum(q * q for q in b))
    return product / length if length > 0 else 0.0
