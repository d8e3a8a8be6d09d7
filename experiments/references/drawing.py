"""Random runs: graphs, delays, speeds and seeds, for each family of methods."""

from typing import Any

import numpy as np

from ray_pcasgd.base.randomness import generator
from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.settings.loading import load_config
from tests.references.peers import SMALL, regression
from tests.unit.scenarios import random_edges

Settings = dict[str, Any]


def compute_of(draw: np.random.Generator) -> Settings:
    """Return a law of compute times, and how much slower some agents are."""
    laws: list[Settings] = [
        {"name": "exponential", "mean": 1.0},
        {"name": "uniform", "low": 0.5, "high": 1.5},
        {"name": "shifted-exponential", "shift": 0.5, "mean": 0.5},
    ]
    return {"law": laws[draw.integers(len(laws))], "stragglers": {int(draw.integers(2)): 1 + 2 * float(draw.random())}}


def in_seconds(draw: np.random.Generator, most: float = 2.0) -> list[Settings]:
    """Return links of all agents that are late by seconds, or by none."""
    mean = float(draw.uniform(0.1, most))
    laws: list[Any] = [mean, {"name": "exponential", "mean": mean}, {"name": "uniform", "low": 0.0, "high": 2 * mean}]
    return [{"delay": laws[draw.integers(len(laws))], "unit": "seconds"}]


def late(draw: np.random.Generator) -> list[Settings]:
    """Return links that are late by steps or by seconds, between all agents or between clusters."""
    if draw.random() < 0.5:
        return in_seconds(draw)
    most = int(draw.integers(1, 7))
    laws: list[Any] = [most, {"name": "uniform", "low": 0, "high": most}]
    where = {"between": "clusters"} if draw.random() < 0.5 else {}
    return [{"delay": laws[draw.integers(2)], "unit": "steps", **where}]


def peers(seed: int, *, least: int = 3, most: int = 6, graph: str = "any") -> Settings:
    """Return a run of peers: ``graph`` is ``any`` connected one, ``complete``, ``directed``, or the method's."""
    draw = generator(seed, "references")
    number = int(draw.integers(least, most + 1))
    found: Settings = {"num_agents": number, "seed": seed, "links": late(draw), "compute": compute_of(draw)}
    found["clusters"] = int(draw.integers(1, 3))
    if graph == "any":
        found["topology"] = {"name": "edges", "edges": [list(edge) for edge in random_edges(draw, number)]}
    elif graph == "directed":
        found["topology"] = ["directed-ring", "directed-exponential", "complete"][draw.integers(3)]
    elif graph != "own":
        found["topology"] = graph
    return found


def servers(seed: int, *, least: int = 2, most: int = 6) -> Settings:
    """Return a run of workers and a server."""
    draw = generator(seed, "references")
    number = int(draw.integers(least, most + 1))
    links = in_seconds(draw, 1.5) if draw.random() < 0.6 else []
    return {"num_agents": number, "seed": seed, "links": links, "compute": compute_of(draw), "clusters": 1}


def planned(settings: Settings) -> Plan:
    """Return the plan of a small run of linear regression, of data that its seed tells."""
    tree = {name: value for name, value in SMALL.items() if name not in ("links", "compute")}
    return make_plan(load_config({**tree, "task": regression(settings["seed"]), **settings}))
