"""All settings of a run as one tree; each layer defines its own part."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from ray_pcasgd.agents.attacks import Faults
from ray_pcasgd.agents.clipping import GradientClipping
from ray_pcasgd.agents.local_steps import LocalSteps
from ray_pcasgd.agents.optimizer import SGD, Optimizer
from ray_pcasgd.agents.reliability import ByStaleness, Reliability
from ray_pcasgd.agents.replica import MixedBuffers
from ray_pcasgd.agents.wire import Wire, both
from ray_pcasgd.base.curves import Curve
from ray_pcasgd.base.doors import Door
from ray_pcasgd.base.imports import CallableOrPath
from ray_pcasgd.base.settings import Settings, from_name
from ray_pcasgd.engines.local.engine import LocalSettings
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.rules import PCASGD, Algorithm
from ray_pcasgd.rules.adpsgd import ADPSGD
from ray_pcasgd.rules.base import Rule
from ray_pcasgd.rules.contract import check_declared
from ray_pcasgd.rules.diloco import DiLoCo
from ray_pcasgd.rules.elastic_averaging import ElasticAveraging
from ray_pcasgd.rules.fedasync import FedAsync
from ray_pcasgd.rules.fedglomo import FedGLOMO
from ray_pcasgd.rules.parameter_server import ParameterServer
from ray_pcasgd.rules.server import ServerRule
from ray_pcasgd.rules.svrg import SVRG
from ray_pcasgd.schedule.barrier import Barrier
from ray_pcasgd.schedule.delays import ComputeTimes, LinkDelay
from ray_pcasgd.schedule.hosts import Host
from ray_pcasgd.schedule.laws import ConstantLaw
from ray_pcasgd.schedule.membership import Membership
from ray_pcasgd.schedule.topology import Complete, Metropolis, Mixing, Topology
from ray_pcasgd.tasks.partition import IID, Partition
from ray_pcasgd.tasks.precision import Precision
from ray_pcasgd.tasks.task import Task

EngineSettings = Annotated[
    Annotated[RaySettings | LocalSettings, Field(discriminator="name")],
    BeforeValidator(from_name),
]


AnyAlgorithm = Annotated[
    Annotated[
        Algorithm | ADPSGD | ParameterServer | ElasticAveraging | DiLoCo | FedAsync | FedGLOMO | SVRG,
        Field(discriminator="name"),
        Door("rule", "ray_pcasgd.rules", (Rule, ServerRule), check_declared),
    ],
    BeforeValidator(from_name),
]
"""A rule between peers, averaging in pairs, or an algorithm with a server."""


class CheckpointSettings(Settings):
    """What is kept while a run is running: models, and the states from which it can go on."""

    every_evaluations: int | None = Field(None, ge=1)
    """Evaluations from one kept consensus model to the next; not given: only the last model is kept, as
    model.safetensors."""
    num_to_keep: int | None = Field(None, ge=1)
    """Number of models that are kept: the newest, or the best by ``score``; not given: all."""
    score: str | None = None
    """The averaged model's test metric by which the best are kept, for example accuracy; not given: the newest."""
    score_order: Literal["max", "min"] = "max"
    """Whether a higher (max) or a lower (min) score is better."""
    state_seconds: float | None = Field(60.0, ge=0)
    """Seconds after which the next state of the whole run is kept, from which it goes on after a failure and with
    ``train --resume``; later, but after half an hour at most, where keeping states would take over a fiftieth of the
    time; 0: at every opportunity; null: never. The value changes no bit of what a planned run computes."""
    states_to_keep: int = Field(2, ge=1)
    """Number of states that are kept, the newest; where one is damaged, the one before it is used."""


_SCHEMES = ("s3", "gs", "gcs", "file", "hdfs", "abfs", "abfss", "az", "hf", "http", "https")


