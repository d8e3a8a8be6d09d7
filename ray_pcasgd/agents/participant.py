"""What an engine may ask of any agent of a run, whatever family it is of: a row in, an outcome and a message out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ray_pcasgd.agents.attacks import Faults
from ray_pcasgd.agents.clipping import GradientClipping
from ray_pcasgd.agents.copies import HeldCopies
from ray_pcasgd.agents.local_optimizer import LocalOptimizer
from ray_pcasgd.agents.mailbox import Delivery
from ray_pcasgd.agents.replica import MixedBuffers, Replica
from ray_pcasgd.base.curves import Curve
from ray_pcasgd.base.determinism import deterministic
from ray_pcasgd.base.state import State
from ray_pcasgd.records import Read, Row, Snapshot, StepReport
from ray_pcasgd.tasks.objective import Evaluation
from ray_pcasgd.tasks.precision import Precision, computing, widened
from ray_pcasgd.tasks.task import Task, TaskData
from ray_pcasgd.tasks.trees import Batch


@dataclass(frozen=True)
class Family:
    """What distinguishes a family of agents, as far as an engine has to know."""

    slack: int
    """By how many versions a later read of a link may fall back; at -1 each version is read at most once."""
    retention: Literal["horizon", "once", "counted"] = "horizon"
    """When a version is dropped: below what later reads of its links fall back to; once each reader has read it, in any
    order; or once it was read as often as the schedule says, all of whose rows are known."""
    prepares: bool = True
    """Whether a step's gradient is computed before anything is read, at the agent's own version."""
    direction_lag: int = 1
    """How many versions after a version the message comes that holds the direction at it: 0 where that is the one which
    has led to it."""
    runs_ahead: bool = False
    """Whether rows that are ready run before earlier ones that are not."""
    exchanges: bool = False
    """Whether a row sends the agent's version to those whom it reads, before it reads them."""
    counts: bool = True
    """Whether an agent's progress says how far the run is."""
    has_states: bool = True
    """Whether a run can go on from a state."""
    may_be_lost: bool = True
    """Whether a live run goes on without such an agent."""
    may_be_isolated: bool = False
    """Whether all links of an agent may be cut while a run is running."""
    holds_in_steps: bool = True
    """Whether delays in steps have a meaning."""
    tells_neighbors: bool = False
    """Whether a live agent sends its neighbors itself that it leaves."""
    title: str = "Agent"
    """What Ray's dashboard calls such an actor, with its number."""
    pushes: bool = False
    """Whether agents push shares of their mass, which must not be lost."""
    does_without: bool = False
    """Whether a step is taken without a version that had to be rejected."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What all agents of any run share."""

    seed: int
    num_steps: int
    batch_size: int
    optimizer: LocalOptimizer
    step_size: Curve
    warmup_steps: int
    task: Task
    device: str
    evaluate_every: int
    """Steps from one evaluation to the next; there is also one after the last step."""
    isolate_non_finite: bool = False
    """Whether an agent whose loss is not finite leaves the run alone, instead of ending it."""
    mixed_buffers: MixedBuffers = "statistics"
    """Which buffers are averaged."""
    gradient_clipping: GradientClipping | None = None
    """The bound on mini-batch gradients, if there is one."""
    accumulate: int = 1
    """Pieces in which a mini-batch is computed."""
    precision: Precision = "float32"
    """What forward passes and losses are computed with."""
    faults: Faults | None = None
    """Who attacks, if anybody does."""

    def build(self, data: TaskData) -> Replica:
        """Return a new replica of the model."""
        return self.replica_of(self.task.build_model(data, self.seed))

    def replica_of(self, module: nn.Module) -> Replica:
        """Return a replica that consists of a module."""
        return Replica(module, torch.device(self.device), self.mixed_buffers)

    def loss_of(self, module: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of a mini-batch in the run's precision, of shape (); its backward pass is the caller's."""
        with computing(self.precision, torch.device(self.device)):
            loss = self.task.loss_of(module, batch)
        return widened(self.precision, loss)

    def examine(self, module: nn.Module, data: TaskData) -> Evaluation:
        """Return the test loss and metrics in the run's precision."""
        device = torch.device(self.device)
        # Metrics of users' own need not have deterministic kernels.
        with deterministic(device), computing(self.precision, device):
            return self.task.examine(module, data, device)

    def step_size_at(self, step: int) -> float:
        """Return eta at ``step``, with the linear warm-up of the first ``warmup_steps`` steps."""
        eta = self.step_size.at(step)
        return eta * (step + 1) / self.warmup_steps if step < self.warmup_steps else eta

    def evaluates_at(self, progress: int) -> bool:
        """Return whether an agent is evaluated that has taken ``progress`` steps."""
        return progress % self.evaluate_every == 0 or progress == self.num_steps


@dataclass(frozen=True, kw_only=True)
class LearnerSpec:
    """What any agent is built from, where it lives; each family has its own."""

    agent: int
    recipe: Training
    neighbors: tuple[int, ...]
    """Sorted."""
    shard: Any
    """Indices of the agent's training samples, a NumPy integer array."""

    @property
    def family(self) -> Family:
        """What the agent has in common with those of its family."""
        raise AssertionError("a learner by itself is of no family")

    def build(self, data: TaskData) -> "Participant":
        """Return the agent."""
        raise AssertionError("a learner by itself takes no rows")

    @property
    def receivers(self) -> tuple[int, ...]:
        """Who may be sent messages."""
        return self.neighbors

    @property
    def steps_a_version(self) -> int:
        """Mini-batches from one version to the next, where these are the agent's own round."""
        return 1

    @property
    def share(self) -> tuple[int, ...]:
        """Which part of its neighbors' messages it gets, where not all of them get the same."""
        return ()


@dataclass(eq=False)
class Published:
    """One version of an agent, as those get it who read it."""

    weights: Tensor
    """Weights, a server's part of them, or what a worker sends: its gradient, or its weights; of a peer, as its wire
    format has them."""
    buffers: Tensor
    """Mixed buffers, shape (F,)."""
    direction: Tensor | None = None
    """At this version, once it is computed, as its wire format has it; of peers whose readers predict with it."""
    mass: float = 1.0
    """Of a peer's version, where rules push shares of it."""
    notes: Mapping[int, Delivery] = field(default_factory=dict)
    """What a worker says of its gradient, to each server."""
    local: Mapping[str, Tensor] = field(default_factory=dict)
    """Of a worker: its own tensors that are not as the model was made."""
    with_gradient: Tensor | None = None
    """Of a worker: which parameter tensors got a gradient, shape (T,); ``None``: all."""
    whole: Tensor | None = None
    """Of pairs with A2CiD2: the version's own weights, where ``weights`` have flowed until the next averaging."""
    twin: Tensor | None = None
    """Of pairs with A2CiD2: the version's twin, for an agent that comes back."""


class Received(NamedTuple):
    """One version of another agent, as a row reads it."""

    read: Read
    weights: Tensor
    buffers: Tensor
    direction: Tensor | None = None
    """Required where ``needs_direction`` says so."""
    mass: float = 1.0
    note: Delivery | None = None
    """What a worker says of its gradient; of those to servers."""
    local: Mapping[str, Tensor] = {}
    with_gradient: Tensor | None = None
    whole: Tensor | None = None
    """Of peers that send fragments, or pairs with A2CiD2: all of the version's own numbers, shape (D,), where these
    were sent too."""
    twin: Tensor | None = None
    """Of pairs with A2CiD2: the version's twin, shape (D,), where an agent comes back from it."""


class Incoming(NamedTuple):
    """What the messages to an agent hold, for those who check them."""

    weights: int | None
    """Numbers in the weights, and in a direction; ``None`` where these differ from message to message."""
    buffers: int
    """Numbers in the mixed buffers; a message may also have none."""
    last_version: int | None = None
    """The largest version; ``None`` where there is no bound."""
    forms: Mapping[str, Any] | None = None
    """Of a server: shape and type of the tensors that a worker may send with its gradient."""
    num_tensors: int = 0
    """Of a server: the number of the model's parameter tensors."""
    encoded: Mapping[str, int | None] = {}
    """Bytes of what travels in a format of fewer of them, by name: ``weights``, ``direction``, or ``difference`` in
    place of weights; ``None`` where these differ from message to message."""
    are_differences: bool = False
    """Whether they may hold differences in place of weights."""


class Outcome(NamedTuple):
    """What a row came to."""

    loss: float
    """Mini-batch loss, a server's mean of its workers'; not a number where the row computed none."""
    measures: Mapping[str, float]
    """The rule's measures."""


NO_LOSS = Outcome(float("nan"), {})
"""Of a row that is no step of the agent's own."""


class Participant(ABC):
    """One agent of a run, of any family. Passive: it never waits, sends, or reads a clock.

    For each of its rows an engine lets it ``prepare``, if it has to, then ``take`` the row with what was received, and
    publishes its ``message``.
    """

    spec: LearnerSpec
    version: int
    weights: Tensor
    """The present version's weights, shape (D,), or the part of them that the agent has."""
    buffers: Tensor
    direction: Tensor
    publishes_directions = False
    """Whether readers may need the direction at a version: known once computed, so after the version itself."""
    remembers_versions = False
    """Whether it keeps its old versions, of which ``keep`` says how many."""
    may_be_stacked = False
    """Whether its steps can be computed together with others' under vmap."""

    copies: HeldCopies | None = None
    """What is known of its neighbors' public copies, where messages are differences from them."""

    @property
    def difference(self) -> Tensor | None:
        """What travels in place of the present version's weights to who has the version before; ``None``: they do."""
        return None

    @property
    def bytes_saved(self) -> int:
        """By how many bytes a difference is shorter than the whole weights."""
        return 0

    @property
    def published_direction(self) -> Tensor | None:
        """The newest direction as it is published, where readers may need it."""
        return self.direction if self.publishes_directions else None

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the agent computes."""

    @property
    @abstractmethod
    def progress(self) -> int:
        """Steps taken so far, of the run's ``num_steps``."""

    @property
    def is_running(self) -> bool:
        """Whether the agent takes further steps."""
        return self.progress < self.spec.recipe.num_steps

    def require_determinism(self) -> None:  # noqa: B027 - servers compute no steps
        """On a GPU, let this process compute steps by deterministic kernels alone, where the model allows it."""

    @property
    def has_to_prepare(self) -> bool:
        """Whether the next step's gradient is still to be computed, for which nothing is read."""
        return False

    def prepare(self, loss: float | None = None) -> None:
        """Compute the next step's gradient, or take over one that was computed together with others', with its loss.

        Raises:
            NonFiniteLossError: the loss or the gradient is not finite.

        """
        raise AssertionError("its family prepares nothing")

    @abstractmethod
    def take(self, row: Row, received: Sequence[Received]) -> Outcome:
        """Take one row, of any kind, with what it reads; cancelled rows are given nothing.

        Raises:
            NonFiniteLossError: what the row would come to is not finite; the agent stays at its version.

        """

    @abstractmethod
    def message(self, row: Row | None) -> Published | None:
        """Return what is published of the version that a row came to, or of version 0; ``None``: nothing is.

        Where rows exchange (``Family.exchanges``), it is given the row that is going to send the present version.
        """

    def receivers(self) -> tuple[int, ...]:
        """Return whom the present version is sent to."""
        return self.spec.receivers

    def incoming(self) -> Incoming:
        """Return what the messages to the agent hold."""
        return Incoming(self.weights.numel(), self.buffers.numel())

    def outgoing(self) -> Mapping[str, int | None]:
        """Return the bytes of what the agent publishes in a format of fewer of them, by name."""
        return self.incoming().encoded

    def example_of(self, name: str) -> Tensor:
        """Return a tensor of the form in which the agent publishes its ``weights``, ``buffers`` or ``direction``."""
        size = self.outgoing().get(name)
        example: Tensor = getattr(self, name) if size is None else torch.empty(size, dtype=torch.uint8)
        return example

    def starts(self) -> dict[int, Published]:
        """Return version 0 of each neighbor of which it is read: all start alike, so it needs no message."""
        return {}

    def share(self, published: Published, reader: int) -> Published:
        """Return what one reader gets of a version that the agent has published."""
        return published

    def opened(self, read: Read, published: Published) -> Received:
        """Return a version of another agent as this agent reads it.

        Raises:
            ValueError: it is encoded, and has numbers that are not finite.

        """
        one = published
        note = one.notes.get(self.spec.agent)
        return Received(read, one.weights, one.buffers, one.direction, one.mass, note, one.local, one.with_gradient)

    def needs_direction(self, read: Read) -> bool:
        """Return whether the direction at a version is needed, not its weights alone."""
        return False

    def is_late(self, note: Delivery) -> bool:
        """Return whether a gradient that was not read is not going to be read."""
        return False

    def is_own(self, row: Row) -> bool:
        """Return whether a schedule's row is one that the run takes."""
        return True

    def batch_key(self, row: Row) -> Hashable | None:
        """Return what rows have in common that may run as one batch; ``None``: the row runs alone."""
        return None

    @abstractmethod
    def evaluation_point(self, row: Row) -> int | None:
        """Return the progress at which there is an evaluation after the row that was taken last, if there is one."""

    evaluates: ClassVar[bool] = True
    """Whether the agent has the whole model, and so can be evaluated by itself."""

    def evaluate(self) -> dict[str, float]:
        """Return the present version's test loss and metrics."""
        raise AssertionError("agents that have a part of the model are not evaluated by themselves")

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """Return the replica, or the agent's part of it, as the present version left it."""

    @abstractmethod
    def bytes_sent(self, row: Row, receivers: int | None = None) -> int:
        """Return the bytes that are sent for the row that was taken last.

        Args:
            row: The row.
            receivers: How many agents were sent the version; ``None``: as many as need it.

        """

    def report(self, row: Row, outcome: Outcome, seconds: float, receivers: int | None = None) -> StepReport:
        """Return the report of the row that was taken last, without the evaluation.

        Args:
            row: The row, with what it really read.
            outcome: What it came to.
            seconds: Since the run's first step.
            receivers: As ``bytes_sent`` is given it.

        """
        point = self.evaluation_point(row)
        return StepReport(
            row=row,
            progress=self.progress if point is None else point,
            loss=outcome.loss,
            measures=dict(outcome.measures),
            bytes_sent=self.bytes_sent(row, receivers),
            wall_seconds=seconds,
            snapshot=None if point is None else self.snapshot(),
        )

    def keep(self, is_needed: Callable[[int], bool] | None = None) -> None:  # noqa: B027 - most remember nothing
        """Forget what the agent remembers of its old versions, but for those that are needed.

        ``None``: as far as the agent itself knows.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing
        """End what the agent has running in the background; what needs it again starts it anew."""

    def state(self) -> State:
        """Return all that the steps to come depend on; its tensors are the agent's own."""
        raise AssertionError("its family has no states")

    def restore(self, state: State) -> None:
        """Go on from a state of an agent with the same settings, numbers excepted."""
        raise AssertionError("its family has no states")
