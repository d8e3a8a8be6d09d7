"""Settings of the ray engine."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from ray_pcasgd.reaching import host_and_port
from ray_pcasgd.settings import Settings, refuse_of_strangers


class RaySettings(Settings):
    """The ray engine: every agent an actor of a Ray cluster."""

    name: Literal["ray"] = "ray"
    mode: Literal["planned", "live"] = "planned"
    """``planned``: agents wait for exactly the versions that the schedule names, so results do not depend on the
    machine. ``live``: agents read what has come, over the real network; what they read is recorded."""
    cpus_per_agent: float | None = Field(None, ge=0)
    """CPUs that each agent reserves; not given: an equal share of the cluster's, at most 1."""
    gpus_per_agent: float = Field(0.0, ge=0)
    """GPUs that each agent reserves; may be a fraction. Agents with a GPU train on it."""
    resources_per_agent: dict[str, float] = Field(default_factory=dict)
    """Custom resources that each agent reserves."""
    placement_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """How Ray spreads the agents over nodes."""
    placement_seconds: float = Field(60.0, gt=0)
    """How long to wait for the cluster to have the resources, before the run is given up."""
    message_seconds: float = Field(300.0, gt=0)
    """Longest wait of an agent for one message: after it, a planned run is taken for interrupted, and a live agent goes
    on without the neighbor. An agent that has not answered for twice as long is taken for lost."""
    inline_bytes: int = Field(512 * 1024, ge=0, le=3 * 1024 * 1024)
    """Arrays of so many bytes at most (4 a parameter) travel inside their message, there in half a round trip; larger
    ones through Ray's object store, which takes three round trips more, and on one machine less of its time. Raise it
    where links are slow."""
    silent_steps: float | None = Field(20.0, gt=0)
    """Live, without a barrier: a neighbor of whom nothing has come for so many of its own steps, and for a second at
    least, is not read, and its mixing weight is the reader's own, until something comes; null: it is read however old
    it gets. Injected delays do not count: late messages come all the same."""
    max_lag: float | None = Field(0.05, ge=0, lt=1)
    """Live, without a barrier, but for push-sum: a neighbor that has taken fewer steps than the reader, by this share
    and by more than 2, is not read until it has caught up, and its mixing weight is the reader's own: its weights,
    however fresh, would hold the reader back; null: it is read however far it is behind."""
    threads: int = Field(1, ge=1, le=1024)
    """Threads that torch uses within one operation of one agent."""
    join_later: tuple[int, ...] = ()
    """Live: agents that are not started with the run, but by ``ray-pcasgd join``."""
    address: str | None = None
    """Address of a running cluster, ``host:port``, or ``auto`` for the one that you run on this machine; not given:
    what the environment variable RAY_ADDRESS names, or a cluster of its own here, which ends with the run; ``local``:
    one of its own in any case."""
    object_store_gigabytes: float = Field(2.0, gt=0.1)
    """Shared memory for messages, in a cluster of its own; what does not fit is spilled to disk. Ray's own choice, 30 %
    of the machine, is slower: it takes long until memory that was touched before is used again."""
    dashboard: bool = False
    """Whether a cluster of its own has Ray's dashboard, at http://127.0.0.1:8265; it takes some seconds to start, and
    asks for Ray's token, which ``ray get-auth-token`` prints."""
    log_format: Literal["text", "json"] = "text"
    """``json``: the run's events, and all log lines of its processes, are JSON with run, agent, node and job."""
    log_to_driver: bool = False
    """Whether the agents' standard output is shown."""

    @field_validator("address")
    @classmethod
    def _of_a_cluster(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            refuse_of_strangers(value, "who joins a cluster runs its code", info)
            if value not in ("auto", "local"):
                host_and_port("address", value)
        return value
