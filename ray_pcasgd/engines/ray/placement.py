"""Where agents run: one placement group for all of them, for which a run waits as long as it may."""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import NamedTuple

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from ray_pcasgd.engines.base import RunError
from ray_pcasgd.engines.ray.autoscaling import starting_nodes
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.records import Event

OWN_CLUSTER_SECONDS = 60.0
"""Longest wait on a cluster that the run has started: it gets no more than this machine has."""

FIRST_LINE_SECONDS = 5.0
"""When a run first says that it waits."""
LINE_SECONDS = 30.0
"""How often it says so again."""

_POLL_SECONDS = 1.0

Bundle = dict[str, float]
"""What one actor reserves."""


class Reservation(NamedTuple):
    """Room for all agents of a run."""

    group: PlacementGroup
    first: int
    """The first agent's bundle."""
    bundles: Sequence[Bundle]
    """Each agent's."""
    is_own: bool
    """Whether the group is the run's, and goes with it; not where the caller (a trial of a sweep) has brought it."""


def bundles_of(
    settings: RaySettings, num_agents: int, num_servers: int, cluster_resources: Mapping[str, float]
) -> list[Bundle]:
    """Return what each agent, and behind them each server, is given of a cluster with these resources in all."""
    cpus = settings.cpus_per_agent
    if cpus is None:
        cpus = min(1.0, int(100 * cluster_resources.get("CPU", 1.0) / (num_agents + num_servers)) / 100)
    gpus = settings.gpus_per_agent
    agent = _bundle(settings, cpus, gpus)
    server = _bundle(settings, cpus, gpus if settings.gpus_per_server is None else settings.gpus_per_server)
    return [agent] * num_agents + [server] * num_servers


def _bundle(settings: RaySettings, cpus: float, gpus: float) -> Bundle:
    amounts = {"CPU": cpus, "GPU": gpus, **settings.resources_per_agent}
    # A server without a GPU needs no machine that has one of that type.
    if settings.accelerator_type is not None and gpus:
        amounts[f"accelerator_type:{settings.accelerator_type}"] = 0.001
    return {name: amount for name, amount in amounts.items() if amount > 0} or {"CPU": 0.01}


def reserve(
    settings: RaySettings,
    name: str,
    num_agents: int,
    num_servers: int,
    longest_seconds: float | None,
    is_left: Callable[[], bool] = lambda: False,
) -> Generator[Event, None, Reservation]:
    """Return a placement group with one bundle for each agent: the caller's own where it fits, else a new one.

    Args:
        settings: What agents reserve.
        name: The new group's.
        num_agents: How many agents there are.
        num_servers: How many servers there are besides them.
        longest_seconds: How long the cluster may take to have the resources; ``None``: as long as it likes, and an
            event from time to time says what is missing.
        is_left: Whether the run is to be left meanwhile.

    Raises:
        RunError: the cluster did not have the resources in time.
        KeyboardInterrupt: the run is left.

    """
    bundles = bundles_of(settings, num_agents, num_servers, ray.cluster_resources())
    brought = ray.util.get_current_placement_group()
    if brought is not None and brought.bundle_specs[-len(bundles) :] == bundles:
        return Reservation(brought, len(brought.bundle_specs) - len(bundles), bundles, is_own=False)
    selectors = [settings.label_selector] * len(bundles) if settings.label_selector else None
    group = placement_group(bundles, strategy=settings.placement_strategy, name=name, bundle_label_selector=selectors)
    try:
        yield from _waiting(group, settings, bundles, longest_seconds, is_left)
    except BaseException:
        remove_placement_group(group)
        raise
    return Reservation(group, 0, bundles, is_own=True)


def _waiting(
    group: PlacementGroup,
    settings: RaySettings,
    bundles: Sequence[Bundle],
    longest_seconds: float | None,
    is_left: Callable[[], bool],
) -> Generator[Event, None, None]:
    """Wait until a group is there, and say from time to time what it waits for."""
    began, said_at = time.monotonic(), 0.0
    while True:
        seconds = time.monotonic() - began
        left = _POLL_SECONDS if longest_seconds is None else min(_POLL_SECONDS, longest_seconds - seconds)
        if group.wait(max(left, 0.0)):
            return
        if is_left():
            raise KeyboardInterrupt
        seconds = time.monotonic() - began
        if longest_seconds is not None and seconds >= longest_seconds:
            raise RunError(
                f"engine: {_asked(settings, bundles)}; {_there(bundles)}, and did not get more within "
                f"engine.placement_seconds = {longest_seconds:g}"
            )
        if seconds >= (said_at + LINE_SECONDS if said_at else FIRST_LINE_SECONDS):
            said_at = seconds
            detail = f"{_asked(settings, bundles)}; {_there(bundles)}{starting_nodes()}; the run waits for them"
            yield Event("waiting_for_resources", -1, -1, detail)


def _asked(settings: RaySettings, bundles: Sequence[Bundle]) -> str:
    totals: dict[str, float] = {}
    for bundle in bundles:
        for name, amount in bundle.items():
            totals[name] = totals.get(name, 0.0) + amount
    asked = ", ".join(f"{amount:g} {name}" for name, amount in totals.items())
    labels = ", ".join(f"{name} = {value}" for name, value in settings.label_selector.items())
    where = f" on nodes with {labels} (engine.label_selector)" if labels else ""
    return (
        f"{len(bundles)} agents ask for {asked} in all (engine.cpus_per_agent, engine.gpus_per_agent), by "
        f"engine.placement_strategy = {settings.placement_strategy}{where}"
    )


def _there(bundles: Sequence[Bundle]) -> str:
    available, total = ray.available_resources(), ray.cluster_resources()
    names = dict.fromkeys(name for bundle in bundles for name in bundle)
    has = ", ".join(f"{available.get(name, 0):g} of {total.get(name, 0):g} {name}" for name in names)
    nodes = sum(node["Alive"] for node in ray.nodes())
    return f"the cluster has {has} free on {nodes} node{'s' if nodes > 1 else ''}"
