"""From another process to a running run: its status, and an operator's commands; in both directions as JSON."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from ray_pcasgd.base.text import one_line
from ray_pcasgd.engines.live.commands import Command, encoded
from ray_pcasgd.engines.ray.cluster import join_cluster
from ray_pcasgd.engines.ray.discovery import Address, NotRunningError, address_of, location_of
from ray_pcasgd.engines.ray.joining import ClusterError
from ray_pcasgd.engines.ray.naming import Identity
from ray_pcasgd.engines.ray.status import viewed

_LONGEST_ANSWER = 2000


def status_of(run: str, at: Address | None = None) -> dict[str, Any]:
    """Return the status of a running run, given its folder, and its cluster where that is known; see ``RunView``.

    Raises:
        NotRunningError: it is not running, or its cluster cannot be reached.

    """
    with _scheduler_of(run, at) as scheduler:
        answer: Any = scheduler.status.remote()
        return viewed(ray.get(answer, timeout=30))


def send_command(run: str, command: Command, at: Address | None = None) -> str:
    """Hand a command to a running run, and return its answer.

    Raises:
        NotRunningError: it is not running, or its cluster cannot be reached.

    """
    with _scheduler_of(run, at) as scheduler:
        answer: Any = scheduler.command.remote(encoded(command))
        said = ray.get(answer, timeout=90)
        if not isinstance(said, str):
            raise ValueError(f"its answer is of type {type(said).__name__}; allowed is text")
        return one_line(said, _LONGEST_ANSWER)


@contextmanager
def _scheduler_of(run: str, at: Address | None) -> Iterator[ActorHandle[Any]]:
    is_own = not ray.is_initialized()
    try:
        if is_own:
            join_cluster(*(at or address_of(run)), logging.ERROR)
        identity = Identity(location_of(run))
        actors = ray.util.list_named_actors(all_namespaces=True)
        name = identity.newest_scheduler(one["name"] for one in actors if one["namespace"] == identity.namespace)
        if name is None:
            raise NotRunningError(f"{run}: is not running on that cluster")
        yield ray.get_actor(name, namespace=identity.namespace)
    except (ClusterError, ConnectionError, RayError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise NotRunningError(f"{run}: cannot be reached ({one_line(reason, _LONGEST_ANSWER)})") from error
    finally:
        if is_own:
            ray.shutdown()
