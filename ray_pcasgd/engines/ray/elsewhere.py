"""An actor on the driver's node that runs a function in the background of the driver."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_pcasgd.engines.base import Elsewhere, GoneError
from ray_pcasgd.engines.ray.lost import first_line
from ray_pcasgd.engines.ray.naming import Identity
from ray_pcasgd.engines.ray.serialization import compact

_DEVICES = "CUDA_VISIBLE_DEVICES"


class _Caller:
    """Makes a function where it lives, and calls it."""

    def __init__(self, make: Callable[[], Callable[..., Any]], threads: int, devices: str | None) -> None:
        # As the driver sees them: Ray hides GPUs from what has reserved none. It counts until CUDA is first used.
        os.environ.pop(_DEVICES, None)
        if devices is not None:
            os.environ[_DEVICES] = devices
        torch.set_num_threads(threads)
        self._function = make()

    def call(self, *arguments: Any) -> Any:
        """Return what the function returns."""
        return self._function(*arguments)


class RayElsewhere(Elsewhere):
    """An actor on the driver's node, with as many threads and the same GPUs as the driver has: the same bits.

    It reserves nothing, as the driver itself does not.
    """

    def __init__(
        self, identity: Identity, make: Callable[[], Callable[..., Any]], agent_options: Mapping[str, Any]
    ) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "scheduling_strategy": here, **agent_options}
        arguments = (compact(make), torch.get_num_threads(), os.environ.get(_DEVICES))
        self._actor: Any = identity.actor(f"{identity.run} evaluation", ray.remote(_Caller), options, *arguments)
        self._job = _job()

    def call(self, *arguments: Any) -> Any:
        """Begin a call, and return what ``answer`` knows it by."""
        return self._actor.call.remote(*arguments)

    def answer(self, call: Any, wait: bool) -> tuple[Any] | None:
        """Return what a call has returned; see ``Elsewhere.answer``."""
        if _job() != self._job:
            raise GoneError("its cluster was left")
        try:
            if not wait and not ray.wait([call], timeout=0)[0]:
                return None
            return (ray.get(call),)
        except RayError as error:
            raise GoneError(first_line(error)) from error

    def close(self) -> None:
        """End the actor."""
        if _job() == self._job:
            ray.kill(self._actor)


def _job() -> str | None:
    """Return what this process is to the cluster that it is on, if it is on any."""
    return ray.get_runtime_context().get_job_id() if ray.is_initialized() else None
