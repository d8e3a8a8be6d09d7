"""Settings of the ray engine."""

from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ray_pcasgd.base.settings import Settings, refuse_of_strangers
from ray_pcasgd.base.text import one_line
from ray_pcasgd.engines.ray.discovery import host_and_port

TransportName = Literal["auto", "shared", "object-store"]


class RaySettings(Settings):
    """The ray engine: every agent an actor of a Ray cluster."""

    name: Literal["ray"] = "ray"
    mode: Literal["planned", "live"] = "planned"
    """``planned``: agents wait for exactly the versions that the schedule names, so results do not depend on the
    machine. ``live``: agents read what has come, over the real network; what they read is recorded."""
    cpus_per_agent: float | None = Field(None, ge=0)
    """CPUs that each agent reserves; not given: an equal share of the cluster's, at most 1."""
    gpus_per_agent: float = Field(0.0, ge=0, le=1)
    """GPUs that each agent reserves: 0, a fraction or 1. Agents with a GPU train on it; none trains on several."""
    gpus_per_server: float | None = Field(None, ge=0, le=1)
    """GPUs that each server reserves, for algorithms that have servers; not given: as many as an agent. With 0, servers
    compute on CPUs, while their workers train on GPUs."""
    accelerator_type: str | None = None
    """Type of the GPUs that agents ask for, as Ray names it, `A100` for instance: the cluster may have others."""
    resources_per_agent: dict[str, float] = Field(default_factory=dict)
    """Custom resources that each agent reserves."""
    label_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes that agents may run on, in Ray's words: a value, `!value`, `in(a, b)` or `!in(a, b)`."""
    placement_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """How Ray spreads the agents over nodes."""
    placement_seconds: float | None = Field(None, gt=0)
    """Seconds to wait for the cluster to have the resources, before the run is given up, also after a node was lost.
    Not given: as long as it takes on a cluster that was there before the run, which may be starting nodes for it, with
    a line every 30 seconds on what is missing; and 60 on one that the run starts on this machine."""
    message_seconds: float = Field(300.0, gt=0)
    """Longest wait of an agent for one message, in seconds, times the longest ``local_steps``: after it, a planned run
    counts as interrupted, and a live agent goes on without the neighbor. An agent that has not answered for twice as
    long counts as lost."""
    inline_bytes: int = Field(512 * 1024, ge=0, le=3 * 1024 * 1024)
    """Between hosts, arrays of up to this many bytes (4 a parameter) travel inside their message, which takes half a
    round trip; larger ones go through Ray's object store, which takes three more round trips, but less of one machine's
    time. Raise it where links are slow."""
    transport: TransportName = "auto"
    """How agents on one host read each other's versions. ``auto``: from memory that they share, where the host has it
    (Linux): each version is copied once for all of them, and no call is made. ``shared``: the same, and a host without
    it ends the run. ``object-store``: by Ray's calls and its object store, as between hosts. Results are the same."""
    silent_steps: float | None = Field(20.0, gt=0)
    """Live, without a barrier: a neighbor is silent if no message of it has come for this number of its own steps, and
    for at least a second. It is not read until a message comes, and the reader has its mixing weight meanwhile; null:
    it is read however old its version is. Injected delays do not make a neighbor silent."""
    max_lag: float | None = Field(0.05, ge=0, lt=1)
    """Live, without a barrier, except push-sum: a neighbor that is behind the reader by more than this share of the
    reader's steps, and by more than 2 steps, is not read until it has caught up, and the reader has its mixing weight
    meanwhile: its weights, even fresh ones, would hold the reader back; null: it is read however far it is behind."""
    threads: int = Field(1, ge=1, le=1024)
    """Threads that torch uses within one operation of one agent."""
    preload: Literal["auto", "never"] = "auto"
    """How agents' processes start. ``auto``: a process that has imported torch is forked for each, where the cluster is
    this machine alone (Linux) and agents have no GPU; they start plainly else. Forked ones also keep the memory that
    they free, for the next step. ``never``: each imports torch by itself, which takes seconds of CPU. Results are the
    same."""
    join_later: tuple[int, ...] = ()
    """Live: agents that do not start with the run, but later by ``ray-pcasgd join``."""
    address: str | None = None
    """Address of a running cluster, ``host:port``, or ``auto`` for the one that you run on this machine; not given:
    the one that the environment variable RAY_ADDRESS names, else the run starts its own cluster on this machine and
    ends it with the run; ``local``: it starts its own in any case."""
    object_store_gigabytes: float = Field(2.0, gt=0.1)
    """Memory of Ray's object store, in a cluster that the run starts: for data, states and messages that agents do not
    read from memory that they share (``transport``); what does not fit is spilled to disk. Ray's own choice, 30 % of
    the machine's memory, is slower: it takes long until memory is used a second time."""
    dashboard: bool = False
    """Whether a cluster that the run starts has Ray's dashboard, at http://127.0.0.1:8265; it takes some seconds to
    start, and asks for Ray's token, which ``ray get-auth-token`` prints."""
    log_format: Literal["text", "json"] = "text"
    """``json``: the run's events, and all log lines of its processes, are JSON with run, agent, node and job."""
    log_to_driver: bool = False
    """Whether the agents' standard output is shown."""

    @property
    def device(self) -> str:
        """Where agents compute: of the GPUs that Ray shows to each, the first one."""
        return "cuda" if self.gpus_per_agent else "cpu"

    @model_validator(mode="after")
    def _types_are_of_gpus(self) -> Self:
        if self.accelerator_type is not None and not self.gpus_per_agent:
            raise ValueError(
                f"accelerator_type = {self.accelerator_type!r}: allowed with gpus_per_agent = 0, no GPU, is null"
            )
        return self

    @field_validator("label_selector")
    @classmethod
    def _labels(cls, value: dict[str, str]) -> dict[str, str]:
        if value:
            from ray._private.label_utils import validate_label_selector  # Ray takes a second to import

            reason = validate_label_selector(value)
            if reason:
                raise ValueError(f"label_selector = {value}: {one_line(reason, 300)}")
        return value

    @field_validator("address")
    @classmethod
    def _of_a_cluster(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            refuse_of_strangers(value, "joining a cluster runs its code here", info)
            if value not in ("auto", "local"):
                host_and_port("address", value)
        return value
