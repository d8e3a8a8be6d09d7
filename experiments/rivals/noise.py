"""How far agents on a ring are apart that move by noise alone: AD-PSGD at once and twice the rate, and A2CiD2.

Agents in float64 take the rows of the package's own planner, and flow by its own formula. Without a curvature, so that
what is seen is the averaging's alone.
"""

from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np

from ray_pcasgd.rules.acid import ACiD, flowed
from ray_pcasgd.rules.adpsgd import ADPSGD
from ray_pcasgd.runs.plan.pairs import divide, with_acceleration
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.schedule.network import build_network
from ray_pcasgd.schedule.plan_pairs import PairPlanner

Noise = Literal["white", "correlated", "heterogeneous"]
NOISES: tuple[Noise, ...] = get_args(Noise)
"""Drawn anew at each step; the velocity of white noise with a momentum of 0.9; the same at all steps."""
METHODS: dict[str, tuple[int, bool]] = {
    "AD-PSGD": (1, False),
    "AD-PSGD, twice the rate": (2, False),
    "A2CiD2": (1, True),
}
"""Averagings for each gradient, and whether there is a twin."""
_DIMENSIONS = 8


def drawn(noise: Noise, random: np.random.Generator) -> Iterator[Any]:
    """Yield one agent's gradients, each of unit variance in every coordinate."""
    fixed, velocity = random.standard_normal(_DIMENSIONS), np.zeros(_DIMENSIONS)
    while True:
        fresh = random.standard_normal(_DIMENSIONS)
        velocity = 0.9 * velocity + np.sqrt(1 - 0.9**2) * fresh
        yield {"white": fresh, "correlated": velocity, "heterogeneous": fixed}[noise]


def distance(num_agents: int, method: str, noise: Noise, units: int, seed: int) -> float:
    """Return the mean squared distance from the mean, a coordinate, over the second half of some units of time.

    A unit is a gradient of each agent, whose step size is 1. At twice the rate, every other averaging is followed by a
    gradient.
    """
    rate, accelerated = METHODS[method]
    algorithm = {"name": "ad-psgd", "acceleration": "acid"}
    settings = {"num_agents": num_agents, "topology": "ring", "links": [], "engine": "local", "algorithm": algorithm}
    config = load_config(settings | {"compute": {"law": {"name": "exponential", "mean": 1 / rate}}})
    network = build_network(config.topology, config.mixing, num_agents, 0)
    rows = PairPlanner(
        partners=divide(network, "ring").partners,
        num_steps=units * rate,
        compute=config.compute,
        links=(),
        clusters=(0,) * num_agents,
        seed=seed,
    )
    filled = with_acceleration(config).algorithm
    assert isinstance(filled, ADPSGD)
    acid = filled.acceleration if accelerated else ACiD(mixing_rate=0, twin_step=0.5)
    assert acid is not None
    assert acid.mixing_rate is not None
    assert acid.twin_step is not None
    gradients = [drawn(noise, np.random.default_rng([seed, agent])) for agent in range(num_agents)]
    x, twin = (np.zeros((num_agents, _DIMENSIONS)) for _ in range(2))
    clock, taken, found = np.zeros(num_agents), [0] * num_agents, []
    for row in rows:
        i, now = row.agent, row.end
        if row.kind == "passive":
            pair = [row.reads[0].neighbor, i]
            for k in pair:
                x[k], twin[k] = flowed(x[k], twin[k], acid.mixing_rate, now - clock[k])  # type: ignore[arg-type]
                clock[k] = now
            apart = x[pair[0]] - x[pair[1]]
            x[pair] -= 0.5 * np.stack([apart, -apart])
            twin[pair] -= acid.twin_step * np.stack([apart, -apart])
            continue
        x[i], twin[i] = flowed(x[i], twin[i], acid.mixing_rate, now - clock[i])  # type: ignore[arg-type]
        clock[i] = now
        taken[i] += 1
        if taken[i] % rate == 0:
            gradient = next(gradients[i])
            x[i], twin[i] = x[i] - gradient, twin[i] - gradient
        if units / 2 < now < units * 0.9:
            found.append(float(((x - x.mean(0)) ** 2).mean()))
    return float(np.mean(found))
