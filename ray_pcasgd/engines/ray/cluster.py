"""The cluster that a run is on: one that is running already, or one that the run starts on this machine."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._common.utils import get_default_ray_temp_dir, get_system_memory
from ray._private import ray_constants
from ray.job_config import JobConfig

from ray_pcasgd.base.text import one_line
from ray_pcasgd.engines.base import Cluster
from ray_pcasgd.engines.ray.discovery import is_loopback
from ray_pcasgd.engines.ray.forkserver.owner import fork_server, forks
from ray_pcasgd.engines.ray.joining import ClusterError, open_address
from ray_pcasgd.engines.ray.settings import RaySettings

_LONGEST_REASON = 300
"""Characters that are shown of what Ray says."""


class RayCluster(Cluster):
    """The cluster of a run: the one that ``address`` or ``RAY_ADDRESS`` names, or one that the run starts here."""

    def __init__(self, settings: RaySettings) -> None:
        self._settings = settings
        self.is_own = False

    def prepare(self) -> None:
        """Start the fork server, where it is known already that agents will be forked; see ``Cluster.prepare``."""
        if self._forks(self.is_started_here):
            fork_server(self._settings)

    def join(self) -> None:
        """Join the cluster, or start it, unless this process is on one already; see ``Cluster.join``."""
        if not ray.is_initialized():
            subject, address = self._named()
            if address:
                join_cluster(subject, address, logging.WARNING, self._settings)
            else:
                _start(self._settings)
                self.is_own = True
        self.agent_options = {}
        if self._forks(self.is_own):
            self.agent_options = {"runtime_env": {"py_executable": fork_server(self._settings).interpreter}}

    def _forks(self, is_own: bool) -> bool:
        """Return whether agents are forked: on a cluster that is this machine alone, unless the job has own ways."""
        if not forks(self._settings):
            return False
        return is_own or (ray.is_initialized() and _is_this_machine() and _starts_plainly())

    @property
    def is_started_here(self) -> bool:
        """Whether ``join`` would start a cluster on this machine."""
        return not ray.is_initialized() and not self._named()[1]

    def _named(self) -> tuple[str, str | None]:
        """Return what names the address of the cluster to join, and the address; none where the run starts its own."""
        subject, address = "engine.address", self._settings.address
        if not address:
            subject, address = "RAY_ADDRESS", os.environ.get("RAY_ADDRESS")
        return subject, None if address == "local" else address

    def leave(self) -> None:
        """End the cluster if it was started here."""
        if self.is_own:
            self.is_own = False
            ray.shutdown()


def _start(settings: RaySettings) -> None:
    """Start a cluster on this machine.

    Anybody who can talk to a cluster can run code on it, so this one listens on loopback alone, and asks for the token
    that Ray keeps for its user, about which Ray would print a warning.
    """
    gigabytes = get_system_memory() / 1e9
    if settings.object_store_gigabytes > gigabytes:
        raise ValueError(
            f"engine.object_store_gigabytes = {settings.object_store_gigabytes:g}: allowed are values up to "
            f"{gigabytes:.3g}, this machine's memory"
        )
    _listen(on_loopback=True)
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    with _private_token(), _naming_the_store(settings):
        _init(
            "Ray does not start",
            address="local",
            object_store_memory=int(settings.object_store_gigabytes * 1e9),
            include_dashboard=settings.dashboard,
            log_to_driver=settings.log_to_driver,
            logging_level=logging.INFO if settings.dashboard else logging.WARNING,
            logging_config=_logging_config(settings),
        )


def _is_this_machine() -> bool:
    return [node["Alive"] for node in ray.nodes()].count(True) == 1


def _starts_plainly() -> bool:
    """Return whether this process is a driver whose job says nothing of how its workers start."""
    context: Any = ray.get_runtime_context()
    is_driver: bool = context.worker.mode != ray.WORKER_MODE
    return is_driver and set(context.runtime_env) <= {"env_vars", "config"}


@contextmanager
def _naming_the_store(settings: RaySettings) -> Iterator[None]:
    """Name the setting where Ray refuses it."""
    try:
        yield
    except ClusterError as error:
        if "object_store_memory" not in str(error.__cause__):
            raise
        raise ValueError(
            f"engine.object_store_gigabytes = {settings.object_store_gigabytes:g}: leaves the agents no memory; "
            "allowed is less"
        ) from error


@contextmanager
def _private_token() -> Iterator[None]:
    """Keep other users from reading the token that Ray makes for its user where there is no token yet."""
    token = Path.home() / ".ray" / "auth_token"
    was_there = token.exists()
    try:
        yield
    finally:
        if not was_there:
            with contextlib.suppress(OSError):
                token.chmod(0o600)


def join_cluster(subject: str, address: str, logging_level: int, settings: RaySettings | None = None) -> None:
    """Join a cluster, which may be another process's own on this machine; ``subject`` has named its address.

    Raises:
        ValueError: it is not the address of a cluster.
        ClusterError: no cluster answers there, or it does not let this user in.

    """
    settings = settings or RaySettings()
    there = open_address(subject, address)
    _listen(on_loopback=is_loopback(there))
    _init(
        f"{subject} = {address!r}: the cluster cannot be joined",
        address=there,
        log_to_driver=settings.log_to_driver,
        logging_level=logging_level,
        logging_config=_logging_config(settings),
    )


class Known(list[str]):
    """Where Ray's workers look for modules: in the same places as this process, and not also in its directory."""

    def extend(self, places: Iterable[str]) -> None:
        """Take in those of Ray's places in which this process looks."""
        super().extend(place for place in places if place in sys.path or "" in sys.path)


def _init(failing: str, **options: Any) -> None:
    job = JobConfig()
    job._py_driver_sys_path = Known()
    try:
        ray.init(job_config=job, **options)
    except Exception as error:  # Ray's parts raise whatever they do
        ray.shutdown()
        where = f"; Ray's files are in {get_default_ray_temp_dir()} (RAY_TMPDIR)" if _is_about_files(error) else ""
        raise ClusterError(f"{failing}: {one_line(error, _LONGEST_REASON)}{where}") from error


def _is_about_files(error: Exception) -> bool:
    return isinstance(error, OSError) and not isinstance(error, ConnectionError)


def _logging_config(settings: RaySettings) -> Any:
    return ray.LoggingConfig(encoding="JSON", log_level="INFO") if settings.log_format == "json" else None


def _listen(on_loopback: bool) -> None:
    """Let Ray's processes listen on the loopback address alone, as they do by themselves on a desktop's system, or not.

    Ray has no setting for it on Linux, where it takes the machine's outer address; this is what its own switch between
    the two does, for the processes that it starts, and for this one, which has read the switch already.
    """
    if on_loopback:
        os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    else:
        os.environ.pop(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, None)
    ray_constants.ENABLE_RAY_CLUSTER = not on_loopback
