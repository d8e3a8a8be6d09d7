"""Runs a rule over a scenario: the bookkeeping that an agent does, in its plainest form."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ray_pcasgd.records import Own, Reads
from ray_pcasgd.rules.base import Probe, Rule
from tests.unit.scenarios import Link, Scenario


class Trajectory(NamedTuple):
    weights: list[list[Tensor]]
    """By version and agent."""
    measures: list[list[dict[str, float]]]
    """By step and agent."""


def run_rule(rule: Rule, scenario: Scenario, dtype: torch.dtype = torch.float64) -> Trajectory:
    """Run every agent for every step of the scenario, all in step.

    A rule that combines first is handed zeros for its direction, and takes the agent's step from what it has combined.
    """

    def tensor(values: object) -> Tensor:
        return torch.as_tensor(values, dtype=dtype)

    num_agents = len(scenario.start)
    versions = [[tensor(row) for row in scenario.start]]
    directions: list[list[Tensor]] = []
    states = [rule.init(versions[0][i], len(scenario.links[0][i])) for i in range(num_agents)]
    measures: list[list[dict[str, float]]] = []

    def direction(i: int, step: int, x: Tensor) -> Tensor:
        return tensor(scenario.curvature[i]) * (x - tensor(scenario.target[i])) + tensor(scenario.noise[step, i])

    for step, links in enumerate(scenario.links):
        directions.append([direction(i, step, versions[step][i]) for i in range(num_agents)])
        updates = []
        for i in range(num_agents):
            own = Own(
                versions[step][i],
                torch.zeros_like(versions[step][i]) if rule.combines_first else directions[step][i],
                tensor(scenario.mixing[i, i]),
                tensor(scenario.step_size),
                {name: tensor(value) for name, value in rule.coefficients(i, step).items()},
                # All of a difference travels.
                public=(versions[step][i],) if rule.sends_differences else (),
            )
            reads = _reads(links[i], [v[i] for v in versions], versions, directions, tensor(scenario.mixing[i]), rule)
            probe = _probe(tensor(scenario.curvature[i]), tensor(scenario.probe_target[step, i]))
            states[i], update = rule.step(states[i], own, reads, probe if rule.probes_at(step) else None)
            if rule.combines_first:
                taken = rule.displacement_factor * scenario.step_size * direction(i, step, update.weights)
                update = update._replace(weights=update.weights - taken)
            updates.append(update)
        versions.append([update.weights for update in updates])
        measures.append([{name: value.item() for name, value in update.measures.items()} for update in updates])
    return Trajectory(versions, measures)


def _reads(
    links: list[Link],
    path: list[Tensor],
    versions: list[list[Tensor]],
    directions: list[list[Tensor]],
    row: Tensor,
    rule: Rule,
) -> Reads:
    step = len(path) - 1

    def drift(age: int) -> Tensor:
        if rule.drift_kind == "before":
            return path[step - age] - path[max(0, step - 2 * age)]
        window = path[step - age : step]
        return torch.stack([x - window[0] for x in window]).mean(0) if window else torch.zeros_like(path[0])

    return Reads(
        tuple(versions[step - link.age][link.neighbor] for link in links),
        tuple(directions[step - link.age][link.neighbor] for link in links),
        tuple(drift(link.age) for link in links),
        row[[link.neighbor for link in links]],
        torch.tensor([link.staleness for link in links], dtype=row.dtype),
        torch.tensor([link.age for link in links], dtype=row.dtype),
        torch.tensor([link.reliable for link in links]),
    )


def _probe(curvature: Tensor, target: Tensor) -> Probe:
    return lambda candidates: torch.stack([(curvature * (x - target) ** 2).sum() / 2 for x in candidates])


def spread(trajectory: Trajectory, point: Tensor) -> float:
    """Return the largest distance, in any parameter, of any agent's last version from a point."""
    return max(math.inf if not x.isfinite().all() else (x - point).abs().max().item() for x in trajectory.weights[-1])
