"""From another process to a run on its way: its status, and an operator's commands."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from ray_pcasgd.commands import Command
from ray_pcasgd.engines.ray.crew import SCHEDULER_NAME, Identity
from ray_pcasgd.engines.ray.placement import join_cluster
from ray_pcasgd.reaching import NotRunningError, address_of, location_of


def status_of(run: str, address: str | None = None) -> dict[str, Any]:
    """Return the status of a run on its way, whose folder is given; see ``status.RunStatus.view``.

    Raises:
        NotRunningError: it is not on its way, or its cluster cannot be reached.

    """
    with _scheduler_of(run, address) as scheduler:
        answer: Any = scheduler.status.remote()
        status: dict[str, Any] = ray.get(answer, timeout=30)
        return status


def tell(run: str, command: Command, address: str | None = None) -> str:
    """Hand a command to a run on its way, and return what it says to it.

    Raises:
        NotRunningError: it is not on its way, or its cluster cannot be reached.

    """
    with _scheduler_of(run, address) as scheduler:
        answer: Any = scheduler.command.remote(command)
        said: str = ray.get(answer, timeout=90)
        return said


@contextmanager
def _scheduler_of(run: str, address: str | None) -> Iterator[ActorHandle[Any]]:
    address = address_of(run, address)
    is_own = not ray.is_initialized()
    try:
        if is_own:
            join_cluster(address, logging.ERROR)
        namespace = Identity("", location_of(run)).namespace
        actors = [one for one in ray.util.list_named_actors(all_namespaces=True) if one["namespace"] == namespace]
        names = [one["name"] for one in actors if one["name"].startswith(SCHEDULER_NAME)]
        if not names:
            raise NotRunningError(f"{run}: is not on its way")
        yield ray.get_actor(max(names, key=_number), namespace=namespace)
    except (ConnectionError, RayError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise NotRunningError(f"{run}: is not on its way ({reason})") from error
    finally:
        if is_own:
            ray.shutdown()


def _number(name: str) -> int:
    """Return which of several actors it is that have taken each other's place."""
    digits = "".join(filter(str.isdecimal, name))
    return int(digits) if digits else 1
