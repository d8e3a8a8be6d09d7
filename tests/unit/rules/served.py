"""Small planned runs with one server, whose workers take exponential times."""

from typing import Any

from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.settings.loading import load_config


def served(num_agents: int, num_steps: int, **algorithm: Any) -> dict[str, Any]:
    """Return the settings of a run with two evaluations."""
    return {
        "algorithm": {"name": "server", **algorithm},
        "num_agents": num_agents,
        "num_steps": num_steps,
        "evaluate_every": num_steps // 2,
        "links": [],
        "clusters": 1,
        "compute": {"law": {"name": "exponential", "mean": 1.0}},
        "task": {"model": {"hidden": [4]}},
        "engine": "local",
    }


def plan(settings: dict[str, Any]) -> Plan:
    """Return a run's plan."""
    return make_plan(load_config(settings))
