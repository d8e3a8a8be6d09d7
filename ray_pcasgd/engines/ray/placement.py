"""Where agents run: one placement group for all of them, or a clear error."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from ray_pcasgd.engines.base import RunError
from ray_pcasgd.engines.ray.settings import RaySettings


class Reservation(NamedTuple):
    """Room for all agents of a run."""

    group: PlacementGroup
    first: int
    """The first agent's bundle."""
    bundle: dict[str, float]
    is_own: bool
    """Whether the group is the run's, and goes with it; not where the caller (a trial of a sweep) has brought it."""


def bundle_of(settings: RaySettings, num_agents: int, total: Mapping[str, float]) -> dict[str, float]:
    """Return what each agent is given of a cluster with these resources in all."""
    cpus = settings.cpus_per_agent
    if cpus is None:
        cpus = min(1.0, int(100 * total.get("CPU", 1.0) / num_agents) / 100)
    bundle = {"CPU": cpus, "GPU": settings.gpus_per_agent, **settings.resources_per_agent}
    return {name: amount for name, amount in bundle.items() if amount > 0} or {"CPU": 0.01}


def reserve(settings: RaySettings, num_agents: int) -> Reservation:
    """Return a placement group with one bundle for each agent: the caller's own where it fits, else a new one.

    Raises:
        RunError: the cluster did not have the resources within ``placement_seconds``.

    """
    total = ray.cluster_resources()
    bundle = bundle_of(settings, num_agents, total)
    brought = ray.util.get_current_placement_group()
    if brought is not None and brought.bundle_specs[-num_agents:] == [bundle] * num_agents:
        return Reservation(brought, len(brought.bundle_specs) - num_agents, bundle, is_own=False)
    group = placement_group([bundle] * num_agents, strategy=settings.placement_strategy)
    try:
        ray.get(group.ready(), timeout=settings.placement_seconds)
    except GetTimeoutError:
        remove_placement_group(group)
        raise RunError(_shortage(settings, bundle, num_agents, total)) from None
    return Reservation(group, 0, bundle, is_own=True)


def _shortage(settings: RaySettings, bundle: dict[str, float], num_agents: int, total: dict[str, Any]) -> str:
    available = ray.available_resources()
    asked = ", ".join(f"{amount * num_agents:g} {name}" for name, amount in bundle.items())
    has = ", ".join(f"{available.get(name, 0):g} of {total.get(name, 0):g} {name}" for name in bundle)
    return (
        f"engine: {num_agents} agents ask for {asked} in all (engine.cpus_per_agent, engine.gpus_per_agent); the "
        f"cluster has {has} free, and did not get more within engine.placement_seconds = {settings.placement_seconds:g}"
    )
