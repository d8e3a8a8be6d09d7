"""Which of Ray's errors mean a loss: of an actor, its node, its memory, or the objects that it held."""

from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RpcError,
    WorkerCrashedError,
)

from ray_pcasgd.engines.messages import LostError

GONE = (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError, LocalRayletDiedError, RpcError)
"""The process that was called is gone: killed, by Ray's memory monitor too, or lost together with its node."""

LOST = (*GONE, ObjectLostError, LostError)
"""That, or an object was lost with its owner."""


def first_line(error: BaseException) -> str:
    """Return an error's first line, or its type where it has no message."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