class Config(Settings):
    """One run.

    The defaults are the embedded task: 8 agents in two clusters whose links are 10 steps late learn handwritten
    digits by PC-ASGD.
    """

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """Name of the run and of its folder, up to 100 characters; not given: the algorithm and a number."""
    storage_path: str = Field("runs", min_length=1)
    """Folder of the run folders; a local path, or a location that pyarrow knows (s3://, gs://)."""
    seed: int = Field(0, ge=0)
    """Seed of all random draws of the run."""
    num_agents: int = Field(8, ge=1)
    """Number of agents, N; with a server the number of its workers, P. Servers are the agents from N on."""
    num_steps: int = Field(300, ge=1)
    """Steps that each agent takes. A server has taken one step when it has taken as many mini-batches as there are
    workers. Step sizes, evaluations and delays in steps count these steps, so that methods meet at equal epochs."""
    num_epochs: float | None = Field(None, gt=0, le=1e9)
    """In place of num_steps, passes over the largest shard of an agent: the run takes ceil(num_epochs * samples of the
    largest shard / batch_size) steps, and notes them as its num_steps. Given together in one place, they are refused;
    behind those of a file, ``--set`` and Python take the place of either."""
    local_steps: LocalSteps = 1
    """H: steps that an agent takes on its own from one version to the next, so that it sends and reads once in H
    steps (local SGD): a number, a list of one number per agent, or ``{name: equal-time, most: 50}``, by which
    slower agents take fewer. Between peers, and with ``diloco``, ``fedasync`` and ``fedglomo``. Versions, staleness,
    ages, barriers and ``engine.silent_steps`` then count rounds of H steps, and so does ``engine.max_lag`` where rounds
    are of one length; num_steps, step sizes, evaluations, epochs and delays in steps count steps. Predictions and
    their stability bound see H times the step size. With a server, a worker's message is a round; staleness counts
    the server's updates."""
    overlap: bool | None = None
    """Whether the exchange of a round runs during the steps of the next one: an agent then reads at the end of its
    round, and steps from what it read with the round's displacement (combine-then-adapt). ``false``: it reads first,
    takes its steps from what came of that, and sends where they lead (adapt-then-combine): with ``d-psgd``, equal
    weights and nobody late, federated averaging. Between peers. Not given: as the algorithm is defined, ``false`` for
    slowmo, noloco, gasloc and choco-sgd, ``true`` for others."""
    batch_size: int = Field(16, ge=1, le=100_000)
    """Samples of one agent's mini-batch."""

    algorithm: AnyAlgorithm = PCASGD()
    """The algorithm: an update rule between peers, or one with a server."""
    step_size: Curve | None = None
    """eta: a number, or a curve over the agent's steps. Not given: the optimizer's usual one, and so it is in a replay
    under another optimizer: 0.1 for `sgd`, 0.001 for `adamw` and `adam`, 0.0001 for `lion`; for `torch`, the lr among
    its settings, or else the class's default."""
    warmup_steps: int = Field(0, ge=0)
    """Number of first steps over which the step size rises linearly."""
    optimizer: Optimizer = SGD()
    """The local optimizer, which turns gradients into directions. With a server, the server has it, unless workers keep
    their own weights."""
    gradient_clipping: GradientClipping | None = None
    """A bound on every mini-batch gradient, before anything else is made of it; not given: none."""
    accumulate: int = Field(1, ge=1)
    """Pieces, one after another, in which a mini-batch is computed where it does not fit into memory as a whole: the
    gradient is the whole batch's. Layers that look at a whole batch, as BatchNorm's, see a piece."""
    precision: Precision = "float32"
    """What forward passes, losses and evaluations compute with: ``float32``; ``bf16`` or ``fp16``, by PyTorch's
    autocast. Weights, gradients and all that is sent stay float32. fp16 is for GPUs alone; its losses are scaled as by
    ``torch.amp.GradScaler``, and a step whose scaled gradient is not finite moves nothing. Curvature is measured in
    float32."""

    wire: Annotated[Wire, BeforeValidator(both)] = Wire()
    """The formats in which agents send their weights and directions, ``ad-psgd`` excepted: ``bf16``, or
    ``{weights: bf16, directions: int8}``. What is read is what was decoded; an agent's own numbers stay float32. A
    server sends weights; what its workers send are directions, be it gradients or pseudo-gradients, or weights with
    ``elastic-averaging`` and ``fedasync``."""

    topology: Annotated[Topology, BeforeValidator(from_name)] = Complete()
    """Which agents are neighbors."""
    mixing: Annotated[Mixing, BeforeValidator(from_name)] = Metropolis()
    """The weights with which neighbors are averaged."""
    mixed_buffers: MixedBuffers = "statistics"
    """Which floating-point buffers of the model are averaged as its weights are: ``statistics``, those of normalization
    layers that are in training mode; ``all``; ``none``; or a list of names and patterns such as ``encoder.*_mean``, in
    which ``statistics`` may stand too. All other buffers, of any type, are each agent's own."""
    clusters: int | tuple[tuple[int, ...], ...] | None = None
    """Groups of agents that are near each other: their number (groups of successive agents, of almost equal sizes), or
    the groups themselves; not given: the ``regions``, or else two, or one where there is one agent. Servers are in the
    cluster of agent 0."""
    reliability: Annotated[Reliability, BeforeValidator(from_name)] = ByStaleness()
    """Which neighbors count as reliable, so that their weights are averaged as they are read."""

    compute: ComputeTimes = ComputeTimes()
    """How long the agents compute in a step."""
    links: tuple[LinkDelay, ...] = (LinkDelay(between="clusters", delay=ConstantLaw(value=10.0)),)
    """How late messages are, and how many bytes a second links carry; of entries that name the same link, the last one
    counts. Empty: no message is late."""
    regions: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    """Agents by the cloud region that they are in, in planned runs, such as ``{Oregon: [0, 1], Frankfurt: [2, 3]}``:
    links between regions are as late and as wide as somebody has measured between machines there, unless ``links`` says
    more of them. With regions, ``links`` is empty where it is not given, and ``clusters`` are the regions where these
    hold every agent. Empty: there are none."""
    hosts: tuple[Host, ...] = ()
    """Machines whose agents share an uplink and a downlink, in planned runs. A message to another machine passes
    through the uplink, the link, and after its delay the downlink; what comes to one of them first is transmitted
    first. Bytes are passed on as they come, so that the slowest of the three decides. Agents on none of them have no
    such limit."""
    membership: Membership = ()
    """Who is not there when: ``[{agent: 3, leaves: 20s, returns: 45s}]``, or ``{trace: availability.csv}``; in planned
    runs workers of a server, or peers that read all of their neighbors; in live runs any but servers, at wall-clock
    seconds since training began. An agent that leaves gives up its present step, live it ends it first; one that
    returns goes on as the mean of its neighbors, or with its servers' weights. Empty: all are there all the time."""
    barrier: Annotated[Barrier, BeforeValidator(from_name)] | None = None
    """Which neighbors an agent waits for; not given: the algorithm's own, ``all`` for d-psgd, ``none`` for most."""
    faults: Faults | None = None
    """Attackers: ``{agents: [1, 5], attack: sign-flip}``. They train as the others do, and send something else than
    what comes of it. Between peers that send whole versions, and with servers; what the others make of it is
    ``bridge``'s, ``correction: kardam``'s and ``algorithm.screen``'s. Not given: all are honest."""
    callbacks: tuple[CallableOrPath, ...] = ()
    """Callbacks of the run by import path ``module:attribute``: classes derived from ``ray_pcasgd.Callback``, or
    functions that return such objects; they are called without arguments."""
    schedule: str | None = None
    """A schedule file to replay, in place of ``compute``, ``links``, ``hosts``, ``membership`` and ``barrier``. With a
    server, ``algorithm.gathering`` is that of the run which it was recorded in."""

    task: Task = Task()
    """The learning task: data, model, loss and metrics."""
    partition: Annotated[Partition, BeforeValidator(from_name)] = IID()
    """How the training samples are dealt to the agents."""

    engine: EngineSettings = RaySettings()
    """The engine that executes the agents."""
    evaluate_every: int = Field(50, ge=1)
    """Steps from one evaluation to the next: agents and the averaged model are tested then, and at the end. With
    ``local_steps``, at the end of the round that comes to that step, and no more often than the longest round."""
    on_non_finite_loss: Literal["stop", "isolate"] = "stop"
    """Where an agent's loss is not finite: ``stop`` ends the run, ``isolate`` goes on without the agent."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    """What is kept while the run is running: models, and the states from which it can go on."""
    max_failures: int = Field(3, ge=-1)
    """Failures (lost agents, nodes or schedulers) that the run survives: planned runs go on from their last state, live
    ones go on without the agent until it comes back. -1: any number."""

    @field_validator("storage_path")
    @classmethod
    def _of_a_folder_or_a_location(cls, value: str) -> str:
        scheme, colon, rest = value.partition(":")
        if colon and not rest.startswith("//") and (rest.startswith("/") or scheme.lower() in _SCHEMES):
            raise ValueError(f"{value!r}: allowed are a folder, and a location such as s3://bucket/runs")
        return value

    @model_validator(mode="before")
    @classmethod
    def _links_of_regions_alone(cls, values: Any) -> Any:
        """Leave the example's late links out where regions say how late links are."""
        if isinstance(values, Mapping) and values.get("regions") and "links" not in values:
            return {**values, "links": ()}
        return values

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.num_epochs is not None and "num_steps" in self.model_fields_set:
            steps = self.num_steps
            raise ValueError(f"num_epochs = {self.num_epochs:g}: allowed is one of num_steps = {steps} and num_epochs")
        return self

    @model_serializer(mode="wrap")
    def _without_steps_of_epochs(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out ``num_steps`` where ``num_epochs`` stands in place of it, so that what is written can be read."""
        tree: dict[str, Any] = handler(self)
        if self.num_epochs is not None:
            tree.pop("num_steps", None)
        return tree
